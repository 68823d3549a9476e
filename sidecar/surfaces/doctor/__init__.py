"""`sidecar doctor`: looks for whatever keeps a sidecar from doing well here, and says what would help."""
