"""httpx over the sidecar's own connections: the API that plugins know, without the cost of httpx's own pool.

For plain HTTP. What is more (TLS with certificates from the environment, proxies) is left to httpx's own transport.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import cast

import httpx

from sidecar.mechanism.connections import Connection
from sidecar.mechanism.exchanges import Again, UpstreamError
from sidecar.mechanism.origins import Origin
from sidecar.mechanism.pool import Pool

WAITING_BYTES = 256 * 1024  # of an answer that nobody takes: then its server has to wait

_LAST_CHUNK = b"0\r\n\r\n"
_NAME = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_VALUE = rb"[^\r\n\0]*+"  # what would end a header early, and begin another, is refused (RFC 9110, 5.5)
_is_head = re.compile(rb"%b [!-~]++ HTTP/1\.1\r\n(?:%b: %b\r\n)*+\r\n" % (_NAME, _NAME, _VALUE)).fullmatch


class PoolTransport(httpx.AsyncBaseTransport):
    """most: how many requests may be under way; others wait for as long as their `pool` timeout lets them."""

    def __init__(self, pool: Pool, most: int) -> None:
        self._pool = pool
        self._free = asyncio.Semaphore(most)
        self._under_way: set[_Exchange] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The answer as soon as its head is there. Raises httpx.TransportError."""
        head = _head(request)
        timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
        await self._turn(timeouts.get("pool"))
        exchange = _Exchange(self._over, timeouts)
        self._under_way.add(exchange)
        try:
            return await self._ask(exchange, request, head)
        except UpstreamError as error:
            exchange.close()
            raise httpx.RemoteProtocolError(str(error)) from error
        except BaseException:
            exchange.close()
            raise

    async def aclose(self) -> None:
        """Close all connections, also those in use."""
        for exchange in list(self._under_way):
            exchange.on_broken(UpstreamError("the client was closed", processed=True))
            exchange.close()
        self._pool.close()

    async def _ask(self, exchange: _Exchange, request: httpx.Request, head: bytes) -> httpx.Response:
        origin = Origin("http", request.url.raw_host.decode("ascii"), request.url.port or 80)
        stream = request.stream
        body = b"".join(stream) if isinstance(stream, httpx.ByteStream) else None
        connection = None if body is None else self._pool.take(origin)  # such a body can be sent only once
        while True:
            connection = connection or await self._connected(origin, exchange.timeouts.get("connect"))
            try:
                if body is None:
                    exchange.ask(connection, head, head_only=request.method == "HEAD", more=True)
                    await exchange.send(cast(AsyncIterator[bytes], stream), chunked=_is_chunked(request))
                else:
                    exchange.ask(connection, head + body, head_only=request.method == "HEAD")
                return await exchange.head()
            except UpstreamError as error:
                if not error.reused:
                    raise
            connection = None  # it was closed in the moment in which it was used again, and nothing was read of this

    async def _connected(self, origin: Origin, patience_s: float | None) -> Connection:
        try:
            async with asyncio.timeout(patience_s):
                return await self._pool.connect(origin)
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"no connection to {origin} within {patience_s:g} s") from error
        except UpstreamError as error:
            late = isinstance(error.__context__, TimeoutError)
            raise (httpx.ConnectTimeout if late else httpx.ConnectError)(str(error)) from error

    async def _turn(self, patience_s: float | None) -> None:
        if not self._free.locked():
            await self._free.acquire()  # at once
            return
        try:
            async with asyncio.timeout(patience_s):
                await self._free.acquire()
        except TimeoutError as error:
            raise httpx.PoolTimeout("too many requests are under way") from error

    def _over(self, exchange: _Exchange) -> None:
        self._under_way.discard(exchange)
        self._free.release()


class _Exchange(httpx.AsyncByteStream):
    """One request, and the body of its answer (`connections.Listener`)."""

    def __init__(self, over: Callable[[_Exchange], None], timeouts: dict[str, float | None]) -> None:
        self.timeouts = timeouts
        self._over: Callable[[_Exchange], None] | None = over
        self._connection: Connection | None = None
        self._head: tuple[int, bytes, list[tuple[bytes, bytes]]] | None = None
        self._error: UpstreamError | None = None
        self._ended = False
        self._writable = True
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._waiter: asyncio.Future[bool] | None = None

    def ask(self, connection: Connection, data: bytes, *, head_only: bool, more: bool = False) -> None:
        """Begin. Raises UpstreamError."""
        self._error = None
        self._connection = connection
        connection.ask(self, data, head_only=head_only, pieces=True, more=more)

    async def send(self, pieces: AsyncIterator[bytes], *, chunked: bool) -> None:
        """The body, as fast as the server takes it; not to its end if the answer is there before. Raises as `head`."""
        async for piece in pieces:
            while not self._writable and not self._is_over:
                await self._change("write", httpx.WriteTimeout)
            if self._connection is None or self._is_over:
                return
            if piece:
                self._connection.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if self._connection is not None and not self._is_over:
            if chunked:
                self._connection.write(_LAST_CHUNK)
            self._connection.asked()

    async def head(self) -> httpx.Response:
        """The answer, whose body is still to come. Raises UpstreamError, httpx.TransportError."""
        while self._head is None:
            if self._error is not None:
                raise self._told(self._error)
            await self._change("read", httpx.ReadTimeout)
        status, reason, headers = self._head
        extensions = {"http_version": b"HTTP/1.1", "reason_phrase": reason}
        return httpx.Response(status, headers=headers, stream=self, extensions=extensions)

    def _told(self, error: UpstreamError) -> UpstreamError:
        """The error, which is not kept: its traceback leads back here, and would have to be collected as garbage."""
        self._error = None
        return error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Pieces of the body. Raises httpx.TransportError."""
        while True:
            if self._waiting:
                yield self._take()
            elif self._error is not None:
                raise httpx.RemoteProtocolError(str(self._error)) from self._error
            elif self._ended:
                return
            else:
                await self._change("read", httpx.ReadTimeout)

    async def aclose(self) -> None:
        """Nothing more of it is wanted."""
        self.close()

    def close(self) -> None:
        """The same; a connection on which more would come is closed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()
        over, self._over = self._over, None
        if over is not None:
            over(self)

    # --- from the server ----------------------------------------------------------------------------------------

    def on_whole(self, again: Again, body: bytes) -> bool:  # noqa: ARG002 - there is but one way to tell httpx
        """Nothing is gained by it."""
        return False

    def on_head(self, answer: Connection) -> None:
        """The answer may be given out."""
        self._head = answer.status, answer.reason, answer.headers
        self._wake()

    def on_pause(self) -> None:
        """Its body follows."""

    def on_interim(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Means nothing to httpx, either."""

    def on_data(self, data: bytes) -> None:
        """A piece of the body, to be kept until somebody takes it."""
        self._waiting.append(data)
        self._size += len(data)
        if self._size > WAITING_BYTES and self._connection is not None:
            self._connection.pause()
        self._wake()

    def on_chunks(self, data: bytes) -> None:
        """Nothing: the body is wanted without its framing."""

    def on_end(self) -> None:
        """The connection is free for others."""
        self._connection = None
        self._ended = True
        self.close()
        self._wake()

    def on_broken(self, error: UpstreamError) -> None:
        """There will be no more of it."""
        self._error = error
        self._wake()

    def on_writable(self, writable: bool) -> None:
        """The server takes more of the body, or does not."""
        self._writable = writable
        if writable:
            self._wake()

    # --- waiting ------------------------------------------------------------------------------------------------

    @property
    def _is_over(self) -> bool:
        return self._ended or self._error is not None

    def _take(self) -> bytes:
        waiting = self._waiting
        data = waiting.popleft() if len(waiting) == 1 else b"".join(waiting)
        waiting.clear()
        if self._size > WAITING_BYTES and self._connection is not None:
            self._connection.resume()
        self._size = 0
        return data

    async def _change(self, what: str, late: type[httpx.TimeoutException]) -> None:
        """Wait until something has happened. Raises that exception if nothing does."""
        loop = asyncio.get_running_loop()
        patience_s = self.timeouts.get(what)
        waiter = self._waiter = loop.create_future()
        timer = None if patience_s is None else loop.call_later(patience_s, _give_up, waiter)
        try:
            if not await waiter:
                raise late(f"nothing has happened for {patience_s:g} s")
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)


def _give_up(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)


def _head(request: httpx.Request) -> bytes:
    """Raises httpx.LocalProtocolError if it would be another than it seems."""
    lines = [b"%b %b HTTP/1.1\r\n" % (request.method.encode("ascii"), request.url.raw_path)]
    lines += [b"%b: %b\r\n" % pair for pair in request.headers.raw]
    head = b"".join([*lines, b"\r\n"])
    if not _is_head(head) or head.count(b"\n") != len(lines) + 1:
        raise httpx.LocalProtocolError("the request's method, path or headers have characters that they cannot have")
    return head


def _is_chunked(request: httpx.Request) -> bool:
    return "transfer-encoding" in request.headers
