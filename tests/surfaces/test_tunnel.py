"""WebSockets inside the data plane: what they hold and for how long, and who gets none."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from plugin_sdk import End, Exchange, Filter, Headers, Request, inline
from sidecar.surfaces.dataplane.call import Call
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.incoming import Incoming
from sidecar.surfaces.dataplane.websockets import with_key
from tests.support import until
from tests.surfaces.world import World, answers, get, inside, message, running, status

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
WANTS = (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13")
GUARD = '[plugins.guard]\nimport = "tests.surfaces.test_tunnel:Guard"'


class Guard(Filter):
    """Would have to see all that is said."""

    @inline
    def on_request(self, exchange: Exchange) -> Request:
        headers = Headers((*exchange.request.headers.raw, (b"x-guarded", exchange.request.mode.encode())))
        return msgspec.structs.replace(exchange.request, headers=headers)

    @inline
    def on_chunk(self, exchange: Exchange, chunk: bytes) -> bytes | None:
        return chunk.replace(b"secret", b"******")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("tunnel")) as made:
        yield made


async def echoes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    """Switch, and send back what comes until nothing does."""
    writer.write(SWITCHED)
    while data := await reader.read(2**16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def talk(w: World) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A WebSocket to a server that echoes."""
    w.server.does = echoes
    reader, writer = await w.connect()
    writer.write(get(b"/upstream/m/ws", *WANTS))
    assert status(await reader.readuntil(b"\r\n\r\n")) == 101
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    return reader, writer


@inside
async def test_the_server_is_in_use_until_one_side_closes(w: World) -> None:
    in_flight = w.controller.fleet.external_in_flight
    _, writer = await talk(w)
    assert in_flight["m", "default"] == 1
    assert not w.outcomes
    writer.close()
    outcome = await w.outcome()
    assert not in_flight["m", "default"]
    assert (outcome.end, outcome.status, outcome.streamed) == (End.CLIENT_GONE, 101, True)
    assert (outcome.bytes_in, outcome.bytes_out, outcome.usage) == (5, 5, None)
    await until(lambda: not w.server.open, "the server's side is closed, too")


@inside
async def test_whoever_is_cut_off_is_told_nothing_that_the_server_has_not_said(w: World) -> None:
    reader, _ = await talk(w)
    (await w.connection()).cut_off(ApiError(503, "shutting_down", "the sidecar is shutting down"))
    assert await reader.read() == b""
    assert (await w.outcome()).code == "shutting_down"
    await until(lambda: not w.server.open, "the server's side is closed, too")


@inside
async def test_nothing_of_it_waits_for_the_garbage_collector(w: World) -> None:
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            _, writer = await talk(w)
            writer.close()
            await w.outcome()
        await until(lambda: not w.plane._connections and not w.server.open, "all is closed")
        await asyncio.sleep(0)
        assert not [one for one in gc.get_objects() if isinstance(one, Call)]
    finally:
        gc.enable()


@inside
async def test_a_server_that_is_gone_before_it_switches_is_told_of(w: World) -> None:
    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        writer.close()

    w.server.does = hangs_up
    reader, writer = await w.connect()
    writer.write(get(b"/upstream/m/ws", *WANTS))
    assert status((await message(reader))[0]) == 502


def test_filters_see_what_is_passed_through_and_where_they_could_not_there_is_no_websocket(tmp_path: Path) -> None:
    async def refused(w: World) -> None:
        head, body = await w.ask(get(b"/upstream/m/ws", *WANTS))
        assert (status(head), json.loads(body)["error"]["code"]) == (501, "websocket_unfiltered")
        assert (await w.outcome()).code == "websocket_unfiltered"
        assert not w.server.seen
        w.server.does = answers(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n\x00secret\xff")
        assert (await w.ask(get(b"/upstream/m/x?y")))[1] == b"\x00******\xff"
        assert w.server.seen[0].startswith(b"GET /x?y HTTP/1.1\r\n")
        assert b"\r\nx-guarded: chat\r\n" in w.server.seen[0]

    with running(tmp_path, more=GUARD, model='chain = ["guard"]') as made:
        made.run(refused(made))


@pytest.mark.parametrize(
    ("offered", "left", "key"),
    [
        ([b"realtime, openai-insecure-api-key.sk-1,x"], [b"realtime, x"], b"Bearer sk-1"),
        ([b"realtime", b"openai-insecure-api-key.sk-1"], [b"realtime"], b"Bearer sk-1"),
        ([b"openai-insecure-api-key.sk-1"], [], b"Bearer sk-1"),
        ([b"a,  b", b"c"], [b"a,  b", b"c"], None),
        ([], [], None),
    ],
)
def test_a_key_among_the_subprotocols_becomes_a_header(offered: list[bytes], left: list[bytes], key: bytes) -> None:
    headers = [(b"X", b"1"), *((b"Sec-WebSocket-Protocol", value) for value in offered)]
    made = with_key(Incoming("GET", "/x", "/x", "", tuple(headers), "", headers))
    assert [value for name, value in made.passed_on if name.lower() == b"sec-websocket-protocol"] == left
    assert [value for name, value in made.headers if name.lower() == b"sec-websocket-protocol"] == left
    assert dict(made.headers).get(b"authorization") == key
    assert b"authorization" not in dict(made.passed_on)


def test_a_key_in_a_header_counts_before_one_among_the_subprotocols() -> None:
    headers = ((b"Authorization", b"Bearer a"), (b"Sec-WebSocket-Protocol", b"openai-insecure-api-key.b"))
    assert with_key(Incoming("GET", "/x", "/x", "", headers, "")).headers == headers[:1]
