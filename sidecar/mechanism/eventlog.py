"""Events on disk: JSON lines that are only ever appended, in two files of bounded size, so that history survives.

The file may end in the middle of a line (a crash, a full disk): such a line is passed over by whoever reads, and never
glued to the next one. Everything here blocks; callers keep it off the event loop.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec

log = logging.getLogger(__name__)

ROTATE_BYTES = 1_000_000

_Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]  # what every reader of JSON can hold (RFC 8259, 6)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened. Times in seconds since 1970.

    seq: rises from one event to the next, over restarts, too. type: one word, as `BecameReady`. model: "" where it
    happened to the sidecar itself. count: how often it has happened since first_at; `at` and seq are the last time's.
    """

    seq: _Count
    at: float
    type: str
    model: str = ""
    server: str = ""
    reason: str = ""
    message: str = ""
    revision: str = ""
    count: _Count = 1
    first_at: float = 0.0


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Event).decode


class EventLog:
    """`events.jsonl` in a folder, moved to `events.jsonl.1` when it is full."""

    def __init__(self, folder: Path, rotate_bytes: int = ROTATE_BYTES) -> None:
        self.path = folder / "events.jsonl"
        self._old = folder / "events.jsonl.1"
        self._rotate_bytes = rotate_bytes

    def read(self) -> list[Event]:
        """All that is kept, by seq. Lines that make no sense are left out. Raises OSError."""
        found: dict[int, Event] = {}
        senseless = 0
        for line in (*self._lines(self._old), *self._lines(self.path)):
            try:
                event = _decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError):
                senseless += 1
            else:
                found[event.seq] = event
        if senseless:
            log.warning("%s: %d lines make no sense and are left out", self.path, senseless)
        return [found[seq] for seq in sorted(found)]

    def append(self, events: Iterable[Event]) -> None:
        """Add events. Raises OSError; what was added before that may be added again, readers see it once."""
        for content in self._portions(events):
            size = self.path.stat().st_size if self.path.exists() else 0
            if size and size + len(content) > self._rotate_bytes:
                self.path.replace(self._old)
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "ab+", buffering=0) as file:
                _append_whole(file, content)

    def _portions(self, events: Iterable[Event]) -> Iterator[bytes]:
        """Whole lines, as many as a file may hold."""
        portion = bytearray()
        for event in events:
            line = _encode(event) + b"\n"
            if portion and len(portion) + len(line) > self._rotate_bytes:
                yield bytes(portion)
                portion.clear()
            portion += line
        if portion:
            yield bytes(portion)

    def _lines(self, path: Path) -> list[bytes]:
        """No more than is ever written to one file, whatever somebody else has put there."""
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size - self._rotate_bytes))
                return [line for line in file.read(min(size, self._rotate_bytes)).split(b"\n") if line]
        except FileNotFoundError:
            return []


def _append_whole(file: BinaryIO, content: bytes) -> None:
    """Leave the file as it was if there is no room for all of it."""
    descriptor = file.fileno()
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        content = b"\n" + content  # somebody died in the middle of a line
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        with contextlib.suppress(OSError):  # then half a line stays, which readers leave out
            os.ftruncate(descriptor, size)
        raise
