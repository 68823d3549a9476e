"""What is written in one turn of the loop goes out at its end, in order, and nothing that was to be sent is lost."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from sidecar.mechanism.outbox import LITTLE, MOST, MOST_BYTES, Outbox, Posted


class Line:
    """A connection whose writes go through an outbox, and the socket at its other end."""

    def __init__(self, transport: asyncio.Transport, other: socket.socket, outbox: Outbox) -> None:
        self.transport = Posted(transport, outbox)
        self.other = other

    def read(self) -> bytes | None:
        """What has arrived; None if nothing has."""
        try:
            return self.other.recv(1_000_000)
        except BlockingIOError:
            return None


class Lines:
    def __init__(self) -> None:
        self.outbox = Outbox()
        self.made: list[Line] = []

    async def make(self) -> Line:
        ours, other = socket.socketpair()
        other.setblocking(False)
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
        self.made.append(Line(transport, other, self.outbox))
        return self.made[-1]


@pytest.fixture
async def lines() -> AsyncIterator[Lines]:
    lines = Lines()
    yield lines
    for line in lines.made:
        line.transport.abort()
        line.other.close()
    await asyncio.sleep(0)


async def turn() -> None:
    """The turn of the loop ends."""
    await asyncio.sleep(0)


async def test_what_is_written_first_in_a_turn_goes_out_at_once_and_the_rest_at_its_end(lines: Lines) -> None:
    first, one, other = [await lines.make() for _ in range(3)]
    for _ in range(2):
        first.transport.write(b"1")
        one.transport.write(b"a")
        other.transport.write(b"x")
        first.transport.write(b"2")
        one.transport.write(b"b")
        assert [line.read() for line in (first, one, other)] == [b"1", None, None]
        await turn()
        assert [line.read() for line in (first, one, other)] == [b"2", b"ab", b"x"]


async def test_no_more_than_so_many_connections_wait(lines: Lines) -> None:
    first, *made = [await lines.make() for _ in range(MOST + 1)]
    first.transport.write(b"x")
    for line in made[:-1]:
        line.transport.write(b"x")
    assert [line.read() for line in made] == [None] * MOST
    made[-1].transport.write(b"x")
    assert [line.read() for line in (first, *made)] == [b"x"] * (MOST + 1)


async def test_much_goes_out_at_once_and_whoever_writes_it_learns_that_it_is_too_much(lines: Lines) -> None:
    first, line = await lines.make(), await lines.make()
    first.transport.write(b"x")
    line.transport.write(b"first")
    assert line.read() is None
    line.transport.write(b"x" * MOST_BYTES)
    assert (line.read() or b"").startswith(b"firstx")
    for _ in range(100):
        line.transport.write(b"x" * MOST_BYTES)
    assert line.transport.get_write_buffer_size() > MOST_BYTES


async def test_what_waits_is_sent_before_the_end_of_a_connection(lines: Lines) -> None:
    first, closed, half = [await lines.make() for _ in range(3)]
    first.transport.write(b"x")
    closed.transport.write(b"last words")
    closed.transport.close()
    half.transport.write(b"last words")
    half.transport.write_eof()
    await turn()
    assert (closed.read(), half.read()) == (b"last words", b"last words")
    assert (closed.read(), half.read()) == (b"", b"")


async def test_nothing_is_sent_after_an_abort_nor_does_it_fail(lines: Lines) -> None:
    first, aborted, lost = [await lines.make() for _ in range(3)]
    first.transport.write(b"x")
    aborted.transport.write(b"x")
    aborted.transport.abort()
    lost.transport.write(b"x")
    lost.transport._transport.abort()  # as the system does
    await turn()
    assert aborted.read() == b""
    await turn()
    aborted.transport.write(b"x")
    lost.transport.write(b"x")
    await turn()


async def test_what_is_sent_in_a_turn_may_be_followed_by_more(lines: Lines) -> None:
    first, line = await lines.make(), await lines.make()
    first.transport.write(b"x")
    line.transport.write(b"a")
    lines.outbox.send()
    line.transport.write(b"b")
    assert line.read() == b"a"
    await turn()
    assert line.read() == b"b"


async def test_with_little_to_do_nothing_waits_until_there_is_more_again(lines: Lines) -> None:
    first, line = await lines.make(), await lines.make()
    first.transport.write(b"alone")
    await turn()
    for number in range(LITTLE):  # in turns with several writes, too, but no longer than so many of them
        line.transport.write(b"%d" % number)
        assert line.read() == b"%d" % number
    first.transport.write(b"x")
    line.transport.write(b"a")
    assert line.read() is None
    await turn()
    assert line.read() == b"a"
    first.transport.write(b"x")
    line.transport.write(b"b")
    assert line.read() is None


async def test_a_connection_that_fails_takes_nothing_from_the_others_and_is_ended(lines: Lines) -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context["exception"])))
    first, broken, other = [await lines.make() for _ in range(3)]
    first.transport.write(b"x")
    broken.transport.write_eof()
    broken.transport.write(b"too late")
    other.transport.write(b"a")
    await turn()
    assert other.read() == b"a"
    assert broken.transport.is_closing()
    assert len(told) == 1


async def test_a_connection_closes_even_if_its_last_words_cannot_be_sent(lines: Lines) -> None:
    first, broken = await lines.make(), await lines.make()
    first.transport.write(b"x")
    broken.transport.write_eof()
    broken.transport.write(b"too late")
    with pytest.raises(RuntimeError):
        broken.transport.close()
    assert broken.transport.is_closing()
