"""The answer to one request: what its client has been sent so far, and the ways in which it can end."""

from __future__ import annotations

from typing import Protocol

from plugin_sdk import End
from plugin_sdk.messages import RawHeaders
from sidecar.control.clock import Clock
from sidecar.mechanism.connections import Exchange, UpstreamError
from sidecar.mechanism.upstream import end_to_end
from sidecar.surfaces.dataplane.errors import ApiError, error_body
from sidecar.surfaces.dataplane.tail import Tail

ERROR_BYTES = 64 * 1024  # of a server's error, when it has to go into an event

_EVENT_STREAM = b"text/event-stream"
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
    await out.start(status, (*headers, (b"content-length", str(len(body)).encode())))
    await out.send(body)
    await out.end()


class Response:
    """One answer on its way.

    begun: its head was sent. status: what came of the request, 0 while that is not known; the head says something else
    if it had to be sent before. first_byte_at: when the server's body began (monotonic clock). tail: of that body.
    """

    def __init__(self, out: Downstream, clock: Clock) -> None:
        self.begun = False
        self.status = 0
        self.code = ""
        self.end = End.OK
        self.first_byte_at: float | None = None
        self.tail = Tail(streamed=False)
        self._out = out
        self._clock = clock

    async def comment(self, comment: bytes) -> None:
        """Send an event stream's comment, which clients skip, and before the first one the stream's head."""
        if not self.begun:
            self.begun = True
            self.tail = Tail(streamed=True)
            await self._out.start(200, _EVENTS_HEAD)
        await self._out.send(comment)

    async def relay(self, exchange: Exchange) -> None:
        """Pass on what the server answers. Raises UpstreamError."""
        if self.begun and not _can_follow(exchange):
            await self._fall_short(exchange)
            return
        self.status = exchange.status
        if not self.begun:
            self.tail = Tail(streamed=_header(exchange, b"content-type").startswith(_EVENT_STREAM))
            await self._out.start(exchange.status, end_to_end(exchange.headers))
            self.begun = True
        async for chunk in exchange.chunks():
            if self.first_byte_at is None:
                self.first_byte_at = self._clock.monotonic()
            self.tail.feed(chunk)
            await self._out.send(chunk)
        await self._out.end()

    async def refuse(self, error: ApiError, end: End = End.REFUSED) -> None:
        """End with an error of the sidecar's own: a plain one if nothing was sent; else it breaks off."""
        self.code = error.code
        if self.begun:
            self.end = End.UPSTREAM_FAILED if self.status else end
            self.status = self.status or error.status
            await self._break_off(error.body())
            return
        self.begun = True
        self.end, self.status = end, error.status
        await answer(self._out, error.status, error.response_headers(), error.body())

    def left(self) -> None:
        """The client did not wait for the end."""
        self.end, self.code = End.CLIENT_GONE, "client_gone"

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
            await self._out.send(b"\n\ndata: " + error + b"\n\n")
        await self._out.abort()


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
