"""A request's way through filters in a test, with the results checked: the first filter has the first and last word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from plugin_sdk.kinds import Filter
from plugin_sdk.messages import Event, Exchange, Headers, Outcome, Request, Response, amended, with_headers
from plugin_sdk.sse import Parser, Piece, written
from plugin_sdk.testing.host import Host

T = TypeVar("T")

EVENT_BYTES = 8 * 2**20


def expected(kind: type[T], got: object, method: str) -> T:
    """The result, if it is of the kind. Raises TypeError."""
    if not isinstance(got, kind):
        raise TypeError(f"{method} must return {kind.__name__}, not {type(got).__name__}")
    return got


def overrides(plugin: Filter[Any], name: str) -> bool:
    """Whether the filter has such a hook."""
    return getattr(type(plugin), name) is not getattr(Filter, name)


class Passage:
    """One request's passage. answered_by: the filter that answered in the server's place."""

    def __init__(self, host: Host, filters: Sequence[Filter[Any]]) -> None:
        self.answered_by = ""
        self._host = host
        self._filters = filters
        self._begun: list[tuple[Filter[Any], Exchange]] = []
        self._answered = self._begun  # those that see the answer
        self._bodies: list[_Body] = []

    async def request(self, request: Request) -> Request | Response:
        """What becomes of the request. Raises Reject."""
        for plugin in self._filters:
            exchange = Exchange(request)
            self._begun.append((plugin, exchange))
            result = await self._call(plugin, "on_request", exchange)
            if isinstance(result, Response):
                self.answered_by = plugin.name
                return await self._given(result)
            if result is not None:
                changed = expected(Request, result, _name(plugin, "on_request"))
                request = exchange.request = amended(request, changed)
        return request

    async def _given(self, answer: Response) -> Response:
        """What the filters before make of an answer that one has given in the server's place."""
        self._answered = self._begun[:-1]
        head = await self.response(msgspec.structs.replace(answer, body=b""))
        before = await self.chunk(answer.body)
        return msgspec.structs.replace(head, body=before + await self.finish())

    async def response(self, head: Response) -> Response:
        """What becomes of the head of the answer. Raises Reject."""
        streamed = head.streamed
        for plugin, exchange in reversed(self._answered):
            exchange.response = head
            result = await self._call(plugin, "on_response", exchange)
            if isinstance(result, Headers):
                head = with_headers(head, result.raw)
            elif result is not None:
                changed = expected(Response, result, _name(plugin, "on_response"))
                head = exchange.response = msgspec.structs.replace(changed, streamed=streamed)
        for plugin, exchange in reversed(self._answered):
            if overrides(plugin, "on_chunk"):
                self._bodies.append(_Chunks(self._host, plugin, exchange))
            elif overrides(plugin, "on_event"):
                self._bodies.append((_Events if streamed else _Whole)(self._host, plugin, exchange))
        return head

    async def chunk(self, chunk: bytes) -> bytes:
        """What becomes of a piece of the body. Raises Reject."""
        for body in self._bodies:
            chunk = await body.feed(chunk) if chunk else b""
        return chunk

    async def finish(self) -> bytes:
        """What comes at its end. Raises Reject."""
        carried = b""
        for body in self._bodies:
            before = await body.feed(carried) if carried else b""
            body.exchange.last = True
            carried = before + await body.finish()
        return carried

    async def end(self, outcome: Outcome) -> None:
        """Tell each filter whose turn had come how it ended."""
        for plugin, exchange in reversed(self._begun):
            result = await self._call(plugin, "on_end", exchange, outcome)
            expected(type(None), result, _name(plugin, "on_end"))

    async def _call(self, plugin: Filter[Any], name: str, *args: Any) -> Any:
        return await self._host.call(getattr(plugin, name), *args) if overrides(plugin, name) else None


class _Body:
    """One filter on a body."""

    def __init__(self, host: Host, plugin: Filter[Any], exchange: Exchange) -> None:
        self.exchange = exchange
        self._host = host
        self._plugin = plugin
        self._held = bytearray()
        self._parser = Parser(EVENT_BYTES)

    async def feed(self, chunk: bytes) -> bytes:
        raise NotImplementedError

    async def finish(self) -> bytes:
        raise NotImplementedError

    async def _on_event(self, event: Event) -> list[Event]:
        result = await self._host.call(self._plugin.on_event, self.exchange, event)
        found = [event] if result is None else result if isinstance(result, list) else [result]
        return [expected(Event, one, _name(self._plugin, "on_event")) for one in found]


class _Chunks(_Body):
    async def feed(self, chunk: bytes) -> bytes:
        result = await self._host.call(self._plugin.on_chunk, self.exchange, chunk)
        return chunk if result is None else expected(bytes, result, _name(self._plugin, "on_chunk"))

    async def finish(self) -> bytes:
        return await self.feed(b"")


class _Whole(_Body):
    async def feed(self, chunk: bytes) -> bytes:
        self._held += chunk
        return b""

    async def finish(self) -> bytes:
        left = await self._on_event(Event(data=bytes(self._held), whole=True))
        return b"".join(event.data for event in left)


class _Events(_Body):
    async def feed(self, chunk: bytes) -> bytes:
        return b"".join([await self._through(piece) for piece in self._parser.feed(chunk)])

    async def finish(self) -> bytes:
        self.exchange.last = False  # what is left of the stream is not yet its end
        rest = b"".join([await self._through(piece) for piece in self._parser.finish()])
        self.exchange.last = True
        nothing = Event(data=b"")
        return rest + b"".join(written(event) for event in await self._on_event(nothing) if event != nothing)

    async def _through(self, piece: Piece) -> bytes:
        if piece.event is None:
            return piece.raw
        left = await self._on_event(piece.event)
        body = b"".join(piece.raw if event == piece.event else written(event) for event in left)
        return body if not piece.beside or piece.event in left else piece.beside + (body or b"\n")


def _name(plugin: Filter[Any], method: str) -> str:
    return f"{type(plugin).__name__}.{method}"
