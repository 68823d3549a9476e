"""What passes between a connection to a server and whoever asks something on it."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Protocol

from sidecar.mechanism.outbox import Outbox

if TYPE_CHECKING:
    from sidecar.mechanism.connections import Connection


class UpstreamError(Exception):
    """The server could not be reached, or broke off.

    processed: whether any of the request may have been acted on. reused: it has closed a connection that was idle, in
    the moment in which it was used again.
    """

    def __init__(self, message: str, *, processed: bool, reused: bool = False) -> None:
        super().__init__(message)
        self.processed = processed
        self.reused = reused


class Framing(enum.Enum):
    """How the end of an answer is told (RFC 9112, 6.3)."""

    NONE = "none"  # there is no body
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"
    TUNNEL = "tunnel"  # 101: no HTTP from here on


class Again:
    """The head of an answer that has come before on the same connection, but for the length of its body.

    headers, passed_on: with the length that they had when they were read. notes: of whoever passes it on.
    """

    __slots__ = ("content_type", "headers", "length", "notes", "passed_on", "reason", "status")

    def __init__(self, answer: Connection, length: int) -> None:
        self.status = answer.status
        self.reason = answer.reason
        self.headers = answer.headers
        self.passed_on = answer.passed_on
        self.content_type = answer.content_type
        self.length = length
        self.notes: object = None


class Listener(Protocol):
    """Who asked. After `on_end` or `on_broken` the connection is no concern of theirs."""

    def on_whole(self, again: Again, body: bytes) -> bool:
        """The whole answer is there, and its head is known; False if it has to be told as any other, with `on_head`."""
        ...

    def on_head(self, answer: Connection) -> None:
        """`answer.status`, `reason`, `headers` and `framing` are known."""
        ...

    def on_pause(self) -> None:
        """There is nothing more for now than the head."""
        ...

    def on_interim(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """An interim answer, other than 100 (RFC 9110, 15.2)."""
        ...

    def on_data(self, data: bytes) -> None:
        """Bytes of the body: as they came, or without framing if `pieces` were asked for. Never empty."""
        ...

    def on_chunks(self, data: bytes) -> None:
        """The same, where `answer.between` was set: whole chunks, which leave it where it is."""
        ...

    def on_end(self) -> None:
        """The answer is complete."""
        ...

    def on_broken(self, error: UpstreamError) -> None:
        """There will be no more of it."""
        ...

    def on_writable(self, writable: bool) -> None:
        """The server is too slow for what is written to it, or has caught up."""
        ...


class Keeper(Protocol):
    """Where connections stay between requests. outbox: through which they write."""

    outbox: Outbox

    def keep(self, connection: Connection) -> None: ...

    def forget(self, connection: Connection) -> None: ...
