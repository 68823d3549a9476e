"""Errors in the shape of the API that was called, each with a stable code, a reason, and Retry-After where it helps."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from plugin_sdk import Reject
from plugin_sdk.messages import RawHeaders
from sidecar.control.leases import RefusedError
from sidecar.mechanism.modes import Mode

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_REFUSALS = {"model_not_found": 404, "queue_full": 429}  # statuses of a RefusedError's codes; all others are 503

QUOTED_BYTES = 500  # of a server's error that is in no known shape


class ApiError(Exception):
    """A request that is answered by the sidecar itself."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: RawHeaders = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = headers

    @classmethod
    def rejected(cls, reject: Reject) -> ApiError:
        """A plugin refused the request."""
        headers = tuple((name.lower().encode(), value.encode()) for name, value in reject.headers.items())
        if reject.status == 401:
            headers = ((b"www-authenticate", b"Bearer"), *headers)  # RFC 9110, 11.6.1
        return cls(reject.status, reject.code, reject.message, retry_after_s=reject.retry_after_s, headers=headers)

    @classmethod
    def refused(cls, refused: RefusedError, model: str) -> ApiError:
        """The model cannot be had now."""
        status = _REFUSALS.get(refused.code, 503)
        message = f'the model "{model}" is not available: {refused}'
        return cls(status, refused.code, message, param="model", retry_after_s=refused.retry_after_s)

    def body(self) -> bytes:
        """OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        detail = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": detail})

    def body_for(self, interface: Mode | None) -> bytes:
        """In the shape of the API that was called; in OpenAI's if it has none."""
        said = None
        if interface is not None:
            said = interface.error(self.status, self.code, self.message, self.param)
        return self.body() if said is None else said

    def response_headers(self) -> RawHeaders:
        """Headers of the whole response but for the length."""
        headers = ((b"content-type", b"application/json"), *self.headers)
        if self.retry_after_s is None:
            return headers
        seconds = max(1, math.ceil(self.retry_after_s))
        return (*headers, (b"retry-after", str(seconds).encode()))


class _Answer(msgspec.Struct):
    """A server's error in OpenAI's shape."""

    error: dict[str, Any]


_decode_answer = msgspec.json.Decoder(_Answer).decode


def error_body(status: int, body: bytes) -> bytes:
    """A server's error on one line: its own object if it has a message, else one that quotes how the body begins."""
    try:
        error = _decode_answer(body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        error = {}  # a page of a proxy, cut off, or of another shape: then it can only be quoted
    if isinstance(error.get("message"), str):
        return msgspec.json.encode({"error": error})
    said = " ".join(body[:QUOTED_BYTES].decode("utf-8", "replace").split())
    return ApiError(status, "upstream_error", f"the server answered {status}: {said or 'nothing else'}").body()
