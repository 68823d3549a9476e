"""What the sidecar tells in numbers, at `/metrics` and over OTLP: `catalog.METRICS`, and what plugins count."""
