"""The request as its server gets it."""

from __future__ import annotations

from collections.abc import Iterable

from plugin_sdk.messages import RawHeaders
from sidecar.control.leases import Target
from sidecar.mechanism.origins import Origin
from sidecar.mechanism.upstream import HOP_BY_HOP, Pair, kept

# Of the client's connection or identity: they do not concern the upstream, which gets its own.
_OURS = frozenset((b"host", b"content-length", b"expect", b"authorization", b"x-api-key"))
_DROPPED = HOP_BY_HOP | _OURS
_PLAIN = _DROPPED | {b"accept-encoding"}


def headers_for(target: Target, headers: Iterable[Pair], *, plain: bool) -> list[Pair]:
    """The client's headers without what was meant for the sidecar, with the upstream's own key.

    plain: the answer must not be encoded.
    """
    found = kept(headers, _PLAIN if plain else _DROPPED)
    if plain:
        found.append((b"accept-encoding", b"identity"))
    if target.api_key is not None:
        found.append((b"authorization", b"Bearer " + target.api_key.reveal().encode()))
    return found


def written(method: str, path: str, origin: Origin, headers: RawHeaders | list[Pair], body: bytes) -> bytes:
    """The bytes of a request. path: with the query. Header names and values must come from a strict parser."""
    lines = [f"{method} {path} HTTP/1.1\r\nhost: ".encode("latin-1"), origin.host_header, b"\r\n"]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    if body or method not in ("GET", "HEAD", "OPTIONS"):
        lines.append(b"content-length: %d\r\n" % len(body))
    lines += (b"\r\n", body)
    return b"".join(lines)
