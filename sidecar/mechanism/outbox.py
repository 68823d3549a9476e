"""Sends what is written in one turn of the event loop to many connections in a row, at the turn's end.

To write to a socket wakes whoever reads it, if he sleeps, and that costs more than all the rest of the writing. With
some work between one write and the next, he is asleep again each time; but not where they follow one another. So only
the first of a turn goes out at once, and the others at its end, or when there is something for so many connections.
With little to do nothing waits. What was written to one of them in several pieces goes out as one.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

MOST = 16  # connections, after which none waits any longer: the work for the others keeps the first of them waiting
MOST_BYTES = 64 * 1024  # of one connection; whoever sends more has to learn at once that it is too much
LITTLE = 15  # writes that go out at once after a turn that had but one, before the end of a turn is looked for again


class Outbox:
    """Of one event loop."""

    __slots__ = ("_look_for_the_end", "_loop", "_waiting", "at_once", "in_turn")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._look_for_the_end = functools.partial(self._loop.call_soon, self._end)
        self.in_turn = False  # something was sent in this one, and its end is looked for
        self.at_once = 0  # writes that need not wait, for there is little to do
        self._waiting: list[Posted] = []

    def begin(self) -> None:
        """Something is sent: until the end of the turn, all else waits."""
        self.in_turn = True
        self._look_for_the_end()

    def add(self, posted: Posted) -> None:
        """It has something to send."""
        waiting = self._waiting
        waiting.append(posted)
        if len(waiting) >= MOST:
            self.send()

    def send(self) -> None:
        """Send all that waits. Whoever wrote it is not here to be told of a failure, and it is nobody else's."""
        waiting, self._waiting = self._waiting, []
        for posted in waiting:
            try:
                posted.send()
            except Exception as error:  # noqa: BLE001 - told to the loop, which logs it
                posted.abort()  # what has to follow cannot be understood without it
                told = {"message": "what was written could not be sent", "exception": error, "transport": posted}
                self._loop.call_exception_handler(told)

    def _end(self) -> None:
        self.in_turn = False
        if self._waiting:
            self.send()
        else:
            self.at_once = LITTLE


class Posted(asyncio.Transport):
    """A transport whose writes go through an outbox."""

    __slots__ = ("_outbox", "_pieces", "_size", "_transport")

    def __init__(self, transport: asyncio.Transport, outbox: Outbox) -> None:
        self._transport = transport
        self._outbox = outbox
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send it soon. It is run for every chunk of every stream, and calls no more than it must."""
        pieces, outbox = self._pieces, self._outbox
        if not outbox.in_turn and not pieces:
            if outbox.at_once:
                outbox.at_once -= 1
            else:
                outbox.begin()
            transport = self._transport
            if not transport.is_closing():
                transport.write(data)
            return
        pieces.append(data if type(data) is bytes else bytes(data))
        self._size += len(data)
        if self._size > MOST_BYTES:
            self.send()
        elif len(pieces) == 1:
            outbox.add(self)

    def send(self) -> None:
        """Send what waits, now."""
        pieces = self._pieces
        if not pieces:
            return
        self._pieces, self._size = [], 0
        transport = self._transport
        if not transport.is_closing():
            transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    @property
    def unsent(self) -> bool:
        """Whether something waits, so that nobody at the other end has got it."""
        return bool(self._pieces)

    # --- what else a transport has ------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        try:
            self.send()
        finally:
            self._transport.close()

    def abort(self) -> None:
        self._pieces = []
        self._transport.abort()

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def write_eof(self) -> None:
        self.send()
        self._transport.write_eof()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def is_reading(self) -> bool:
        return self._transport.is_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size() + sum(map(len, self._pieces))

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._transport.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._transport.get_protocol()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._transport.set_protocol(protocol)
