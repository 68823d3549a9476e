"""The end of a response, kept for its token counts while the bytes go by."""

from __future__ import annotations

from collections import deque

STREAM_BYTES = 8 * 1024  # the last events of a stream
WHOLE_BYTES = 64 * 1024  # a JSON body that is read whole; of a larger one only the end is looked at


class Tail:
    """The last bytes of what passes. Chunks are kept as they are, and joined once, when asked for."""

    def __init__(self, streamed: bool) -> None:
        self.streamed = streamed
        self.total = 0
        self._limit = STREAM_BYTES if streamed else WHOLE_BYTES
        self._chunks: deque[bytes] = deque()
        self._held = 0

    def feed(self, chunk: bytes) -> None:
        """Take note of the next bytes."""
        self.total += len(chunk)
        self._held += len(chunk)
        self._chunks.append(chunk)
        while self._held - len(self._chunks[0]) >= self._limit:
            self._held -= len(self._chunks.popleft())

    def read(self) -> bytes:
        """The last bytes, at least as many as the limit if there were so many."""
        return b"".join(self._chunks)
