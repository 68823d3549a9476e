"""Clients' connections: whose turn it is, what is no request, and what becomes of those that stand still."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator

import pytest

from plugin_sdk import End
from sidecar.surfaces.dataplane.protocol import LINGER_BYTES
from sidecar.surfaces.dataplane.turns import KEEP_ALIVE_S, LINGER_S, Phase
from tests.support import until
from tests.surfaces.world import OK, STREAM, World, answers, ask, chunk, get, inside, message, running, status

LARGE = b"x" * 200_000


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    limits = 'max_body = "100kB"\nrequest_timeout = "100s"\nbody_timeout = "60s"\nheader_timeout = "20s"'
    with running(tmp_path_factory.mktemp("edge"), settings=limits) as made:
        yield made


async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    """Answer when there is nobody left to be answered."""
    assert not await reader.read(1)


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    """A stream for as long as somebody takes it."""
    writer.write(STREAM)
    while True:
        writer.write(chunk(b"data: " + b"x" * 10_000 + b"\n\n"))
        await writer.drain()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the connection ends, however it does."""
    came = b""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(2**16):
            came += data
    return came


# --- turns ----------------------------------------------------------------------------------------------------------


@inside
async def test_pipelined_requests_of_every_kind_are_answered_in_their_order(w: World) -> None:
    reader, writer = await w.connect()
    writer.write(
        ask() + get(b"/-/a") + get(b"/v1/models") + get(b"/v1/nowhere") + ask(b"no JSON") + get(b"/-/b") + ask()
    )
    answered = [await message(reader) for _ in range(7)]
    assert [status(head) for head, _ in answered] == [200, 200, 200, 404, 400, 200, 200]
    assert [answered[1][1], answered[5][1]] == [b"/-/a 0", b"/-/b 0"]


@inside
async def test_many_refusals_that_wait_for_one_answer_are_all_told(w: World) -> None:
    """Each is answered at once when its turn comes: that must not take a stack that is deeper for each."""
    may = asyncio.Event()

    async def when_it_may(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        await may.wait()
        writer.write(OK)

    w.server.does = when_it_may
    reader, writer = await w.connect()
    writer.write(ask() + get(b"/v1/x") * 3000 + get(b"/-/end"))
    await w.asked()
    may.set()
    answered = [await message(reader) for _ in range(3002)]
    assert [status(head) for head, _ in answered] == [200, *[404] * 3000, 200]


@inside
async def test_many_offers_to_speak_something_else_are_not_taken_up(w: World) -> None:
    reader, writer = await w.connect()
    offer = get(b"/v1/x", b"Connection: Upgrade", b"Upgrade: h2c")
    writer.write(offer * 700 + get(b"/-/end"))
    answered = [await message(reader) for _ in range(701)]
    assert [status(head) for head, _ in answered] == [*[404] * 700, 200]


@inside
async def test_no_more_is_read_while_many_requests_wait(w: World) -> None:
    w.server.does = hangs
    _, writer = await w.connect()
    writer.write(ask())
    await w.asked()
    edge = await w.connection()
    for _ in range(200):
        writer.write(ask() * 1000)
        await asyncio.sleep(0)
    await until(lambda: edge.flow.read_paused, "it reads no further")
    waiting = len(edge.pipeline)
    await asyncio.sleep(0.05)
    assert len(edge.pipeline) == waiting
    w.pass_time(101)


@inside
async def test_a_queue_of_requests_gets_no_longer_while_it_is_worked_off(w: World) -> None:
    reader, writer = await w.connect()
    edges = [await w.connection()]
    most = 0

    async def look(_: asyncio.StreamReader, back: asyncio.StreamWriter, head: bytes) -> None:
        nonlocal most
        most = max(most, len(edges[0].pipeline))
        back.write(OK)

    w.server.does = look
    count = 7000
    sending = asyncio.create_task(_send(writer, ask() * 1000, count // 1000))
    for _ in range(count):
        await message(reader)
    await sending
    assert most < 5000  # some 3,000 are read at a time


async def _send(writer: asyncio.StreamWriter, data: bytes, times: int) -> None:
    for _ in range(times):
        writer.write(data)
        await writer.drain()


# --- what is refused ------------------------------------------------------------------------------------------------


@inside
async def test_what_follows_a_body_that_is_too_large_is_no_request(w: World) -> None:
    reader, writer = await w.connect()
    writer.write(ask(LARGE) + ask())
    head, _ = await message(reader)
    assert (status(head), b"connection: close" in head) == (413, True)
    assert await ended(reader) == b""
    assert not w.server.seen
    writer.close()
    await until(lambda: not w.connections, "it is let go")


@inside
async def test_a_client_that_still_sends_hears_why_it_is_refused(w: World) -> None:
    """What is not read would have the system reset the connection, and the answer with it."""
    reader, writer = await w.connect()
    writer.write(ask(LARGE, b"Expect: nothing"))
    head, _ = await message(reader)
    assert status(head) == 417
    edge = await w.connection()
    assert edge.phase is Phase.LINGER
    w.pass_time(LINGER_S - 1)
    assert not edge.transport.is_closing()
    w.pass_time(LINGER_S + 1)
    assert await ended(reader) == b""
    await until(lambda: not w.connections, "it is hung up on")


@inside
async def test_a_client_that_never_stops_sending_is_hung_up_on(w: World) -> None:
    _, writer = await w.connect()
    writer.write(ask()[:-1] + b"\r\nno request\r\n\r\n")
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Length: 99999999\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        for _ in range(2 * LINGER_BYTES // len(LARGE)):
            writer.write(LARGE)
            await writer.drain()
    await until(lambda: not w.connections, "it is hung up on")


@inside
async def test_garbage_within_a_body_that_was_refused_is_told_once(w: World) -> None:
    before = w.plane.malformed
    reader, writer = await w.connect()
    large = b"%x\r\n%b\r\n" % (len(LARGE), LARGE)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head + large + b"garbage\r\n")
    answer, _ = await message(reader)
    assert status(answer) == 413
    edge = await w.connection()
    for seconds in (1000, 2000):
        w.pass_time(seconds)
    await until(lambda: not w.connections, "it is hung up on")
    assert edge.plane.malformed - before <= 1


@inside
async def test_what_is_refused_without_a_look_is_told_in_the_shape_of_the_api_that_was_called(w: World) -> None:
    for request, code in (
        (ask(LARGE, path=b"/v1/messages"), 413),
        (get(b"/v1/messages"), 405),
        (get(b"/v1/messages/batches"), 404),
        (ask(path=b"/v1/messages/count_tokens/x?y=/"), 404),
    ):
        head, body = await w.ask(request)
        told = json.loads(body)
        assert (status(head), told["type"]) == (code, "error")
    for request in (
        get(b"/v1/chat/completions/x"),
        get(b"/v1/messages-x"),
        get(b"/v1/chat/completions"),
        get(b"/v1/x"),
    ):
        assert set(json.loads((await w.ask(request))[1])) == {"error"}


@inside
async def test_garbage_after_a_request_is_told_after_its_answer(w: World) -> None:
    reader, writer = await w.connect()
    writer.write(ask() + b"no request\r\n\r\n")
    assert [status((await message(reader))[0]) for _ in range(2)] == [200, 400]
    assert await ended(reader) == b""


@inside
async def test_garbage_within_a_body_for_the_application_ends_the_connection(w: World) -> None:
    _, writer = await w.connect()
    writer.write(b"POST /-/x HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\ngarbage\r\n")
    await until(lambda: not w.connections, "it is hung up on")


# --- what stands still ----------------------------------------------------------------------------------------------


@inside
async def test_an_idle_connection_is_closed_after_a_while(w: World) -> None:
    reader, writer = await w.connect()
    writer.write(ask())
    await message(reader)
    w.pass_time(KEEP_ALIVE_S - 1)
    writer.write(ask())
    await message(reader)
    w.pass_time(KEEP_ALIVE_S + 1)
    assert await ended(reader) == b""


@inside
async def test_a_head_that_does_not_come_is_not_waited_for(w: World) -> None:
    reader, writer = await w.connect()
    writer.write(ask()[:30])
    edge = await w.connection()
    await until(lambda: edge.phase is Phase.HEAD, "it has begun")
    w.pass_time(19)
    writer.write(ask()[30:40])
    w.pass_time(21)
    head, _ = await message(reader)
    assert status(head) == 408
    w.pass_time(21 + LINGER_S)
    assert await ended(reader) == b""


@inside
async def test_a_body_that_stops_coming_is_not_waited_for(w: World) -> None:
    reader, writer = await w.connect()
    writer.write(ask()[:-5])
    edge = await w.connection()
    await until(lambda: edge.phase is Phase.BODY, "its body comes")
    w.pass_time(59)
    w.pass_time(61)
    head, body = await message(reader)
    assert (status(head), b"body_timeout" in body) == (408, True)
    assert not w.server.seen


@inside
async def test_a_body_for_the_application_that_stops_coming_is_not_waited_for(w: World) -> None:
    _, writer = await w.connect()
    writer.write(ask(path=b"/-/x")[:-5])
    edge = await w.connection()
    await until(lambda: edge.phase is Phase.BODY, "its body comes")
    w.pass_time(59)
    assert w.connections
    w.pass_time(61)
    await until(lambda: not w.connections, "it is hung up on")


@inside
async def test_a_body_that_stops_coming_behind_an_answer_is_told_after_it(w: World) -> None:
    may = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        await may.wait()
        writer.write(OK)

    w.server.does = slow
    malformed = w.plane.malformed
    reader, writer = await w.connect()
    writer.write(ask() + ask()[:-5])
    await w.asked()
    for seconds in (61, 62, 63):
        w.pass_time(seconds)
    may.set()
    assert [status((await message(reader))[0]) for _ in range(2)] == [200, 408]
    assert w.plane.malformed == malformed + 1


@inside
async def test_a_request_that_takes_too_long_is_cut_off(w: World) -> None:
    w.server.does = hangs
    reader, writer = await w.connect()
    writer.write(ask())
    await w.asked()
    w.pass_time(99)
    w.pass_time(101)
    head, body = await message(reader)
    assert (status(head), b"request_timeout" in body) == (504, True)
    outcome = await w.outcome()
    assert (outcome.code, outcome.end) == ("request_timeout", End.REFUSED)
    assert await ended(reader) == b""
    await until(lambda: not w.server.open, "the server is told that nobody waits")


@inside
async def test_a_request_behind_a_body_that_stops_is_still_cut_off(w: World) -> None:
    w.server.does = hangs
    reader, writer = await w.connect()
    writer.write(ask() + ask()[:-5])
    await w.asked()
    w.pass_time(61)
    w.pass_time(101)
    head, _ = await message(reader)
    assert status(head) == 504


@inside
async def test_a_stream_that_takes_too_long_ends_in_an_event_that_can_be_read(w: World) -> None:
    w.server.does = answers(STREAM + chunk(b"data: 1\n\n") + b"20\r\ndata: ")
    reader, writer = await w.connect()
    writer.write(ask())
    await reader.readuntil(b"data: 1\n\n")
    await until(lambda: w.connections[0]._turns[0].wire.begun, "it has begun")
    await asyncio.sleep(0.01)
    w.pass_time(101)
    rest = await ended(reader)
    chunks = rest.split(b"\r\n")
    assert chunks[:2] == [b"", b"20"]
    assert len(chunks[2]) == 0x20  # the server's chunk is filled up
    assert b'"code":"request_timeout"' in chunks[4]
    assert len(chunks[4]) == int(chunks[3], 16)
    assert not rest.endswith(b"0\r\n\r\n")


@inside
async def test_a_client_that_takes_nothing_is_let_go(w: World) -> None:
    w.server.does = endless
    _, writer = await w.connect(receive_buffer=4096)
    writer.write(ask())
    edge = await w.connection()
    await until(lambda: edge.flow.write_paused, "the client is slow")
    w.pass_time(90)
    assert w.connections
    w.pass_time(601)
    await until(lambda: not w.connections, "it is let go")
    assert (await w.outcome()).end is End.CLIENT_GONE
    await until(lambda: not w.server.open, "the server is told")


@inside
async def test_a_client_that_takes_nothing_of_the_last_answer_is_let_go(w: World) -> None:
    """All of it was given to the system's buffers or ours, and the connection ends with it."""
    w.server.does = answers(b"HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n", b"x" * 8_000_000)
    _, writer = await w.connect(receive_buffer=4096)
    writer.write(ask(b'{"model": "m"}', b"Connection: close"))
    edge = await w.connection()
    await until(lambda: edge.flow.write_paused, "the client is slow")
    edge.resume_writing()  # as if it had taken nearly all
    await w.outcome()
    w.pass_time(601)
    await until(lambda: not w.connections, "it is let go")


@inside
async def test_a_slow_client_slows_down_the_next_answer_as_well(w: World) -> None:
    """The transport tells once that it is full: whoever comes next on the connection must know."""
    _, writer = await w.connect(receive_buffer=4096)
    edge = await w.connection()
    taken = 0

    async def first_large_then_endless(_: asyncio.StreamReader, back: asyncio.StreamWriter, head: bytes) -> None:
        nonlocal taken
        if len(w.server.seen) == 1:
            back.write(b"HTTP/1.1 200 OK\r\nContent-Length: 40000\r\n\r\n" + b"x" * 40_000)
            return
        back.write(STREAM)
        while True:
            back.write(chunk(b"x" * 10_000))
            taken += 10_000
            await back.drain()

    edge.transport.set_write_buffer_limits(high=1000)
    sock = edge.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    w.server.does = first_large_then_endless
    writer.write(ask() + ask())
    await w.asked(2)
    assert edge.flow.write_paused
    await until(lambda: taken > 1_000_000, "the server sends as much as fits into buffers")
    await asyncio.sleep(0.1)
    assert edge.transport.get_write_buffer_size() < 600_000


# --- the most connections, and the end ------------------------------------------------------------------------------


def test_one_client_too_many_is_told_so_whatever_it_has_sent(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running(tmp_path_factory.mktemp("few"), settings="max_connections = 2") as few:

        async def scenario() -> None:
            first, second = await few.connect(), await few.connect()
            await until(lambda: len(few.connections) == 2, "two clients")
            for request in (b"", ask(), ask(b"x" * 100_000)):
                reader, writer = await few.connect()
                writer.write(request)
                head, body = await message(reader)
                assert (status(head), b"too_many_connections" in body) == (503, True)
                assert await ended(reader) == b""
                writer.close()
            assert few.plane.refused_connections == 3
            first[1].close()
            await until(lambda: len(few.connections) == 1, "one has gone")
            assert status((await few.ask(ask()))[0]) == 200
            second[1].close()
            await until(lambda: not few.uvicorns.connections, "uvicorn has let them go as well")

        few.run(scenario())


@inside
async def test_a_server_that_ends_closes_what_is_idle_and_finishes_what_is_not(w: World) -> None:
    may = asyncio.Event()

    async def when_it_may(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        await may.wait()
        writer.write(OK)

    w.server.does = when_it_may
    idle, _ = await w.connect()
    busy, writer = await w.connect()
    writer.write(ask())
    await w.asked()
    for connection in w.connections:
        connection.shutdown()
    assert await ended(idle) == b""
    may.set()
    head, _ = await message(busy)
    assert (status(head), b"connection: close" in head) == (200, True)
    assert await ended(busy) == b""


@inside
async def test_what_is_in_flight_when_patience_ends_is_told_so(w: World) -> None:
    w.server.does = hangs
    reader, writer = await w.connect()
    writer.write(ask() + ask())
    await w.asked()
    await w.plane.close()
    head, body = await message(reader)
    assert (status(head), b"shutting_down" in body) == (503, True)
    assert await ended(reader) == b""
