"""Brings lines to a file descriptor from a thread of its own, so that nobody who logs ever waits for who reads.

A pipe that nobody reads is full after 64 KiB, and then a write lasts for ever. What waits is bounded, by number and by
size; what finds no room is counted, and the count is written where the lines are missing.
"""

from __future__ import annotations

import collections
import errno
import os
import select
import threading
import time
from collections.abc import Callable

LINES = 20_000
BYTES = 16 * 2**20
PORTION = 64 * 1024  # of one write
LOOK_S = 5.0

Periodic = Callable[[], list[bytes]]


class Writer:
    """Writes whole lines, in their order. told: makes the line that tells of so many lost ones.

    periodic: lines that are due, asked for every few seconds. lost: lines that found no room, or could not be written.
    closing: no more are taken.
    """

    def __init__(
        self,
        descriptor: int,
        told: Callable[[int], bytes],
        periodic: Periodic = list,
        *,
        lines: int = LINES,
        size: int = BYTES,
    ) -> None:
        self.lost = 0
        self._descriptor = descriptor
        self._told = told
        self._periodic = periodic
        self._most_lines, self._most_bytes = lines, size
        self._waiting: collections.deque[bytes] = collections.deque()
        self._size = 0
        self._untold = 0
        self._midway = False  # a line was begun that could not be ended
        self.closing = False
        # Reentrant, since the garbage collector may run in here, and what it finalises may log.
        self._change = threading.Condition(threading.RLock())
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Hand over a line, with its end. Never waits for the writing, never raises."""
        with self._change:
            if len(self._waiting) >= self._most_lines or self._size + len(line) > self._most_bytes or self.closing:
                self._lose(1)
                return
            self._waiting.append(line)
            self._size += len(line)
            if len(self._waiting) == 1:
                self._change.notify()

    def close(self, patience_s: float) -> None:
        """Write what waits, for so long at most; whoever does not read by then never will."""
        with self._change:
            self.closing = True
            self._change.notify()
        self._thread.join(patience_s)

    def _lose(self, count: int) -> None:
        self.lost += count
        self._untold += count

    # --- in the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        looked = time.monotonic()
        while True:
            with self._change:
                if not self._waiting and not self.closing:
                    self._change.wait(LOOK_S)
                portion = self._take()
                ends = self.closing and not portion
            if portion:
                self._write(portion)
            if ends or time.monotonic() - looked >= LOOK_S:
                looked = time.monotonic()
                for line in self._periodic():
                    self._write([line])
            if ends:
                return

    def _take(self) -> list[bytes]:
        """Some lines, and the count of those that were lost before them. To be called with the lock."""
        portion: list[bytes] = []
        size = 0
        while self._waiting and size < PORTION:
            portion.append(self._waiting.popleft())
            size += len(portion[-1])
        self._size -= size
        return portion

    def _write(self, portion: list[bytes]) -> None:
        with self._change:
            untold, self._untold = self._untold, 0
        try:
            if self._midway:
                self._whole(b"\n")
            self._whole(b"".join(portion))
            if untold:
                self._whole(self._told(untold))
        except OSError:  # a full disk, a reader that has gone: it is not for a log to end the program
            with self._change:
                self._untold += untold
                self._lose(len(portion))

    def _whole(self, content: bytes) -> None:
        rest = memoryview(content)
        while rest:
            try:
                written = os.write(self._descriptor, rest)
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
                select.select((), (self._descriptor,), ())  # somebody made the descriptor non-blocking
                continue
            self._midway = rest[written - 1] != 0x0A
            rest = rest[written:]
