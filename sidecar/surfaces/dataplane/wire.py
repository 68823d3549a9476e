"""The way back to one request's client: heads, bodies in whichever framing is due, and the ends of both."""

from __future__ import annotations

import asyncio
import enum
import functools
import http
import socket
import struct
from collections.abc import Callable, Iterable

from sidecar.mechanism.upstream import Pair

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_CLOSE = b"connection: close\r\n"
_CORS = b"access-control-"
_CHUNKED = b"transfer-encoding: chunked\r\n"
_REASONS = {status.value: status.phrase.encode() for status in http.HTTPStatus}


class Sending(enum.Enum):
    """How the body of an answer is framed."""

    AS_IT_COMES = "as it comes"  # its bytes are framed already, and the head says how
    CHUNKED = "chunked"
    UNTIL_CLOSED = "until closed"


class Wire:
    """One request's turn on its client's connection.

    http11: the client takes chunks. keep_alive: the connection outlives the answer. paused: the client is slow, and
    nothing more should be written. begun, complete: how far the answer is.
    """

    __slots__ = (
        "_done",
        "_drained",
        "_hang_up",
        "_held",
        "_sending",
        "_transport",
        "begun",
        "complete",
        "expects_continue",
        "extra",
        "head_only",
        "http11",
        "keep_alive",
        "paused",
    )

    def __init__(
        self, transport: asyncio.Transport, hang_up: Callable[[], None], done: Callable[[Wire], None], *, http11: bool
    ) -> None:
        self.http11 = http11
        self.keep_alive = http11
        self.head_only = False
        self.expects_continue = False
        self.begun = False
        self.complete = False
        self.paused = False
        self.extra = b""  # who may read the answer, as header lines, in place of what the server says about that
        self._transport = transport
        self._hang_up = hang_up
        self._done = done
        self._sending = Sending.AS_IT_COMES
        self._held = b""
        self._drained: asyncio.Future[None] | None = None

    def go_on(self) -> None:
        """Tell a client that asked (`Expect: 100-continue`) that its body is wanted (RFC 9110, 10.1.1)."""
        if self.expects_continue and not self.begun:
            self.expects_continue = False
            self._transport.write(_CONTINUE)

    def interim(self, status: int, reason: bytes, headers: Iterable[Pair]) -> None:
        """Write an interim answer, such as 103 (RFC 9110, 15.2)."""
        if self.http11 and not self.begun:
            self._transport.write(b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, reason, lines(headers)))

    def start(
        self, status: int, reason: bytes, headers: Iterable[Pair], sending: Sending, *, hold: bool = False
    ) -> None:
        """Write the head. Names and values must be free of line breaks.

        hold: it may wait for what is written next, or for `flush`.
        """
        self.begun = True
        self._sending = sending
        if self.extra:
            headers = [pair for pair in headers if not pair[0].lower().startswith(_CORS)]
        head = [head_lines(status, reason, headers)]
        if sending is Sending.CHUNKED:
            head.append(_CHUNKED)
        elif sending is Sending.UNTIL_CLOSED:
            self.keep_alive = False
        if self.expects_continue:
            self.keep_alive = False  # whether its body comes now is not to be known
        if not self.keep_alive:
            head.append(_CLOSE)
        if self.extra:
            head.append(self.extra)
        head.append(b"\r\n")
        if hold:
            self._held = b"".join(head)
        else:
            self._transport.write(b"".join(head))

    def resume(self, held: bytes) -> None:
        """Go on with an answer whose head was written, or is held, and whose body goes on as it comes."""
        self.begun = True
        self._held = held

    def flush(self) -> None:
        """Write what was held."""
        held, self._held = self._held, b""
        if held:
            self._transport.write(held)

    def reframe(self, filling: bytes) -> None:
        """The bytes that come were framed by the server, and will be by us from here on: `filling` ends its chunk."""
        self.flush()
        self._transport.write(filling)
        self._sending = Sending.CHUNKED

    def send(self, data: bytes) -> None:
        """Write some of the body."""
        if not data or self.head_only:
            return
        if self._sending is Sending.CHUNKED:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._held:
            data, self._held = self._held + data, b""
        self._transport.write(data)

    def end(self) -> None:
        """The answer is complete."""
        if self.complete:
            return
        self.complete = True
        self.flush()
        if self._sending is Sending.CHUNKED and not self.head_only:
            self._transport.write(_LAST_CHUNK)
        if not self.keep_alive:
            self._hang_up()
        self._done(self)

    def answer(self, status: int, headers: Iterable[Pair], body: bytes) -> None:
        """A whole answer at once."""
        head = list(headers)
        if status in (204, 304):  # RFC 9110, 8.6
            body = b""
        else:
            head.append((b"content-length", b"%d" % len(body)))
        self.start(status, b"", head, Sending.AS_IT_COMES, hold=True)
        self.send(body)
        self.end()

    def break_off(self) -> None:
        """Break the connection, so that nobody takes what was sent for the whole."""
        if self.complete:
            return
        self.complete = True
        self.flush()
        self.keep_alive = False
        if self._sending is Sending.UNTIL_CLOSED:
            self._reset()  # a connection that is closed in good order would be a clean end
        else:
            self._transport.close()
        self._done(self)

    def _reset(self) -> None:
        sock = self._transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    # --- a slow client ------------------------------------------------------------------------------------------

    def pause(self, paused: bool) -> None:
        """The transport's buffer is full, or has been emptied."""
        self.paused = paused
        if not paused and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def drained(self) -> None:
        """Wait until the client has taken most of what was written."""
        while self.paused and not self._transport.is_closing():
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained

    def gone(self) -> None:
        """The client has left: whoever waits for it need not."""
        self.pause(False)


def lines(headers: Iterable[Pair]) -> bytes:
    """Headers as they are written. Names and values must be free of line breaks."""
    return b"".join([b"%b: %b\r\n" % pair for pair in headers])


def head_lines(status: int, reason: bytes, headers: Iterable[Pair]) -> bytes:
    """A head without the empty line at its end."""
    return _status_line(status, reason) + lines(headers)


@functools.lru_cache(maxsize=256)
def _status_line(status: int, reason: bytes) -> bytes:
    return b"HTTP/1.1 %d %b\r\n" % (status, reason or _REASONS.get(status, b""))
