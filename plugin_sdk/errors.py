"""What a plugin raises on purpose.

PluginError            base: "this is meant", as opposed to a bug
├── Reject             refuse the request, with the status and reason that the client gets
└── NotReady           Interface.ready: the server is not ready yet, and why
"""

from __future__ import annotations

from collections.abc import Mapping


class PluginError(Exception):
    """Base of the errors that plugins raise on purpose."""


class Reject(PluginError):
    """Refuse a request.

    status: the HTTP status, 400 to 599. code: a stable word for programs, derived from the status if not given.
    retry_after_s: seconds after which it is worth trying again. headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str = "",
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        if not 400 <= status <= 599:
            raise ValueError(f"Reject needs a status from 400 to 599, got {status}")
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code or _CODES.get(status, "rejected")
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})


class NotReady(PluginError):
    """The server answers, but cannot serve yet. The text is shown to whoever waits for it."""


_CODES = {
    400: "invalid_request",
    401: "invalid_api_key",
    403: "permission_denied",
    404: "not_found",
    429: "rate_limit_exceeded",
    503: "service_unavailable",
}
