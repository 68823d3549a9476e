"""The usage plugin."""
