"""Who gets a WebSocket (RFC 6455): the request is one like any other, with the same chain, and a lease until its end.

No other protocol is switched to: with HTTP/2 in clear text, say, requests would pass that nobody has looked at.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sidecar.mechanism.upstream import Pair
from sidecar.surfaces.dataplane.cors import Cors, header, refusal
from sidecar.surfaces.dataplane.heads import Facts
from sidecar.surfaces.dataplane.incoming import Incoming
from sidecar.surfaces.dataplane.tunnel import Flow, Tunnel
from sidecar.surfaces.dataplane.turn import Turn

_PROTOCOLS = b"sec-websocket-protocol"
_KEY = b"openai-insecure-api-key."  # how pages tell their key, since they cannot set headers


def offer(turn: Turn, facts: Facts, cors: Cors | None, flow: Flow) -> None:
    """Let the client have a WebSocket, if that is what it wants. All other offers may be ignored (RFC 9110, 7.8)."""
    incoming = turn.incoming
    upgrades = b"upgrade" in (token.strip().lower() for token in facts.named.split(b","))
    if not (upgrades and facts.upgrade == b"websocket" and incoming.method == "GET" and facts.http11):
        return
    if facts.length or facts.expects_continue or header(incoming.headers, b"transfer-encoding"):
        return
    if _is_foreign(incoming, cors):
        turn.error = turn.error or refusal()
    turn.tunnel = Tunnel(flow)
    turn.incoming = with_key(incoming)


def with_key(incoming: Incoming) -> Incoming:
    """With the key among the subprotocols as an Authorization header, unless there is one; it goes no further."""
    offered = [
        token.strip()
        for name, value in incoming.headers
        if name.lower() == _PROTOCOLS
        for token in value.split(b",")
        if token.strip()
    ]
    key = next((token.removeprefix(_KEY) for token in offered if token.startswith(_KEY)), None)
    if key is None:
        return incoming
    left = b", ".join(token for token in offered if not token.startswith(_KEY))
    headers = _with_protocols(incoming.headers, left)
    if not header(headers, b"authorization"):
        headers.append((b"authorization", b"Bearer " + key))
    passed_on = _with_protocols(incoming.passed_on, left)
    return msgspec.structs.replace(incoming, headers=tuple(headers), passed_on=passed_on)


def _with_protocols(headers: Iterable[Pair], left: bytes) -> list[Pair]:
    found = [pair for pair in headers if pair[0].lower() != _PROTOCOLS]
    return [*found, (b"sec-websocket-protocol", left)] if left else found


def _is_foreign(incoming: Incoming, cors: Cors | None) -> bool:
    """Whether a page of another origin asks, which may not: browsers let pages read WebSockets of any server."""
    origin = header(incoming.headers, b"origin")
    if not origin or (cors is not None and cors.allows(origin)):
        return False
    return origin.partition(b"://")[2] != header(incoming.headers, b"host")
