"""HTTP/1.1 connections to servers, on asyncio and httptools: kept alive, reused, and closed whatever befalls a request.

`Exchange` is the seam of the data plane: who relays sees a status, headers and chunks, and need not know what brought
them. A cancelled request closes its connection, which is how the server learns of it; a reader that is slow stops the
connection from being read, which is how the server is slowed down.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from plugin_sdk.messages import RawHeaders

CONNECT_S = 5.0
IDLE_S = 4.0  # vLLM's uvicorn closes idle connections after 5 s: ours must expire before
IDLE_MOST = 256  # kept for each server
BUFFER_BYTES = 256 * 1024  # read ahead of a slow client, per exchange


class UpstreamError(Exception):
    """The server could not be reached, or broke off. processed: whether any of the request may have been acted on."""

    def __init__(self, message: str, *, processed: bool) -> None:
        super().__init__(message)
        self.processed = processed


class Exchange(Protocol):
    """An answer whose head has arrived. Must be closed; closing before the end cancels the request upstream."""

    status: int
    headers: RawHeaders

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, undecoded. Raises UpstreamError if it breaks off."""
        ...

    async def close(self) -> None: ...


class Origin(msgspec.Struct, frozen=True):
    """Where connections lead."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


class Pool:
    """Idle connections by origin."""

    def __init__(self) -> None:
        self._idle: dict[Origin, list[Connection]] = {}
        self._tls: ssl.SSLContext | None = None

    async def exchange(self, method: str, url: str, headers: RawHeaders, body: bytes) -> Exchange:
        """Send a request and wait for the head of the answer, for as long as the caller does. Raises UpstreamError."""
        parts = urlsplit(url)
        origin = Origin(parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection = self._reusable(origin) or await self._connect(origin)
        try:
            connection.send(method, target, parts.netloc, headers, body)
            await connection.head
        except BaseException:
            connection.abort()
            raise
        return _Exchange(self, origin, connection)

    def give_back(self, origin: Origin, connection: Connection) -> None:
        """Keep a connection whose exchange is complete, if it can be used again."""
        kept = self._idle.setdefault(origin, [])
        if not connection.reusable or len(kept) >= IDLE_MOST:
            connection.abort()
            return
        kept.append(connection)
        connection.expire_in(IDLE_S, lambda: self._forget(origin, connection))

    def close(self) -> None:
        """Close what is idle."""
        for kept in self._idle.values():
            for connection in kept:
                connection.abort()
        self._idle.clear()

    def _reusable(self, origin: Origin) -> Connection | None:
        kept = self._idle.get(origin, [])
        while kept:
            connection = kept.pop()  # the one used last: the others may expire
            if connection.begin_again():
                return connection
        return None

    async def _connect(self, origin: Origin) -> Connection:
        loop = asyncio.get_running_loop()
        connection = Connection(origin)
        tls = self._context() if origin.scheme == "https" else None
        try:
            async with asyncio.timeout(CONNECT_S):
                await loop.create_connection(lambda: connection, origin.host, origin.port, ssl=tls)
        except TimeoutError:
            connection.abort()
            message = f"no connection to {origin} within {CONNECT_S:g} s"
            raise UpstreamError(message, processed=False) from None
        except OSError as error:
            connection.abort()
            raise UpstreamError(f"no connection to {origin}: {error.strerror or error}", processed=False) from error
        except BaseException:
            connection.abort()  # it may have been made in the very moment of the cancellation
            raise
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def _forget(self, origin: Origin, connection: Connection) -> None:
        kept = self._idle.get(origin, [])
        if connection in kept:
            kept.remove(connection)
        connection.abort()


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time. httptools finds where answers end (RFC 9112, 6.3)."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._transport: asyncio.Transport | None = None
        self._closed = False
        self._expiry: asyncio.TimerHandle | None = None
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.head: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.head.add_done_callback(_retrieved)
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.reusable = False
        self.error: UpstreamError | None = None
        self.arrived = asyncio.Event()
        self.chunks: deque[bytes] = deque()
        self._buffered = 0
        self._method = ""
        self._until_close = False

    # --- requests -----------------------------------------------------------------------------------------------

    def send(self, method: str, target: str, host: str, headers: RawHeaders, body: bytes) -> None:
        """Write a request. Header names and values must come from a parser that has refused line breaks in them."""
        self._method = method
        lines = [f"{method} {target} HTTP/1.1\r\nhost: {host}\r\n".encode("latin-1")]
        lines += [b"%s: %s\r\n" % pair for pair in headers]
        if body or method not in ("GET", "HEAD"):
            lines.append(b"content-length: %d\r\n" % len(body))
        lines += [b"\r\n", body]
        if self._transport is None or self._closed:
            raise UpstreamError("the connection was closed", processed=False)
        self._transport.write(b"".join(lines))

    def begin_again(self) -> bool:
        """Whether the connection is still good for another exchange; then it is ready for it."""
        if self._expiry is not None:
            self._expiry.cancel()
        if self._closed or self._transport is None or self._transport.is_closing():
            return False
        self._begin()
        return True

    def expire_in(self, seconds: float, forget: Callable[[], None]) -> None:
        """Call `forget` unless the connection is used again before."""
        self._expiry = asyncio.get_running_loop().call_later(seconds, forget)

    def abort(self) -> None:
        """Close now. What was being exchanged is cancelled."""
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
        if self._transport is not None:
            self._transport.abort()

    def taken(self, chunk: bytes) -> None:
        """A chunk has been passed on."""
        self._buffered -= len(chunk)
        if self._buffered <= BUFFER_BYTES // 2 and self._transport is not None and not self._closed:
            self._transport.resume_reading()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        if self._closed:  # given up while it was being made
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("the server switched to another protocol")
        except httptools.HttpParserError as error:
            self._fail(f"the server does not speak HTTP: {error}")
        if self._buffered > BUFFER_BYTES and self._transport is not None:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        if self._until_close and exc is None and self.head.done() and not self.complete:
            self._finish()
        elif not self.complete:
            self._fail(str(exc) if exc is not None else "the server closed the connection")

    # --- httptools ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A response starts; if one is complete already, nobody asked for this one."""
        if self.complete:
            self.reusable = False
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head.done():  # trailers come after it, and are not passed on
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:
            return
        named = {name.lower() for name, _ in self.headers}
        bodiless = self._method == "HEAD" or self.status in (204, 304)
        self._until_close = not bodiless and not named & {b"content-length", b"transfer-encoding"}
        if not self.head.done():
            self.head.set_result(None)
        if bodiless:
            self._finish()

    def on_body(self, body: bytes) -> None:
        self.chunks.append(body)
        self._buffered += len(body)
        self.arrived.set()

    def on_message_complete(self) -> None:
        if self.status < 200:  # an interim answer (RFC 9110, 15.2): the real one follows
            self.headers.clear()
        elif not self.complete:
            self.reusable = self._parser.should_keep_alive() and self._method != "HEAD"
            self._finish()

    def _finish(self) -> None:
        self.complete = True
        self.arrived.set()

    def _fail(self, why: str) -> None:
        if self.error is not None:
            return  # what went wrong first is the cause; that the connection is lost follows from it
        self.error = UpstreamError(f"{self._origin} broke off: {why}", processed=True)
        if not self.head.done():
            self.head.set_exception(self.error)
        self.arrived.set()
        self.abort()


class _Exchange:
    def __init__(self, pool: Pool, origin: Origin, connection: Connection) -> None:
        self._pool = pool
        self._origin = origin
        self._connection: Connection | None = connection
        self.status = connection.status
        self.headers: RawHeaders = tuple(connection.headers)

    async def chunks(self) -> AsyncIterator[bytes]:
        connection = self._connection
        while connection is not None:
            while connection.chunks:
                chunk = connection.chunks.popleft()
                yield chunk
                connection.taken(chunk)
            if connection.complete:
                return
            if connection.error is not None:
                raise connection.error
            connection.arrived.clear()
            await connection.arrived.wait()

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if connection.complete and not connection.chunks:
            self._pool.give_back(self._origin, connection)
        else:
            connection.abort()


def _retrieved(head: asyncio.Future[None]) -> None:
    """A request that was cancelled never asks what became of it; that is no reason for asyncio to complain."""
    if not head.cancelled():
        head.exception()
