"""Who may use the control API: this machine, or the holder of the admin token. Never a web page, from wherever."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from sidecar.core.manifest import Settings
from sidecar.mechanism.rules import is_loopback, listen_address
from sidecar.surfaces.dataplane.errors import ApiError

# Somebody forwards for somebody else: then the address of the peer says nothing about who asks.
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


def check(headers: Mapping[str, str], peer: str, settings: Settings) -> None:
    """Raise ApiError(401 or 403) unless the caller may use the control API. Header names in lower case."""
    token = settings.admin_token
    given = headers.get("authorization", "")
    if token is not None and hmac.compare_digest(given.encode(), f"Bearer {token.reveal()}".encode()):
        return
    if given and token is not None:
        raise ApiError(401, "invalid_admin_token", "the admin token is not known")
    if not is_loopback(peer) or any(name in headers for name in _FORWARDED):
        message = "the control API is for this machine, or for the holder of [sidecar] admin_token"
        raise ApiError(403, "not_loopback", message)
    _refuse_pages(headers, settings)


def _refuse_pages(headers: Mapping[str, str], settings: Settings) -> None:
    """A page in a browser on this machine has a loopback address, too; its Host or Origin gives it away.

    Host: a name that somebody else's DNS points at 127.0.0.1 (rebinding). Origin, Sec-Fetch-Site: sent by browsers with
    requests to other sites (Fetch standard, 3.2; Fetch Metadata).
    """
    host = headers.get("host", "")
    try:
        known, same = _known_host(host, settings), _same_origin(headers.get("origin"), host)
    except ValueError:
        known = same = False  # no address at all
    if not known:
        message = f'the host "{host[:100]}" is not known here; add it to [sidecar] allowed_hosts if it should be'
        raise ApiError(403, "unknown_host", message)
    if not same or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise ApiError(403, "foreign_origin", "a page of another site may not use the control API")


def _same_origin(origin: str | None, host: str) -> bool:
    return origin is None or urlsplit(origin).netloc == host


def _known_host(host: str, settings: Settings) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    return is_loopback(name) or name == listen_address(settings.listen)[0] or name in settings.allowed_hosts
