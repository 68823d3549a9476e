"""The start and the end of a response, kept for its token counts while the bytes go by."""

from __future__ import annotations

from collections import deque

HEAD_BYTES = 2 * 1024  # the first events of a stream: Anthropic tells the input tokens there
STREAM_BYTES = 8 * 1024  # the last events of a stream
WHOLE_BYTES = 64 * 1024  # a JSON body that is read whole; of a larger one only the ends are looked at


class Tail:
    """The first and the last bytes of what passes. Chunks are kept as they are, and joined once, when asked for."""

    def __init__(self, streamed: bool) -> None:
        self.streamed = streamed
        self.total = 0
        self._limit = STREAM_BYTES if streamed else WHOLE_BYTES
        self._head = b""
        self._chunks: deque[bytes] = deque()
        self._held = 0

    def feed(self, chunk: bytes) -> None:
        """Take note of the next bytes."""
        if len(self._head) < HEAD_BYTES:
            self._head += chunk[: HEAD_BYTES - len(self._head)]
        self.total += len(chunk)
        self._held += len(chunk)
        self._chunks.append(chunk)
        while self._held - len(self._chunks[0]) >= self._limit:
            self._held -= len(self._chunks.popleft())

    def read(self) -> bytes:
        """All of it, if it is short; else its first bytes, an empty line, and its last."""
        last = b"".join(self._chunks)
        if self._held == self.total:
            return last
        return self._head + b"\n\n" + last
