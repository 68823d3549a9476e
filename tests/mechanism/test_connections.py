"""Connections to servers: what is heard of an answer however it is framed, cut, and broken off; and what is kept."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import struct
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import httptools
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.mechanism import connections
from sidecar.mechanism.chunks import ChunkPosition
from sidecar.mechanism.connections import Connection
from sidecar.mechanism.exchanges import Again, Framing, UpstreamError
from sidecar.mechanism.origins import Origin
from sidecar.mechanism.pool import Pool
from tests.servers import HTTP_SERVER
from tests.support import PATIENCE_S, serving, until

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Heard:
    """What is heard of one answer (`Listener`)."""

    def __init__(self, then: Callable[[], None] = lambda: None, between: ChunkPosition | None = None) -> None:
        self.between = between  # where in the chunks one is, if whole ones may pass by the parser
        self.skipped = 0
        self.status = 0
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.framing = Framing.NONE
        self.interim: list[int] = []
        self.pieces: list[bytes] = []
        self.error: UpstreamError | None = None
        self.ends = 0
        self.writable = True
        self.then = then
        self._over = asyncio.Event()

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    async def end(self) -> Heard:
        """When it is over. Raises UpstreamError if it broke off."""
        async with asyncio.timeout(PATIENCE_S):
            await self._over.wait()
        assert self.ends == 1
        if self.error is not None:
            raise self.error
        return self

    def on_whole(self, again: Again, body: bytes) -> bool:
        return False

    def on_head(self, answer: Connection) -> None:
        assert not self.status
        self.status, self.reason, self.framing = answer.status, answer.reason, answer.framing
        self.headers = list(answer.headers)
        answer.between = self.between if answer.framing is Framing.CHUNKED else None

    def on_interim(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.interim.append(status)

    def on_data(self, data: bytes) -> None:
        assert data
        assert self.status
        assert not self.ends
        self.pieces.append(data)
        if self.between is not None and self.framing is Framing.CHUNKED:
            self.between.feed(data)
        self.then()

    def on_chunks(self, data: bytes) -> None:
        assert self.between is not None
        assert not self.ends
        self.skipped += 1
        self.pieces.append(data)

    def on_pause(self) -> None:
        assert self.status

    def on_end(self) -> None:
        self.ends += 1
        self._over.set()

    def on_broken(self, error: UpstreamError) -> None:
        self.ends += 1
        self.error = error
        self._over.set()

    def on_writable(self, writable: bool) -> None:
        self.writable = writable


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[Origin]:
    """A server that treats each connection as it is told."""
    tasks: set[asyncio.Task[Any]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(run, "127.0.0.1", 0)
    try:
        yield Origin("http", "127.0.0.1", listener.sockets[0].getsockname()[1])
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def always(*pieces: bytes, close: bool = False) -> Serve:
    """Answer each request with these pieces, one at a time."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if close:
                return

    return serve


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    made = Pool()
    yield made
    made.close()


def request(method: str = "POST") -> bytes:
    return f"{method} /v1/x HTTP/1.1\r\nhost: x\r\n\r\n".encode()


async def ask(pool: Pool, origin: Origin, *, method: str = "POST", pieces: bool = False) -> Heard:
    """What is heard, on an idle connection if there is one."""
    connection = pool.take(origin) or await pool.connect(origin)
    heard = Heard()
    connection.ask(heard, request(method), head_only=method == "HEAD", pieces=pieces)
    return await heard.end()


def kept(pool: Pool) -> list[Connection]:
    return [connection for idle in pool._idle.values() for connection in idle]


# --- whole answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [False, True], ids=["as they came", "in pieces"])
@pytest.mark.parametrize(
    ("answer", "framing", "body", "dechunked"),
    [
        (LENGTH, Framing.LENGTH, b"ok", b"ok"),
        (CHUNKED + b"2\r\nok\r\n0\r\n\r\n", Framing.CHUNKED, b"2\r\nok\r\n0\r\n\r\n", b"ok"),
        (CHUNKED + b"2;a=b\r\nok\r\n0\r\nT: 1\r\n\r\n", Framing.CHUNKED, b"2;a=b\r\nok\r\n0\r\nT: 1\r\n\r\n", b"ok"),
        (CHUNKED + b"0\r\n\r\n", Framing.CHUNKED, b"0\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Framing.LENGTH, b"", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Framing.NONE, b"", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", Framing.NONE, b"", b""),
    ],
)
async def test_an_answer_is_heard_whole_and_its_connection_is_kept(
    pool: Pool, answer: bytes, framing: Framing, body: bytes, dechunked: bytes, pieces: bool
) -> None:
    for cut in range(0, len(answer), 3):
        async with server(always(answer[:cut], answer[cut:])) as origin:
            for _ in range(2):
                heard = await ask(pool, origin, pieces=pieces)
                assert (heard.framing, heard.body) == (framing, dechunked if pieces else body)
            assert len(kept(pool)) == 1
        pool.close()


async def test_status_reason_and_headers_are_heard_as_they_were_sent(pool: Pool) -> None:
    answer = b"HTTP/1.1 429 Slow Down\r\nX-A: 1\r\nx-a: 2\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde"
    async with server(always(answer)) as origin:
        heard = await ask(pool, origin)
    assert (heard.status, heard.reason, heard.body) == (429, b"Slow Down", b"abcde")
    assert heard.headers[:3] == [(b"X-A", b"1"), (b"x-a", b"2"), (b"Content-Encoding", b"gzip")]


async def test_interim_answers_come_before_the_real_one(pool: Pool) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    for pieces in ((early + early + LENGTH,), (early, early, LENGTH), (early + LENGTH[:9], LENGTH[9:])):
        async with server(always(*pieces)) as origin:
            heard = await ask(pool, origin)
            assert (heard.status, heard.body, kept(pool)[0].usable) == (200, b"ok", True)
            assert heard.interim in ([103], [103, 103])
        pool.close()


async def test_an_answer_without_a_length_ends_with_its_connection(pool: Pool) -> None:
    async with server(always(b"HTTP/1.1 200 OK\r\n\r\nuntil ", b"the end", close=True)) as origin:
        heard = await ask(pool, origin)
    assert (heard.framing, heard.body, kept(pool)) == (Framing.CLOSE, b"until the end", [])


async def test_the_answer_to_head_has_no_body_whatever_it_says(pool: Pool) -> None:
    async with server(always(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")) as origin:
        for _ in range(2):
            heard = await ask(pool, origin, method="HEAD")
            assert (heard.body, heard.framing) == (b"", Framing.NONE)
        assert len(kept(pool)) == 1


async def test_one_connection_takes_answers_in_pieces_and_as_they_came_in_turn(pool: Pool) -> None:
    raw = b"2\r\nok\r\n0\r\n\r\n"
    async with server(always(CHUNKED + raw)) as origin:
        bodies = [(await ask(pool, origin, pieces=pieces)).body for pieces in (False, True, True, False, True)]
        assert len(kept(pool)) == 1
    assert bodies == [raw, b"ok", b"ok", raw, b"ok"]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
)
async def test_a_connection_that_the_server_wants_to_end_is_not_kept(pool: Pool, answer: bytes) -> None:
    async with server(always(answer)) as origin:
        assert (await ask(pool, origin)).body == b"ok"
    assert not kept(pool)


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("extra", [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", b"\0"])
@pytest.mark.parametrize("whole", [LENGTH, CHUNKED + b"2\r\nok\r\n0\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"])
async def test_what_follows_an_answer_reaches_nobody(pool: Pool, whole: bytes, extra: bytes, pieces: bool) -> None:
    heard = Heard()
    async with server(always(whole + extra)) as origin:
        connection = await pool.connect(origin)
        connection.ask(heard, request(), pieces=pieces)
        await until(lambda: heard.ends, "it is over")
    assert b"x" not in heard.body.replace(b"\0", b"x")
    assert not kept(pool)


async def test_who_speaks_without_being_asked_is_hung_up_on(pool: Pool) -> None:
    speak = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await always(LENGTH, close=True)(reader, writer)
        await speak.wait()
        writer.write(LENGTH)
        assert not await reader.read()

    async with server(serve) as origin:
        await ask(pool, origin)
        speak.set()
        await until(lambda: not kept(pool), "it is hung up on")


# --- answers that break off -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "closed the connection"),
        (b"HTTP/1.1 200", "closed the connection"),
        (b"garbage\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 000 No\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "its status is 000"),
        (b"HTTP/1.1 099 No\r\n\r\n", "its status is 099"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "closed the connection"),
        (CHUNKED + b"4\r\nhalf\r\n", "closed the connection"),
        (CHUNKED + b"4\r\nhalf\r\nzz\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", "closed the connection"),
    ],
)
async def test_a_break_is_told_with_what_went_wrong_first(pool: Pool, answer: bytes, why: str, pieces: bool) -> None:
    async with server(always(answer, close=True)) as origin:
        with pytest.raises(UpstreamError, match=why) as told:
            await ask(pool, origin, pieces=pieces)
        assert str(told.value).startswith(f"{origin} broke off: ")
    assert (told.value.processed, told.value.reused, kept(pool)) == (True, False, [])


async def test_a_reset_within_a_body_that_ends_with_its_connection_is_no_end(pool: Pool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await writer.drain()
        sock = writer.get_extra_info("socket")
        await asyncio.sleep(0.02)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with server(serve) as origin:
        with pytest.raises(UpstreamError) as told:
            await ask(pool, origin)
    assert told.value.processed


async def test_a_head_without_end_is_not_held(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_BYTES", 1000)
    async with server(always(b"HTTP/1.1 200 OK\r\n", *[b"X-More: %b\r\n" % (b"x" * 500)] * 9)) as origin:
        with pytest.raises(UpstreamError, match="larger than 1000 bytes"):
            await ask(pool, origin)


async def test_a_server_that_switches_protocols_unasked_has_broken_off(pool: Pool) -> None:
    async with server(always(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nwhatever")) as origin:
        with pytest.raises(UpstreamError):
            await ask(pool, origin)


async def test_nobody_is_called_back_after_giving_up(pool: Pool) -> None:
    heard: list[Heard] = []
    async with server(always(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", b"a", b"b", b"cd")) as origin:
        connection = await pool.connect(origin)
        heard.append(Heard(connection.abort))
        connection.ask(heard[0], request())
        await until(lambda: heard[0].pieces, "some of it came")
        await asyncio.sleep(0.02)
    assert (len(heard[0].pieces), heard[0].ends, kept(pool)) == (1, 0, [])


# --- closed as it is used again -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_a_request_that_met_a_closed_connection_was_not_processed(pool: Pool, reset: bool) -> None:
    """The server closes in the moment in which the request is written: its system has never taken the request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await always(LENGTH, close=True)(reader, writer)
        if reset:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    async with server(serve) as origin:
        await ask(pool, origin)
        [connection] = kept(pool)
        heard = Heard()
        transport = connection._transport
        assert transport is not None
        transport.pause_reading()
        await asyncio.sleep(0.05)  # the server has closed, and here nobody has looked
        pool.take(origin)
        connection.ask(heard, request())
        transport.resume_reading()
        with pytest.raises(UpstreamError) as told:
            await heard.end()
    assert (told.value.processed, told.value.reused) == (False, True)


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
async def test_a_request_that_still_waited_to_be_sent_was_not_processed(pool: Pool, tmp_path: Path, unix: bool) -> None:
    """The server's end is seen in the very turn in which the request was put into the outbox."""
    listener = await asyncio.start_unix_server(always(LENGTH), tmp_path / "s")
    async with server(always(LENGTH)) as tcp:
        origin = Origin.of(f"unix:{tmp_path}/s") if unix else tcp
        await ask(pool, origin)
        [connection] = kept(pool)
        heard = Heard()
        pool.outbox.begin()
        pool.take(origin)
        connection.ask(heard, request())
        connection.eof_received()  # as the loop does, if both happen at once
        with pytest.raises(UpstreamError) as told:
            await heard.end()
    listener.close()
    assert (told.value.processed, told.value.reused) == (False, True)


async def test_a_request_that_was_taken_and_not_answered_may_have_been_processed(pool: Pool) -> None:
    """That the connection was used before is no proof: all was acknowledged before the end came."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await always(LENGTH, close=True)(reader, writer)
        await reader.readuntil(b"\r\n\r\n")

    async with server(serve) as origin:
        await ask(pool, origin)
        with pytest.raises(UpstreamError) as told:
            await ask(pool, origin)
    assert (told.value.processed, told.value.reused) == (True, False)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_request_that_was_taken_and_then_reset_may_have_been_processed(loop: Callable[[], Any]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await always(LENGTH, close=True)(reader, writer)
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.3)  # until its system has acknowledged it, as it does if nothing is answered
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async def scenario() -> None:
        pool = Pool()
        async with server(serve) as origin:
            await ask(pool, origin)
            with pytest.raises(UpstreamError) as told:
                await ask(pool, origin)
        assert (told.value.processed, told.value.reused) == (True, False)
        pool.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())


async def test_what_is_written_on_a_fresh_connection_may_always_have_been_processed(pool: Pool) -> None:
    async with server(always(b"", close=True)) as origin:
        with pytest.raises(UpstreamError) as told:
            await ask(pool, origin)
    assert told.value.processed


async def test_a_closed_connection_takes_no_request(pool: Pool) -> None:
    async with server(always(LENGTH)) as origin:
        connection = await pool.connect(origin)
        connection.abort()
        assert not connection.usable
        with pytest.raises(UpstreamError) as told:
            connection.ask(Heard(), request())
    assert (told.value.processed, told.value.reused) == (False, True)


# --- slow ones ------------------------------------------------------------------------------------------------------


async def test_a_paused_connection_holds_up_its_server(pool: Pool) -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 40000000\r\n\r\n")
        for _ in range(4000):
            writer.write(b"x" * 10_000)
            await writer.drain()
            sent += 10_000

    async with server(serve) as origin:
        connection = await pool.connect(origin)
        heard = Heard()
        connection.ask(heard, request())
        connection.pause()
        connection.pause()
        await asyncio.sleep(0.1)
        before = sent
        await asyncio.sleep(0.05)
        assert sent == before < 20_000_000
        connection.resume()
        connection.resume()
        await heard.end()
    assert len(heard.body) == 40_000_000


def test_a_connection_that_was_paused_to_the_end_is_heard_again_when_it_is_used_again() -> None:
    """The last piece may be what fills the client's buffers. Under uvloop, as in the program."""

    async def scenario() -> None:
        pool = Pool()
        async with server(always(LENGTH)) as origin:
            connection = await pool.connect(origin)
            connection.ask(heard := Heard(connection.pause), request())
            await heard.end()
            assert (await ask(pool, origin)).body == b"ok"
            assert kept(pool) == [connection]
        await until(lambda: not kept(pool), "it is noticed that the server has closed it")
        pool.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


async def test_a_server_that_does_not_read_is_told_of(pool: Pool) -> None:
    read = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read.wait()
        while len(await reader.read(2**20)) > 0:
            pass

    async with server(serve) as origin:
        connection = await pool.connect(origin)
        heard = Heard()
        connection.ask(heard, b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 30000000\r\n\r\n", more=True)
        connection.write(b"x" * 30_000_000)
        assert not heard.writable
        read.set()
        await until(lambda: heard.writable, "it has caught up")
        connection.abort()


# --- nothing is left ------------------------------------------------------------------------------------------------


async def test_a_connection_is_gone_without_the_garbage_collector(pool: Pool) -> None:
    gc.collect()
    gc.disable()
    try:
        seen: list[weakref.ref[Connection]] = []
        async with server(always(CHUNKED + b"2\r\nok\r\n0\r\n\r\n")) as origin:
            for number in range(4):
                connection = await pool.connect(origin)
                heard = Heard()
                connection.ask(heard, request(), head_only=False, pieces=number % 2 == 0)
                await heard.end()
                seen.append(weakref.ref(connection))
                del connection, heard
            pool.close()
        nowhere = Origin("http", "127.0.0.1", 1)
        connection = Connection(pool, nowhere)  # as if it could not be made
        connection.abort()
        seen.append(weakref.ref(connection))
        del connection
        await until(lambda: all(one() is None for one in seen), "they are gone")
    finally:
        gc.enable()


def test_requests_that_are_cancelled_at_any_moment_leave_no_connection_behind() -> None:
    """Under uvloop, as in the program: a cancellation may come while a connection is being made."""

    async def one(pool: Pool, origin: Origin) -> None:
        connection = pool.take(origin) or await pool.connect(origin)
        try:
            connection.ask(heard := Heard(), request())
            await heard.end()
        except asyncio.CancelledError:
            connection.abort()
            raise

    async def scenario() -> None:
        pool = Pool()
        with serving(HTTP_SERVER, "--chunks", "50") as program:
            origin = Origin.of(program.url)
            await one(pool, origin)
            random = Random(1)  # noqa: S311 - moments, not secrets
            before = _descriptors()
            for _ in range(60):
                tasks = [asyncio.create_task(one(pool, origin)) for _ in range(10)]
                await asyncio.sleep(random.random() * 0.01)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            pool.close()
            await until(lambda: _descriptors() <= before, "every connection is closed")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count is wanted, not paths


async def test_leaving_early_cancels_the_request_upstream(pool: Pool) -> None:
    with serving(HTTP_SERVER, "--interval", "30") as program:
        origin = Origin.of(program.url)
        connection = await pool.connect(origin)
        body = b'{"stream": true}'
        head = b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
        connection.ask(heard := Heard(), head + body)
        await until(lambda: heard.pieces, "it has begun")
        connection.abort()
        async with asyncio.timeout(PATIENCE_S):
            stats: dict[str, int] = {}
            while not stats.get("aborted"):
                other = await pool.connect(origin)
                other.ask(heard := Heard(), b"GET /_stats HTTP/1.1\r\nhost: x\r\n\r\n")
                stats = json.loads((await heard.end()).body)
                other.abort()
    assert stats["aborted"] == 1


# --- any answer, cut anywhere ---------------------------------------------------------------------------------------


class _Bodies:
    """What a parser of its own makes of the bytes."""

    def __init__(self) -> None:
        self.body = b""
        self.complete = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=5),
    st.sampled_from(["length", "chunked"]),
    st.lists(st.integers(1, 30), min_size=1, max_size=6),
)
def test_whatever_is_passed_on_makes_the_same_body(chunks: list[bytes], kind: str, sizes: list[int]) -> None:
    body = b"".join(chunks)
    if kind == "chunked":
        framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        answer = CHUNKED + framed
    else:
        framed = body
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    async def scenario() -> None:
        for pieces, between in ((False, None), (True, None), (False, ChunkPosition())):
            pool = Pool()
            connection = Connection(pool, Origin("http", "x", 80))
            connection.connection_made(_Nowhere())
            heard = Heard(between=between)
            connection.ask(heard, request(), pieces=pieces)
            at, turn = 0, 0
            while at < len(answer):
                size = sizes[turn % len(sizes)]
                connection.data_received(answer[at : at + size])
                at, turn = at + size, turn + 1
            assert heard.ends == 1
            assert heard.error is None
            assert heard.body == (body if pieces else framed)
            assert kept(pool) == [connection]
            pool.close()
            connection.connection_lost(None)

    asyncio.run(scenario())
    parsed = _Bodies()
    httptools.HttpResponseParser(parsed).feed_data(answer)
    assert (parsed.body, parsed.complete) == (body, True)


def test_whole_chunks_pass_by_the_parser_which_still_finds_the_end_and_what_comes_after_it() -> None:
    async def scenario() -> None:
        chunk, last = b"2\r\nok\r\n", b"0\r\n\r\n"
        for extra in (b"", b"x", b"2\r\nno\r\n"):
            pool = Pool()
            connection = Connection(pool, Origin("http", "x", 80))
            connection.connection_made(_Nowhere())
            heard = Heard(between=ChunkPosition())
            connection.ask(heard, request())
            for data in (CHUNKED, chunk, chunk + chunk, chunk + b"3\r\n", b"abc\r\n", chunk, chunk + last + extra):
                connection.data_received(data)
            assert (heard.ends, heard.skipped) == (1, 3)
            body = chunk * 4 + b"3\r\nabc\r\n" + chunk
            if extra:
                assert heard.error is not None
                assert heard.body == body
            else:
                assert heard.body == body + chunk + last
            assert bool(kept(pool)) is not bool(extra)
            pool.close()
            connection.connection_lost(None)

    asyncio.run(scenario())


class _Nowhere(asyncio.Transport):
    """A transport that leads nowhere."""

    def write(self, data: Any) -> None: ...

    def is_closing(self) -> bool:
        return False

    def resume_reading(self) -> None: ...

    def abort(self) -> None: ...
