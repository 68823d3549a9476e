"""The data plane: inference requests in, a server's bytes out.

`relay` knows the course of a request and nothing of ASGI; `asgi` knows ASGI and nothing of models. Whatever carries the
bytes to and from clients can be exchanged without touching the rest.
"""
