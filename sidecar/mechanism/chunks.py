"""Where in a chunked body one is (RFC 9112, 7.1), for whoever passes its bytes on and may have to end it himself."""

from __future__ import annotations

import enum
import re

_CRLF = b"\r\n"
_plain_size = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n").match


class _At(enum.Enum):
    SIZE = enum.auto()  # in a line that tells a chunk's size; at its start, a new chunk may begin
    DATA = enum.auto()
    DATA_END = enum.auto()  # in the line end that follows a chunk's data
    TRAILERS = enum.auto()


class ChunkPosition:
    """Fed with every byte of a body that a parser has found to be in order."""

    __slots__ = ("_at", "_left", "_line")

    def __init__(self) -> None:
        self._at = _At.SIZE
        self._line = b""  # what there is of a size line, or of a line end
        self._left = 0  # bytes of the chunk's data that are to come

    def feed(self, data: bytes) -> None:
        """Take note of the next bytes."""
        start, end = 0, len(data)
        if self._at is _At.SIZE and not self._line:
            while start < end:  # whole chunks, as servers send them
                line_end = data.find(_CRLF, start)
                size = _size(data[start:line_end]) if line_end > 0 else 0
                after = line_end + size + 4
                if size == 0 or after > end:
                    break
                start = after
        while start < end:
            start = self._step(data, start)

    def skips(self, data: bytes) -> bool:
        """Whether these bytes leave it where it is: between chunks, and they are whole ones of which none is the last.

        A parser that stands there, too, need not see them: they are in order, as strictly as anybody reads them.
        """
        if self._line or self._at is not _At.SIZE:
            return False
        start, end = 0, len(data)
        size = end - data.find(_CRLF, 0, 10) - 4
        if size > 0 and data.startswith(b"%x\r\n" % size) and data.endswith(_CRLF):
            return True  # a single one, as nearly always
        while start < end:
            found = _plain_size(data, start)
            if found is None:
                return False
            size = int(found.group(1), 16)
            start = found.end() + size + 2
            if not size or start > end or data[start - 2 : start] != _CRLF:
                return False
        return True

    def to_boundary(self, most: int) -> bytes | None:
        """What has to be sent so that a chunk of one's own may follow; None if that is more than `most` bytes.

        What fills up a chunk's data are line ends, which say nothing in an event stream.
        """
        if self._at is _At.TRAILERS:
            return None
        if self._at is _At.DATA_END:
            return _CRLF[len(self._line) :]
        if self._at is _At.DATA:
            return b"\n" * self._left + _CRLF if self._left <= most else None
        if not self._line:
            return b""
        if b";" in self._line:
            return None  # in an extension, which would have to be ended in its own way
        size = _size(self._line.rstrip(b"\r"))
        if not 0 < size <= most:
            return None
        return (b"\n" if self._line.endswith(b"\r") else _CRLF) + b"\n" * size + _CRLF

    def _step(self, data: bytes, start: int) -> int:
        """Go on from `start` to where something else begins; its place."""
        if self._at is _At.DATA:
            taken = min(self._left, len(data) - start)
            self._left -= taken
            if not self._left:
                self._at = _At.DATA_END
            return start + taken
        if self._at is _At.TRAILERS:
            return len(data)
        return self._line_step(data, start)

    def _line_step(self, data: bytes, start: int) -> int:
        found = data.find(b"\n", start)
        if found < 0:
            self._line += data[start:]
            return len(data)
        line, self._line = self._line + data[start : found + 1], b""
        if self._at is _At.DATA_END:
            self._at = _At.SIZE
            return found + 1
        self._left = _size(line.rstrip(_CRLF))
        self._at = _At.DATA if self._left else _At.TRAILERS
        return found + 1


def _size(line: bytes) -> int:
    try:
        return int(line, 16)
    except ValueError:
        return int(line.partition(b";")[0] or b"0", 16)
