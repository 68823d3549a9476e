"""The way back to a client: heads, bodies in whichever framing is due, and their ends."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from sidecar.surfaces.dataplane.wire import Sending, Wire
from tests.support import until


class Line(asyncio.Transport):
    """A connection on which all that is written can be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.pieces: list[Any] = []
        self.closed = ""

    def write(self, data: Any) -> None:
        assert not self.closed
        self.sent += data
        self.pieces.append(data)

    @property
    def writes(self) -> int:
        return len(self.pieces)

    def close(self) -> None:
        self.closed = self.closed or "closed"

    def abort(self) -> None:
        self.closed = self.closed or "aborted"

    def is_closing(self) -> bool:
        return bool(self.closed)


class Way:
    """A wire, and what its connection was told."""

    def __init__(self, *, http11: bool = True) -> None:
        self.line = Line()
        self.done = 0
        self.wire = Wire(self.line, self.line.close, self._count, http11=http11)

    def _count(self, _: Wire) -> None:
        self.done += 1

    @property
    def sent(self) -> bytes:
        return self.line.sent


HEADERS = ((b"X-A", b"1"), (b"x-a", b"2"))


def test_a_whole_answer_is_one_write_with_its_length() -> None:
    way = Way()
    way.wire.answer(404, HEADERS, b"none")
    assert way.sent == b"HTTP/1.1 404 Not Found\r\nX-A: 1\r\nx-a: 2\r\ncontent-length: 4\r\n\r\nnone"
    assert (way.line.writes, way.done, way.line.closed, way.wire.complete) == (1, 1, "", True)


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_can_have_no_body_has_none(status: int) -> None:
    way = Way()
    way.wire.answer(status, (), b"none")
    assert way.sent.partition(b"\r\n\r\n")[2] == b""
    assert b"content-length" not in way.sent


def test_the_answer_to_head_has_a_length_and_no_body() -> None:
    way = Way()
    way.wire.head_only = True
    way.wire.answer(200, (), b"none")
    assert way.sent == b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


@pytest.mark.parametrize("head_only", [False, True])
def test_a_body_of_unknown_length_goes_in_chunks(head_only: bool) -> None:
    way = Way()
    way.wire.head_only = head_only
    way.wire.start(200, b"Fine", (), Sending.CHUNKED)
    for data in (b"a" * 20, b"", b"b"):
        way.wire.send(data)
    way.wire.end()
    body = b"" if head_only else b"14\r\n" + b"a" * 20 + b"\r\n1\r\nb\r\n0\r\n\r\n"
    assert way.sent == b"HTTP/1.1 200 Fine\r\ntransfer-encoding: chunked\r\n\r\n" + body
    assert (way.done, way.line.closed) == (1, "")


def test_a_body_for_an_old_client_ends_with_its_connection() -> None:
    way = Way(http11=False)
    way.wire.start(200, b"", (), Sending.UNTIL_CLOSED)
    way.wire.send(b"body")
    way.wire.end()
    assert way.sent == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nbody"
    assert (way.done, way.line.closed) == (1, "closed")


def test_bytes_that_are_framed_already_are_not_touched() -> None:
    way = Way()
    way.wire.start(200, b"", ((b"Transfer-Encoding", b"chunked"),), Sending.AS_IT_COMES)
    way.wire.send(b"1\r\na\r\n0\r\n\r\n")
    way.wire.end()
    assert way.sent.endswith(b"chunked\r\n\r\n1\r\na\r\n0\r\n\r\n")


def test_an_end_happens_once() -> None:
    way = Way()
    way.wire.answer(200, (), b"")
    sent = way.sent
    way.wire.end()
    way.wire.break_off()
    assert (way.done, way.sent, way.line.closed) == (1, sent, "")


@pytest.mark.parametrize("sending", [Sending.AS_IT_COMES, Sending.CHUNKED])
def test_an_answer_that_breaks_off_has_no_clean_end(sending: Sending) -> None:
    way = Way()
    way.wire.start(200, b"", (), sending, hold=True)
    way.wire.break_off()
    assert not way.sent.endswith(b"0\r\n\r\n")
    assert b"200 OK" in way.sent
    assert (way.done, way.line.closed, way.wire.keep_alive) == (1, "closed", False)
    way.wire.end()
    assert way.done == 1


def test_an_answer_that_would_end_with_its_connection_is_reset_if_it_breaks_off() -> None:
    way = Way(http11=False)
    way.wire.start(200, b"", (), Sending.UNTIL_CLOSED)
    way.wire.break_off()
    assert way.line.closed == "aborted"


async def test_a_reset_reaches_the_client_as_one() -> None:
    lines: list[asyncio.Transport] = []

    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            lines.append(transport)

    loop = asyncio.get_running_loop()
    listener = await loop.create_server(Server, "127.0.0.1", 0)
    client = socket.create_connection(listener.sockets[0].getsockname())
    client.setblocking(False)
    await until(lambda: lines, "it is connected")
    wire = Wire(lines[0], lines[0].close, lambda _: None, http11=False)
    wire.start(200, b"", (), Sending.UNTIL_CLOSED)
    assert (await loop.sock_recv(client, 1000)).startswith(b"HTTP/1.1 200")
    wire.break_off()
    with pytest.raises(ConnectionResetError):
        await loop.sock_recv(client, 1000)
    client.close()
    listener.close()


def test_a_head_may_wait_for_what_follows() -> None:
    way = Way()
    way.wire.start(200, b"", HEADERS, Sending.CHUNKED, hold=True)
    assert way.wire.begun
    assert not way.sent
    way.wire.send(b"a")
    assert way.line.writes == 1
    way.wire.flush()
    assert way.line.writes == 1
    other = Way()
    other.wire.start(200, b"", (), Sending.CHUNKED, hold=True)
    other.wire.flush()
    assert other.sent.endswith(b"\r\n\r\n")


def test_after_the_servers_own_chunks_come_ours() -> None:
    way = Way()
    way.wire.start(200, b"", ((b"Transfer-Encoding", b"chunked"),), Sending.AS_IT_COMES, hold=True)
    way.wire.reframe(b"\n\r\n")
    way.wire.send(b"error")
    assert way.sent.endswith(b"\r\n\r\n\n\r\n5\r\nerror\r\n")


def test_who_expects_100_gets_it_once_and_before_the_answer() -> None:
    way = Way()
    way.wire.go_on()
    way.wire.expects_continue = True
    way.wire.go_on()
    way.wire.go_on()
    way.wire.answer(200, (), b"")
    assert way.sent == b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def test_who_expects_100_and_does_not_get_it_is_hung_up_on() -> None:
    """Whether the body comes now is not to be known."""
    way = Way()
    way.wire.expects_continue = True
    way.wire.answer(413, (), b"")
    assert b"connection: close" in way.sent
    assert way.line.closed == "closed"


def test_interim_answers_are_for_those_who_know_them_and_come_first() -> None:
    way, old = Way(), Way(http11=False)
    for one in (way, old):
        one.wire.interim(103, b"Early Hints", ((b"Link", b"x"),))
    assert way.sent == b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    assert not old.sent
    way.wire.answer(200, (), b"")
    sent = way.sent
    way.wire.interim(103, b"Early Hints", ())
    assert way.sent == sent


def test_who_may_read_an_answer_is_ours_to_say() -> None:
    way = Way()
    way.wire.extra = b"access-control-allow-origin: https://page\r\n"
    way.wire.answer(200, ((b"Access-Control-Allow-Origin", b"*"), (b"X-A", b"1")), b"")
    assert way.sent.lower().count(b"access-control-allow-origin") == 1
    assert b"X-A: 1" in way.sent


async def test_whoever_waits_for_a_slow_client_goes_on_when_it_has_caught_up_or_gone() -> None:
    for go_on in (lambda wire: wire.pause(False), Wire.gone):
        way = Way()
        await way.wire.drained()
        way.wire.pause(True)
        waiting = asyncio.ensure_future(way.wire.drained())
        await asyncio.sleep(0)
        assert not waiting.done()
        go_on(way.wire)
        await waiting
    way.wire.pause(True)
    way.line.close()
    await way.wire.drained()
