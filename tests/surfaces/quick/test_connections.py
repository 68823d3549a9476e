"""What comes besides, before and after requests whose head comes again, and clients that do not read."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from plugin_sdk import End
from sidecar.surfaces.dataplane.call import Call
from sidecar.surfaces.dataplane.quick import Quick
from sidecar.surfaces.dataplane.relaying import Relaying
from sidecar.surfaces.dataplane.turns import KEEP_ALIVE_S, Phase
from tests.support import until
from tests.surfaces.quick.harness import (
    JSON,
    USAGE,
    WAS_QUICK,
    WHOLE,
    Case,
    M,
    reached,
    same_quick_or_not,
    soon,
)
from tests.surfaces.world import OK, STREAM, World, answers, ask, chunk, get, inside, message, status

SECONDS: dict[str, bytes] = {
    "the same": ask(),
    "another": ask(b'{"model": "renamed"}'),
    "two": ask() + ask(b'{"model": "other"}'),
    "for the application": get(b"/-/x"),
    "for the list": get(b"/v1/models"),
    "for nowhere": get(b"/v1/nowhere"),
    "garbage": b"garbage\r\n\r\n",
    "half of one": ask()[:50],
    "all but a byte of one": ask()[:-1],
}


@pytest.mark.parametrize("kind", SECONDS)
@pytest.mark.parametrize("late", [False, True])
def test_what_comes_while_a_request_is_answered_is_answered_after_it(here: World, kind: str, late: bool) -> None:
    may = asyncio.Event()

    async def does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        if len(here.server.seen) == 1:
            if late:
                writer.write(WHOLE[:-5])
            await may.wait()
            writer.write(WHOLE[-5:] if late else WHOLE)
        else:
            writer.write(JSON % (1, b"%d" % len(here.server.seen)))

    async def act(w: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reached(w, reader, WHOLE[-9:-5] if late else b"")
        edge = w.connections[0]
        was = edge._quick
        writer.write(SECONDS[kind])
        await soon(lambda: edge._turns and (was is None or edge._quick is not was), "it has come")
        await asyncio.sleep(0.002)
        may.set()
        await soon(lambda: WHOLE[-9:] in bytes(reader._buffer), "it is answered")  # type: ignore[attr-defined] # as above
        rest_ = {"half of one": ask()[50:], "all but a byte of one": ask()[-1:]}.get(kind, b"")
        writer.write(rest_)
        await asyncio.sleep(0.005)

    plain = same_quick_or_not(here, Case(does=does, act=act, breaks=True, before=may.clear))
    assert plain.client.startswith(WHOLE)
    assert plain.ended == (kind == "garbage")


# --- heads of others --------------------------------------------------------------------------------------------------


A, B = ask(M, b"X-Who: A", b"Authorization: Bearer A"), ask(M, b"X-Who: B", b"Authorization: Bearer B")


@inside
async def test_a_head_that_comes_again_after_another_that_came_in_two_reads_is_still_its_own(w: World) -> None:
    reader, writer = await w.connect()
    for cut in (1, 30, len(B) - 3):
        w.server.seen.clear()
        for request in (A, A, B, A, B):
            if request is B:
                writer.write(B[:cut])
                await asyncio.sleep(0.005)
            writer.write(request[cut:] if request is B else request)
            await message(reader)
        assert [head.split(b"X-Who: ")[1][:1] for head in w.server.seen] == [b"A", b"A", b"B", b"A", b"B"]


@inside
async def test_a_head_that_comes_again_after_another_that_came_while_it_was_answered_is_still_its_own(w: World) -> None:
    may = asyncio.Event()

    async def does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        await may.wait()
        writer.write(OK)

    w.server.does = does
    reader, writer = await w.connect()
    may.set()
    writer.write(A)
    await message(reader)
    may.clear()
    writer.write(A)
    await w.asked(2)
    writer.write(B)
    await asyncio.sleep(0.005)
    may.set()
    for _ in range(2):
        await message(reader)
    for request in (A, B, A):
        writer.write(request)
        await message(reader)
    assert [head.split(b"X-Who: ")[1][:1] for head in w.server.seen] == [b"A", b"A", b"B", b"A", b"B", b"A"]


# --- clients that do not read -----------------------------------------------------------------------------------------


BUFFERED = 3_000_000  # what the kernel and the transports may hold


@inside
async def test_a_client_that_does_not_read_a_stream_stops_its_server(w: World) -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        nonlocal sent
        writer.write(STREAM)
        while True:
            writer.write(chunk(b"data: %b\n\n" % (b"x" * 50_000)))
            await writer.drain()
            sent += 50_000

    reader, writer = await w.connect(receive_buffer=4096)
    writer.write(ask())
    await message(reader)
    w.server.does = endless
    writer.write(ask())
    edge = await w.connection()
    await until(lambda: edge.flow.write_paused and edge._turns, "it became a call")
    stood = -1
    while sent != stood:  # the kernel takes its time
        stood = sent
        await asyncio.sleep(0.05)
    assert sent < 30_000_000
    assert edge.transport.get_write_buffer_size() < BUFFERED
    assert len(WAS_QUICK) == 1
    assert len(await reader.read(1000)) == 1000
    for _ in range(20_000):
        if sent > stood:
            break
        await reader.read(2**20)
    assert sent > stood, "it goes on"


@inside
async def test_a_client_that_asks_on_and_on_and_reads_nothing_is_not_served_out_of_memory(w: World) -> None:
    """What waits to be written is bounded, whether each answer is small enough for it or not."""
    body = b"x" * 200_000
    w.server.does = answers(JSON % (len(body), body))
    _, writer = await w.connect(receive_buffer=4096)
    edge = await w.connection()
    for _ in range(200):
        writer.write(ask())
        await asyncio.sleep(0.002)
        if edge.flow.read_paused:
            break
    assert edge.transport.get_write_buffer_size() < BUFFERED
    assert len(w.server.seen) < 100


@inside
async def test_a_client_that_becomes_slow_in_the_moment_in_which_its_server_is_asked_is_answered_once(w: World) -> None:
    """What is written to the one may have what waits for the other be written, too."""
    w.server.does = answers(WHOLE)
    reader, writer = await w.connect()
    edge = await w.connection()
    writer.write(ask())
    await message(reader)
    await w.outcome()
    [connection] = [one for idle in w.plane.pool._idle.values() for one in idle]
    transport: Any = connection._transport
    written: list[bytes] = []

    class Sending:
        """Its first write fills what goes to the client."""

        def __getattr__(self, name: str) -> Any:
            return getattr(transport, name)

        def write(self, data: bytes) -> None:
            if not written:
                edge.pause_writing()
            written.append(data)
            transport.write(data)

    connection._transport = Sending()  # type: ignore[assignment] # it is one
    writer.write(ask())
    await w.asked(2)
    await asyncio.sleep(0.01)
    assert edge._turns, "it became a call"
    edge.resume_writing()
    for _ in range(2):
        assert (await message(reader))[1] == USAGE
        assert (await w.outcome()).end is End.OK
        assert (edge._turns, w.generation.leases, w.plane.requests.in_flight) == ([], 0, 0)
        writer.write(ask())


@inside
async def test_a_slow_client_gets_all_of_a_large_body(w: World) -> None:
    body = bytes(range(256)) * 40_000
    w.server.does = answers(JSON % (len(body), body))
    reader, writer = await w.connect(receive_buffer=4096)
    for _ in range(2):
        writer.write(ask())
        head = await reader.readuntil(b"\r\n\r\n")
        assert status(head) == 200
        assert await reader.readexactly(len(body)) == body
        assert (await w.outcome()).bytes_out == len(body)
    assert len(WAS_QUICK) == 1


@inside
async def test_requests_of_other_lengths_get_there_whole(w: World) -> None:
    w.server.does = answers(WHOLE)
    reader, writer = await w.connect()
    for size in (1, 60_000, 99_000, 1):
        request = ask(b'{"model": "m", "x": "%b"}' % (b"x" * size))
        writer.write(request)
        assert (await message(reader))[1] == USAGE
        assert len(w.server.bodies[-1]) == size + 23


# --- between requests -------------------------------------------------------------------------------------------------


@inside
async def test_an_idle_connection_is_closed_a_while_after_the_last_quick_answer(w: World) -> None:
    reader, writer = await w.connect()
    edge = await w.connection()
    for _ in range(3):
        writer.write(ask())
        await message(reader)
        assert (edge.phase, edge._quick, edge._turns) == (Phase.IDLE, None, [])
    requests = w.uvicorns.total_requests
    w.pass_time(KEEP_ALIVE_S - 1)
    writer.write(ask())
    await message(reader)
    assert w.uvicorns.total_requests == requests + 1
    w.pass_time(KEEP_ALIVE_S + 1)
    assert await reader.read() == b""
    assert len(WAS_QUICK) == 3


@inside
async def test_connections_between_requests_keep_nothing_of_them(w: World) -> None:
    reader, writer = await w.connect()
    edge = await w.connection()
    large = b'{"model": "m", "x": "%b"}' % (b"x" * 50_000)
    w.server.does = answers(JSON % (90_000, b"y" * 90_000))
    for _ in range(3):
        writer.write(ask(large))
        await message(reader)
    WAS_QUICK.clear()
    gc.collect()
    held = [one for one in gc.get_objects() if type(one) in (Quick, Call, Relaying)]
    assert not held
    seen: set[int] = set()

    def size(one: Any, depth: int = 6) -> int:
        if id(one) in seen or depth == 0 or isinstance(one, type):
            return 0
        seen.add(id(one))
        if isinstance(one, bytes):
            return len(one)
        return sum(size(inner, depth - 1) for inner in gc.get_referents(one))

    own: list[Any] = [edge._known, edge._repeats, edge._turn, edge.cycle]
    [connection] = [one for idle in w.plane.pool._idle.values() for one in idle]
    own += [connection._repeats, connection._again, connection._before, connection._seen]
    assert sum(map(size, own)) < 5_000
