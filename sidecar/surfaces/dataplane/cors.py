"""Which pages of other origins may read answers (Fetch standard, 3.2): none, unless `cors_origins` names them.

Callers are known by keys, never by cookies, so credentials in the sense of that standard are not allowed for anybody.
"""

from __future__ import annotations

from collections.abc import Iterable

from plugin_sdk.messages import RawHeaders
from sidecar.mechanism.modes import Mode
from sidecar.mechanism.upstream import Pair
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.passthrough import METHODS

MAX_AGE_S = 600

_MAY_ASK = f"access-control-allow-methods: {', '.join(METHODS)}\r\naccess-control-max-age: {MAX_AGE_S}\r\n".encode()
_EXPOSED = b"access-control-expose-headers: *\r\n"


class Preflight(ApiError):
    """What a browser gets that asks before a request; it needs no key, for the request itself will have one."""

    def __init__(self) -> None:
        super().__init__(204, "preflight", "")

    def body_for(self, interface: Mode | None) -> bytes:  # noqa: ARG002 - there is no body in any shape
        """There is none."""
        return b""

    def response_headers(self) -> RawHeaders:
        """All are among those that every answer has."""
        return ()


class Cors:
    """The rules of one declaration. origins: as it lists them."""

    def __init__(self, origins: tuple[str, ...]) -> None:
        self.origins = origins
        self._all = "*" in origins
        self._known = frozenset(origin.encode() for origin in origins)

    def allows(self, origin: bytes) -> bool:
        """Whether pages of the origin may read answers."""
        return self._all or origin in self._known

    def lines(self, method: str, headers: RawHeaders) -> bytes:
        """Header lines of the answer that say who may read it, and to a browser that asks before, what may be asked."""
        origin = header(headers, b"origin")
        if self._all:
            lines = b"access-control-allow-origin: *\r\n"
        elif origin in self._known:
            lines = b"access-control-allow-origin: " + origin + b"\r\nvary: Origin\r\n"
        else:
            return b"vary: Origin\r\n"
        if not _is_preflight(method, headers):
            return lines + _EXPOSED
        asked = header(headers, b"access-control-request-headers")
        return lines + _MAY_ASK + (b"access-control-allow-headers: " + asked + b"\r\n" if asked else b"")

    def asked_before(self, method: str, headers: RawHeaders) -> ApiError | None:
        """What a browser is told that asks whether it may ask; None for any other request."""
        if not _is_preflight(method, headers):
            return None
        return Preflight() if self.allows(header(headers, b"origin")) else refusal()


def refusal() -> ApiError:
    """The page may not ask."""
    message = "pages of that origin may not ask; if they should, add it to cors_origins of [sidecar]"
    return ApiError(403, "origin_not_allowed", message)


def header(headers: Iterable[Pair], wanted: bytes) -> bytes:
    """A header's value, b"" without it."""
    return next((value for name, value in headers if name.lower() == wanted), b"")


def _is_preflight(method: str, headers: RawHeaders) -> bool:
    return (
        method == "OPTIONS"
        and bool(header(headers, b"origin"))
        and bool(header(headers, b"access-control-request-method"))
    )
