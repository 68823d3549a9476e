"""The request as its server gets it."""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.control.leases import Target
from sidecar.mechanism.connections import Connection
from sidecar.mechanism.hop_by_hop import HOP_BY_HOP
from sidecar.mechanism.upstream import Pair, kept

# Of the client's connection or identity: they do not concern the upstream, which gets its own.
_OURS = frozenset((b"host", b"content-length", b"expect", b"authorization", b"x-api-key"))
UPGRADE = b"connection: Upgrade\r\nupgrade: websocket\r\n"
DROPPED = HOP_BY_HOP | _OURS  # of the headers that come in


def headers_for(target: Target, passed_on: list[Pair], *, plain: bool) -> list[Pair]:
    """The headers that are passed on, with the upstream's own key. plain: the answer must not be encoded."""
    if not plain and target.api_key is None:
        return passed_on
    found = [pair for pair in passed_on if pair[0].lower() != b"accept-encoding"] if plain else list(passed_on)
    if plain:
        found.append((b"accept-encoding", b"identity"))
    if target.api_key is not None:
        found.append((b"authorization", b"Bearer " + target.api_key.reveal().encode()))
    return found


def passed_on(headers: Iterable[Pair]) -> list[Pair]:
    """The client's headers without what was meant for the sidecar."""
    return kept(headers, DROPPED)


def written(
    method: str, path: str, connection: Connection, headers: Iterable[Pair], body: bytes, framing: bytes = b""
) -> bytes:
    """The bytes of a request. path: with the query. Header names and values must come from a strict parser.

    framing: header lines in place of the length: of a body which is written later, or UPGRADE.
    """
    line = f"{method} {connection.origin.prefix}{path} HTTP/1.1\r\n"
    lines = [line.encode("latin-1"), connection.host_line]
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    if framing:
        lines.append(framing)
    elif body or method not in ("GET", "HEAD", "OPTIONS"):
        lines.append(b"content-length: %d\r\n" % len(body))
    lines += (b"\r\n", body)
    return b"".join(lines)
