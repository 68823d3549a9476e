"""The data plane: inference requests in, a server's bytes out.

`relay` knows the course of a request, `response` how its answer can go, and neither knows ASGI; `asgi` knows nothing of
models. Whatever carries the bytes to and from clients can be exchanged without touching the rest.
"""
