"""The start and the end of a response, kept for its token counts while the bytes go by."""

from __future__ import annotations

import re

HEAD_BYTES = 2 * 1024  # the first events of a stream: Anthropic tells the input tokens there
STREAM_BYTES = 8 * 1024  # the last events of a stream
WHOLE_BYTES = 64 * 1024  # a JSON body that is read whole; of a larger one only the ends are looked at

_size_line = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\r\n]*)?\r\n")  # RFC 9112, 7.1
_size_after_line = re.compile(rb"\r\n(?=[0-9A-Fa-f]{1,15}[;\r])")
_farewell = re.compile(
    rb"(?:^|\n)data: ?\[DONE\]\r?\n\r?\n"  # OpenAI's chat, completions, and most others
    rb"|(?:^|\n)event: ?(?:message_stop|response\.(?:completed|incomplete|failed))\r?\ndata:[^\r\n]*\r?\n\r?\n"
)
_cut_size = re.compile(rb"[0-9A-Fa-f]+(?:;[^\r\n]*)?\r?").fullmatch


class Tail:
    """The first and the last bytes of what passes. Chunks are kept as they are, and joined once, when asked for.

    Twice the limit may be held, so that the old ones need not be looked for at every chunk.
    """

    __slots__ = ("_dropped", "_head", "_limit", "chunks", "held", "most", "streamed")

    def __init__(self, streamed: bool) -> None:
        self.streamed = streamed
        self._limit = STREAM_BYTES if streamed else WHOLE_BYTES
        self.most = 2 * self._limit
        self._head = b""
        self.chunks: list[bytes] = []
        self.held = 0
        self._dropped = 0

    @property
    def total(self) -> int:
        """How many bytes have passed."""
        return self._dropped + self.held

    def feed(self, chunk: bytes) -> None:
        """Take note of the next bytes."""
        self.chunks.append(chunk)
        self.held += len(chunk)
        if self.held > self.most:
            self.drop()

    def read(self, *, chunked: bool = False) -> bytes:
        """All of it, if it is short; else its first bytes, an empty line, and its last.

        chunked: what was fed has the framing of HTTP's chunks in it, which is taken out.
        """
        last = b"".join(self.chunks)
        if not self._dropped:
            return b"".join(_walked(last, 0)[0]) if chunked else last
        last = last[-self._limit :]
        if chunked:
            return b"".join(_walked(self._head, 0)[0]) + b"\n\n" + _dechunked_end(last)
        return self._head + b"\n\n" + last

    def says_farewell(self, *, chunked: bool = False) -> bool:
        """Whether the last event of a stream is there, by which clients know that nothing of interest follows."""
        return self.streamed and _farewell.search(self.read(chunked=chunked)) is not None

    def drop(self) -> None:
        """Keep only both ends."""
        held = b"".join(self.chunks)
        if not self._dropped:
            self._head = held[:HEAD_BYTES]
        last = held[-self._limit :]
        self._dropped += self.held - len(last)
        self.chunks = [last]
        self.held = len(last)


def _dechunked_end(text: bytes) -> bytes:
    """The data of chunks whose beginning is cut off. What looks like a size is one if all the others follow from it."""
    data, follows = _walked(text, 0)
    start = 0
    while not follows and (found := _size_after_line.search(text, start)) is not None:
        start = found.start() + 1
        data, follows = _walked(text, found.start() + 2)
        data.insert(0, text[: found.start()])
    return b"".join(data) if follows else text


def _walked(text: bytes, at: int) -> tuple[list[bytes], bool]:
    """The data of the chunks from there on, and whether they go on to the last one, or to the end of what there is."""
    data: list[bytes] = []
    while (found := _size_line.match(text, at)) is not None:
        size = int(found.group(1), 16)
        if not size:
            return data, True
        at = found.end() + size
        data.append(text[found.end() : at])
        if at + 2 >= len(text):
            return data, True
        if not text.startswith(b"\r\n", at):
            return data, False
        at += 2
    return data, bool(data) and _cut_size(text, at) is not None
