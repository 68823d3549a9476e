"""Messages whose head is the very one that came before on the same connection, but for the length of the body.

Clients and servers that keep a connection send the same head again and again. Where the parser has read it once, and
byte for byte nothing but the digits of Content-Length is different, it says the same as before, and need not be parsed.
Any other message is the parser's: one that is not whole, or is followed by another, or has a body that is framed in
another way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,15})(?=[ \t]*\r\n)", re.IGNORECASE)
_END = b"\r\n\r\n"
MISSES = 16  # in a row, after which nothing is learnt any more: heads that are never the same


class Repeats:
    """What one side of one connection has sent. length: of the body of the latest message that `body_of` knew."""

    __slots__ = ("_after", "_before", "_misses", "length")

    def __init__(self) -> None:
        self.length = 0
        self._before = b""  # the head up to the digits; b"" = none is known
        self._after = b""
        self._misses = 0

    def body_of(self, data: bytes) -> bytes | None:
        """The body, if `data` is one whole message with the head that is known; else None."""
        before = self._before
        if not before or not data.startswith(before):
            return None
        start = len(before)
        end = data.find(b"\r", start, start + 16)
        digits = data[start:end]
        after = self._after
        if end < 0 or not digits.isdigit() or not data.startswith(after, end):
            return None
        body_at = end + len(after)
        length = int(digits)
        if len(data) - body_at != length:
            return None
        self.length = length
        self._misses = 0
        return data[body_at:]

    def learn(self, data: bytes, length: int) -> bool:
        """Take note of a message that was read: all of `data`, if its body has that length. Whether it is known now."""
        self._before = b""
        if self._misses >= MISSES:
            return False
        self._misses += 1
        end = data.find(_END) + len(_END)
        found = _LENGTH.search(data, 0, end)
        if len(data) - end != length or found is None or not data[:1].isalpha():
            return False
        self._before, self._after = data[: found.start(1)], data[found.end(1) : end]
        self.length = length
        return True


def with_length(headers: Iterable[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    """The headers of such a head, for a body of this length."""
    return [pair if pair[0].lower() != b"content-length" else (pair[0], b"%d" % length) for pair in headers]
