"""The bytes of a request, as servers get them."""

from __future__ import annotations

from sidecar.mechanism.connections import Connection
from sidecar.mechanism.origins import Origin
from sidecar.mechanism.pool import Pool
from sidecar.surfaces.dataplane.request import UPGRADE, written


def to(url: str) -> Connection:
    return Connection(Pool(), Origin.of(url))


async def test_a_request_says_where_it_goes_and_how_long_it_is() -> None:
    head = b"POST /openai/v1/x?y=1 HTTP/1.1\r\nhost: h\r\nA: 1\r\na: 2\r\ncontent-length: 2\r\n\r\n{}"
    assert written("POST", "/v1/x?y=1", to("https://h/openai/"), [(b"A", b"1"), (b"a", b"2")], b"{}") == head
    assert written("GET", "/x", to("unix:/s"), [], b"") == b"GET /x HTTP/1.1\r\nhost: localhost\r\n\r\n"
    assert written("DELETE", "/x", to("http://h"), [], b"").endswith(b"\r\ncontent-length: 0\r\n\r\n")
    asked = b"\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"
    assert written("GET", "/x", to("http://h"), [], b"", UPGRADE).endswith(asked)
