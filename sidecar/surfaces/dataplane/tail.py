"""The start and the end of a response, kept for its token counts while the bytes go by."""

from __future__ import annotations

import re

HEAD_BYTES = 2 * 1024  # the first events of a stream: Anthropic tells the input tokens there
STREAM_BYTES = 8 * 1024  # the last events of a stream
WHOLE_BYTES = 64 * 1024  # a JSON body that is read whole; of a larger one only the ends are looked at

_size_line = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\r\n]*)?\r\n")  # RFC 9112, 7.1


class Tail:
    """The first and the last bytes of what passes. Chunks are kept as they are, and joined once, when asked for.

    Twice the limit may be held, so that the old ones need not be looked for at every chunk.
    """

    __slots__ = ("_chunks", "_dropped", "_head", "_held", "_limit", "streamed")

    def __init__(self, streamed: bool) -> None:
        self.streamed = streamed
        self._limit = STREAM_BYTES if streamed else WHOLE_BYTES
        self._head = b""
        self._chunks: list[bytes] = []
        self._held = 0
        self._dropped = 0

    @property
    def total(self) -> int:
        """How many bytes have passed."""
        return self._dropped + self._held

    def feed(self, chunk: bytes) -> None:
        """Take note of the next bytes."""
        self._chunks.append(chunk)
        self._held += len(chunk)
        if self._held > 2 * self._limit:
            self._drop()

    def read(self, *, chunked: bool = False) -> bytes:
        """All of it, if it is short; else its first bytes, an empty line, and its last.

        chunked: what was fed has the framing of HTTP's chunks in it, which is taken out.
        """
        last = b"".join(self._chunks)
        if not self._dropped:
            return _dechunked(last, 0) if chunked else last
        last = last[-self._limit :]
        if chunked:
            return _dechunked(self._head, 0) + b"\n\n" + _dechunked_end(last)
        return self._head + b"\n\n" + last

    def _drop(self) -> None:
        held = b"".join(self._chunks)
        if not self._dropped:
            self._head = held[:HEAD_BYTES]
        last = held[-self._limit :]
        self._dropped += self._held - len(last)
        self._chunks = [last]
        self._held = len(last)


def _dechunked_end(text: bytes) -> bytes:
    """The data of chunks whose beginning is cut off. What looks like a size is one if all the others follow from it."""
    start = 0
    while (found := _size_line.search(text, start)) is not None:
        begins = found.start()
        if (begins == 0 or text[begins - 2 : begins] == b"\r\n") and _leads_on(text, found):
            return text[: max(0, begins - 2)] + _dechunked(text, begins)
        start = begins + 1
    return text


def _leads_on(text: bytes, found: re.Match[bytes]) -> bool:
    """Whether a size is followed by as much, and so on to the last chunk, or to the end of what there is."""
    while int(found.group(1), 16):
        after = found.end() + int(found.group(1), 16)
        if after + 2 >= len(text):
            return True
        line = _size_line.match(text, after + 2)
        if text[after : after + 2] != b"\r\n" or line is None:
            return _begins_a_size(text, after)
        found = line
    return True


def _begins_a_size(text: bytes, after: int) -> bool:
    """Whether what there is of the next size's line is cut off."""
    return text[after : after + 2] == b"\r\n" and re.fullmatch(rb"[0-9A-Fa-f]+\r?", text[after + 2 :]) is not None


def _dechunked(text: bytes, at: int) -> bytes:
    """The data of the chunks from there on, as far as there are any; the last may be cut off."""
    data: list[bytes] = []
    while (found := _size_line.match(text, at)) is not None and (size := int(found.group(1), 16)):
        data.append(text[found.end() : found.end() + size])
        at = found.end() + size + 2
    return b"".join(data)
