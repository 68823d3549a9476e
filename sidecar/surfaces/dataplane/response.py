"""The answer to one request: what its client has been sent so far, and the ways in which it can end."""

from __future__ import annotations

from typing import Protocol

from plugin_sdk import End, Headers
from plugin_sdk import Response as Head
from plugin_sdk.messages import RawHeaders
from sidecar.control.clock import Clock
from sidecar.mechanism.connections import Exchange, UpstreamError
from sidecar.mechanism.filters import Passage
from sidecar.mechanism.modes import Mode
from sidecar.mechanism.upstream import HOP_BY_HOP, end_to_end
from sidecar.surfaces.dataplane.errors import ApiError, error_body
from sidecar.surfaces.dataplane.tail import Tail

ERROR_BYTES = 64 * 1024  # of a server's error, when it has to go into an event

_EVENT_STREAM = b"text/event-stream"
_FRAMING = HOP_BY_HOP | {b"content-length"}
_EVENTS_HEAD: RawHeaders = (
    (b"content-type", _EVENT_STREAM),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would keep comments back until its buffer is full
)


class Downstream(Protocol):
    """The way back to the client. Waits when the client is slow, so that nothing piles up here."""

    async def start(self, status: int, headers: RawHeaders) -> None: ...

    async def send(self, chunk: bytes) -> None: ...

    async def end(self) -> None: ...

    async def abort(self) -> None:
        """Break the connection, so that nobody takes what was sent for the whole."""
        ...


async def answer(out: Downstream, status: int, headers: RawHeaders, body: bytes) -> None:
    """A whole response at once."""
    await out.start(status, _with_length(status, headers, len(body)))
    await out.send(body)
    await out.end()


class Response:
    """One answer on its way.

    begun: its head was sent. status: what came of the request, 0 while that is not known; the head says something else
    if it had to be sent before. first_byte_at: when the server's body began (monotonic clock). tail: of that body.
    interface: whose errors it speaks.
    """

    def __init__(self, out: Downstream, clock: Clock) -> None:
        self.begun = False
        self.status = 0
        self.code = ""
        self.end = End.OK
        self.first_byte_at: float | None = None
        self.tail = Tail(streamed=False)
        self.interface: Mode | None = None
        self._out = out
        self._clock = clock

    async def comment(self, comment: bytes) -> None:
        """Send an event stream's comment, which clients skip, and before the first one the stream's head."""
        if not self.begun:
            self.begun = True
            self.tail = Tail(streamed=True)
            await self._out.start(200, _EVENTS_HEAD)
        await self._out.send(comment)

    async def relay(self, exchange: Exchange, passage: Passage | None = None) -> None:
        """Pass on what the server answers, as the filters leave it. Raises UpstreamError, and Reject if they refuse."""
        if self.begun and not _can_follow(exchange):
            await self._fall_short(exchange)
            return
        self.status = exchange.status
        streamed = _header(exchange, b"content-type").startswith(_EVENT_STREAM)
        if not self.begun:
            self.tail = Tail(streamed=streamed)
        if passage is not None:
            await self._filtered(exchange, passage, streamed)
            return
        await self._start(exchange.status, end_to_end(exchange.headers))
        await self._untouched(exchange)

    async def give(self, given: Head, code: str) -> None:
        """A filter's answer in the server's place."""
        self.begun = True
        self.status, self.code = given.status, code
        self.tail = Tail(streamed=given.streamed)
        self._note(given.body)
        await answer(self._out, given.status, _unframed(given.headers.raw), given.body)

    async def refuse(self, error: ApiError, end: End = End.REFUSED) -> None:
        """End with an error of the sidecar's own: a plain one if nothing was sent; else it breaks off."""
        self.code = error.code
        if self.begun:
            self.end = end
            self.status = self.status or error.status
            await self._break_off(self._said(error))
            return
        self.begun = True
        self.end, self.status = end, error.status
        await answer(self._out, error.status, error.response_headers(), self._said(error))

    def left(self) -> None:
        """The client did not wait for the end."""
        self.end, self.code = End.CLIENT_GONE, "client_gone"

    async def _filtered(self, exchange: Exchange, passage: Passage, streamed: bool) -> None:
        """The head waits for a body that is held until it is whole: its length is new, and a filter may yet refuse."""
        original = Headers(end_to_end(exchange.headers))
        came = Head(status=exchange.status, headers=original, streamed=streamed)
        head = await passage.response(came, _encoding(exchange))
        headers = original.raw if head.headers is original else _framed_as(original.raw, head.headers.raw)
        if not passage.sees_body:
            await self._start(head.status, headers)
            await self._untouched(exchange)
            return
        headers = _unframed(headers)
        if not passage.holds:
            await self._start(head.status, headers)
        async for chunk in exchange.chunks():
            self._note(chunk)
            await self._pass_on(await passage.chunk(chunk), head.status, headers)
        rest = await passage.finish()
        if not self.begun:
            headers = _with_length(head.status, headers, len(rest))
        await self._start(head.status, headers)
        await self._out.send(rest)
        await self._out.end()

    async def _untouched(self, exchange: Exchange) -> None:
        """The body as it comes: the very same bytes."""
        async for chunk in exchange.chunks():
            self._note(chunk)
            await self._out.send(chunk)
        await self._out.end()

    async def _pass_on(self, chunk: bytes, status: int, headers: RawHeaders) -> None:
        if chunk:
            await self._start(status, headers)
            await self._out.send(chunk)

    async def _start(self, status: int, headers: RawHeaders) -> None:
        """Send the head, unless one was sent."""
        if not self.begun:
            self.status = status
            self.begun = True
            await self._out.start(status, headers)

    def _note(self, chunk: bytes) -> None:
        if self.first_byte_at is None:
            self.first_byte_at = self._clock.monotonic()
        self.tail.feed(chunk)

    async def _fall_short(self, exchange: Exchange) -> None:
        """The client was promised events, and the server has none: its error becomes the only one."""
        if exchange.status < 300:
            sent = b" ".join(filter(None, (_header(exchange, b"content-encoding"), _header(exchange, b"content-type"))))
            kind = sent[:100].decode("latin-1") or "no content type"
            raise UpstreamError(f"the server answered with {kind}, not with a plain event stream", processed=True)
        body = await _beginning(exchange)
        self.status = exchange.status
        await self._break_off(error_body(exchange.status, body))

    async def _break_off(self, error: bytes) -> None:
        """An error event where there are events, and a broken connection."""
        if self.tail.streamed:
            await self._out.send(b"\n\n" + self._error_event(error))
        await self._out.abort()

    def _said(self, error: ApiError) -> bytes:
        """The error in the shape of the API that was called."""
        said = None
        if self.interface is not None:
            said = self.interface.error(error.status, error.code, error.message, error.param)
        return error.body() if said is None else said

    def _error_event(self, error: bytes) -> bytes:
        said = self.interface.error_event(error) if self.interface is not None else None
        return b"data: " + error + b"\n\n" if said is None else said


def _unframed(headers: RawHeaders) -> RawHeaders:
    """Without what says where the body ends, which is for whoever sends it to say."""
    return tuple(pair for pair in headers if pair[0].lower() not in _FRAMING)


def _framed_as(original: RawHeaders, headers: RawHeaders) -> RawHeaders:
    """A filter's headers with the body's length as the server said it, for a body that nobody changes."""
    return (*_unframed(headers), *(pair for pair in original if pair[0].lower() == b"content-length"))


def _with_length(status: int, headers: RawHeaders, length: int) -> RawHeaders:
    if status in (204, 304):  # RFC 9110, 8.6
        return headers
    return (*headers, (b"content-length", str(length).encode()))


def _encoding(exchange: Exchange) -> str:
    encoding = _header(exchange, b"content-encoding")
    return "" if encoding == b"identity" else encoding.decode("latin-1")


def _can_follow(exchange: Exchange) -> bool:
    """Whether the body continues an event stream whose head said nothing of an encoding."""
    encoded = _header(exchange, b"content-encoding") not in (b"", b"identity")
    return exchange.status < 300 and not encoded and _header(exchange, b"content-type").startswith(_EVENT_STREAM)


def _header(exchange: Exchange, wanted: bytes) -> bytes:
    return next((value.lower() for name, value in exchange.headers if name.lower() == wanted), b"")


async def _beginning(exchange: Exchange) -> bytes:
    body = b""
    async for chunk in exchange.chunks():
        body += chunk
        if len(body) > ERROR_BYTES:
            break
    return body
