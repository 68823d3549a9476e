"""The body of an answer on its way through filters: by pieces as they come, or by parsed events.

What no filter changes leaves as the bytes that came in.
"""

from __future__ import annotations

from typing import Any, Protocol

from plugin_sdk import Event, Exchange, Reject
from plugin_sdk.sse import Parser, Piece, TooLargeError, written
from sidecar.mechanism.hooks import Hook

EVENT_BYTES = 8 * 2**20  # of one event: some hold images


_NOTHING_MORE = Event(data=b"")


class RefusedError(Exception):
    """A filter refuses the rest. before: what goes on of the events before, whose number depends on how bytes come."""

    def __init__(self, before: bytes, reject: Reject) -> None:
        super().__init__(str(reject))
        self.before = before
        self.reject = reject


class Body(Protocol):
    """One stage. Both raise Reject, and `feed` RefusedError."""

    async def feed(self, chunk: bytes) -> bytes:
        """What becomes of a piece; b"" for nothing, or nothing yet."""
        ...

    async def finish(self) -> bytes:
        """What comes at the end."""
        ...


class Chunks:
    """A filter on pieces."""

    def __init__(self, hook: Hook[bytes], exchange: Exchange) -> None:
        self._hook = hook
        self._exchange = exchange

    async def feed(self, chunk: bytes) -> bytes:
        hook = self._hook
        changed = hook.now(self._exchange, chunk) if hook.inline else await hook(self._exchange, chunk)
        return chunk if changed is None else changed

    async def finish(self) -> bytes:
        self._exchange.last = True
        return await self._hook(self._exchange, b"") or b""


class Events:
    """Filters on events that follow one another. A body that is no stream is one event, once it is whole."""

    def __init__(self, streamed: bool, most_bytes: int) -> None:
        self._streamed = streamed
        self._filters: list[tuple[Hook[list[Any]], Exchange]] = []
        self._parser = Parser(EVENT_BYTES)
        self._most_bytes = most_bytes
        self._whole: list[bytes] = []
        self._size = 0
        self._blind = False  # it was too large to be parsed, and may pass as it is

    def add(self, hook: Hook[list[Any]], exchange: Exchange) -> None:
        """One more filter, whose turn comes after the others'."""
        self._filters.append((hook, exchange))

    async def feed(self, chunk: bytes) -> bytes:
        if self._blind:
            return chunk
        if not self._streamed:
            return self._keep(chunk)
        try:
            pieces = self._parser.feed(chunk)
        except TooLargeError as error:
            return self._pass_blindly(error, self._parser.rest())
        passed: list[bytes] = []
        for piece in pieces:
            try:
                passed.append(await self._through(piece))
            except Reject as reject:
                if not any(passed):
                    raise
                raise RefusedError(b"".join(passed), reject) from None
        return b"".join(passed)

    async def finish(self) -> bytes:
        if self._blind:
            return b""
        if not self._streamed:
            return await self._finish_whole()
        rest = b"".join([await self._through(piece) for piece in self._parser.finish()])
        return rest + await self._closing()

    def _keep(self, chunk: bytes) -> bytes:
        self._whole.append(chunk)
        self._size += len(chunk)
        if self._size <= self._most_bytes:
            return b""
        held, self._whole = b"".join(self._whole), []
        return self._pass_blindly(TooLargeError(f"a body of more than {self._most_bytes} bytes (max_body)"), held)

    def _pass_blindly(self, error: Exception, held: bytes) -> bytes:
        """All that can be done if no filter objects. Raises Reject if one does."""
        self._blind = True
        for hook, _ in self._filters:
            hook.failed(error)
        return held

    async def _through(self, piece: Piece) -> bytes:
        """The piece as all filters leave it."""
        if piece.event is None:
            return piece.raw
        left = await self._all([piece.event])
        body = b"".join([piece.raw if event is piece.event else written(event) for event in left])
        if not piece.beside or any(event is piece.event for event in left):
            return body
        return piece.beside + (body or b"\n")

    async def _closing(self) -> bytes:
        """The stream is over: each filter may have something to add, which those after it see like any event."""
        added: list[Event] = []
        for hook, exchange in self._filters:
            added = await self._one(hook, exchange, added)
            exchange.last = True
            found = await hook(exchange, _NOTHING_MORE) or []
            added += [event for event in found if event != _NOTHING_MORE]  # it was not in the stream
        return b"".join(map(written, added))

    async def _finish_whole(self) -> bytes:
        body = b"".join(self._whole)
        for _, exchange in self._filters:
            exchange.last = True
        return b"".join([event.data for event in await self._all([Event(data=body, whole=True)])])

    async def _all(self, events: list[Event]) -> list[Event]:
        for hook, exchange in self._filters:
            events = await self._one(hook, exchange, events)
        return events

    async def _one(self, hook: Hook[list[Any]], exchange: Exchange, events: list[Event]) -> list[Event]:
        left: list[Event] = []
        for event in events:
            changed = hook.now(exchange, event) if hook.inline else await hook(exchange, event)
            if changed is None:
                left.append(event)
            else:
                left += [event if one == event else one for one in changed]
        return left
