"""Which pages of other origins may read answers (Fetch standard, 3.2): none, unless `cors_origins` names them.

Callers are known by keys, never by cookies, so credentials in the sense of that standard are not allowed for anybody.
"""

from __future__ import annotations

from collections.abc import Iterable

from plugin_sdk.messages import RawHeaders
from sidecar.mechanism.upstream import Pair
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.passthrough import METHODS

MAX_AGE_S = 600

_METHODS = ", ".join(METHODS).encode()
_EXPOSED = b"access-control-expose-headers: *\r\n"


class Preflight(ApiError):
    """What a browser gets that asks before a request; it needs no key, for the request itself will have one."""

    def __init__(self, headers: RawHeaders) -> None:
        super().__init__(204, "preflight", "", headers=headers)

    def body(self) -> bytes:
        """There is none."""
        return b""

    def response_headers(self) -> RawHeaders:
        """What may be asked."""
        return self.headers


class Cors:
    """The rules of one declaration. origins: as it lists them."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self.origins = origins
        self._all = "*" in origins
        self._known = frozenset(origin.encode() for origin in origins)

    def allows(self, origin: bytes) -> bool:
        """Whether pages of the origin may read answers."""
        return self._all or origin in self._known

    def asked_before(self, method: str, headers: RawHeaders) -> ApiError | None:
        """What a browser is told that asks whether it may ask; None for any other request."""
        origin = header(headers, b"origin")
        if method != "OPTIONS" or not origin or not header(headers, b"access-control-request-method"):
            return None
        if not self.allows(origin):
            return refusal()
        asked = header(headers, b"access-control-request-headers")
        return Preflight(
            (
                (b"access-control-allow-methods", _METHODS),
                *(((b"access-control-allow-headers", asked),) if asked else ()),
                (b"access-control-max-age", b"%d" % MAX_AGE_S),
            )
        )

    def lines(self, headers: RawHeaders) -> bytes:
        """Header lines of the answer that say who may read it."""
        origin = header(headers, b"origin")
        if self._all:
            return b"access-control-allow-origin: *\r\n" + _EXPOSED
        if origin in self._known:
            return b"access-control-allow-origin: " + origin + b"\r\nvary: Origin\r\n" + _EXPOSED
        return b"vary: Origin\r\n"


def refusal() -> ApiError:
    """The page may not ask."""
    message = "pages of that origin may not ask; if they should, add it to cors_origins of [sidecar]"
    return ApiError(403, "origin_not_allowed", message)


def header(headers: Iterable[Pair], wanted: bytes) -> bytes:
    """A header's value, b"" without it."""
    return next((value for name, value in headers if name.lower() == wanted), b"")
