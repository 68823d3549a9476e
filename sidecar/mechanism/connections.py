"""HTTP/1.1 connections to servers, on asyncio and httptools: kept alive, reused, and closed whatever befalls a request.

A connection calls back whoever asked (`Listener`); there is no task and no future for it. Bytes are handed on as they
came, chunk framing included, and the parser is fed only to find where the answer ends; who has to see the body itself
asks for `pieces`. A connection that is aborted before the end is how a server learns that nobody waits any more.
"""

from __future__ import annotations

import asyncio
from typing import cast

import httptools

from sidecar.mechanism.acknowledged import is_unread
from sidecar.mechanism.answers import HEAD_END, after_heads, read_head, without_lines
from sidecar.mechanism.chunks import ChunkPosition
from sidecar.mechanism.exchanges import Again, Framing, Keeper, Listener, UpstreamError
from sidecar.mechanism.origins import Origin
from sidecar.mechanism.outbox import Posted
from sidecar.mechanism.parsing import Parsing, Piecewise, Whole
from sidecar.mechanism.repeats import Repeats, with_length

HEAD_BYTES = 128 * 1024  # of an answer's head, interim answers included
LEAVE_S = 5.0  # for a server to take what was written, after that is all there will be

_CLOSED = (Framing.CLOSE, Framing.TUNNEL)  # they end with the connection


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time.

    status, reason, headers, content_type (in lower case), framing: of the latest answer, once `on_head` was called.
    passed_on: the headers that are not of this connection alone, and those that tell of the framing.
    between: may be set in `on_head`, if the answer is chunked, to a position that is fed with all of its bytes: whole
    chunks then pass by the parser.
    """

    def __init__(self, pool: Keeper, origin: Origin) -> None:
        self.origin = origin
        self.host_line = b"host: %b\r\n" % origin.host_header
        self.idle_since = 0.0
        self.status = 0
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.passed_on: list[tuple[bytes, bytes]] = []
        self.content_type = b""
        self.framing = Framing.NONE
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._transport: Posted | None = None
        self._closed = False
        self._listener: Listener | None = None
        self._whole = Whole(self)
        self._piecewise = Piecewise(self)
        self._parsing: Parsing = self._whole
        self._repeats = Repeats()
        self._again: Again | None = None  # the answer whose head may come again
        self._uses = 0
        self._written = 0
        self._asking = False  # the request is not complete
        self._paused = False
        self._reset(bodiless=False)

    def _reset(self, *, bodiless: bool, upgrade: bool = False) -> None:
        self._bodiless = bodiless
        self._upgrade = upgrade
        self._unfit = ""  # why the answer cannot be used
        self._seen = b""  # of the head, until it is whole
        self._interim = 0
        self._headed = False
        self._ended = False
        self.extra = False
        self.between: ChunkPosition | None = None
        self._left = 0  # of the body, where its length was told
        self._before = b""  # what came last

    # --- requests -----------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether another exchange may begin."""
        transport = self._transport
        return not self._closed and self._listener is None and transport is not None and not transport.is_closing()

    def ask(
        self,
        listener: Listener,
        request: bytes,
        *,
        head_only: bool = False,
        pieces: bool = False,
        upgrade: bool = False,
        more: bool = False,
    ) -> None:
        """Write a request, or its head; more of it may follow by `write`. Raises UpstreamError if it is closed.

        head_only: the method is HEAD, so that the answer has no body whatever its head says.
        upgrade: it may switch to another protocol (101). more: the request is complete only when `asked` says so.
        """
        transport = self._transport
        if transport is None or self._closed or transport.is_closing():
            raise UpstreamError("the connection was closed", processed=False, reused=True)
        self._reset(bodiless=head_only, upgrade=upgrade)
        self._listener = listener
        self._asking = more
        self._parsing = self._piecewise if pieces else self._whole
        self._uses += 1
        self._written += len(request)
        transport.write(request)

    def hand_over(self, listener: Listener) -> None:
        """Have the rest of the answer told to somebody else."""
        self._listener = listener

    def write(self, data: bytes) -> None:
        """Write more of the request."""
        if self._transport is not None and not self._closed:
            self._written += len(data)
            self._transport.write(data)

    def asked(self) -> None:
        """The request is complete."""
        self._asking = False

    def abort(self) -> None:
        """Close now, and call back nobody. What was being exchanged is cancelled."""
        self._closed = True
        self._listener = None
        if self._transport is not None:
            self._transport.abort()
        else:
            self._dispose()

    def leave(self) -> None:
        """Close once all that was written is sent, and call back nobody; but do not wait long for that."""
        self._closed = True
        self._listener = None
        if self._transport is not None:
            self._transport.close()
            self._loop.call_later(LEAVE_S, self._transport.abort)

    def pause(self) -> None:
        """Read no further: whoever takes the answer is slow."""
        if self._transport is not None and not self._closed:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and not self._closed:
            self._paused = False
            self._transport.resume_reading()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        self._transport = Posted(transport, self._pool.outbox)
        if self._closed:  # given up while it was being made
            self._transport.abort()

    def pause_writing(self) -> None:
        if self._listener is not None:
            self._listener.on_writable(False)

    def resume_writing(self) -> None:
        if self._listener is not None:
            self._listener.on_writable(True)

    def data_received(self, data: bytes) -> None:
        listener = self._listener
        between = self.between
        if between is not None and listener is not None and between.skips(data):
            self._before = data
            listener.on_chunks(data)
        elif listener is None:
            self._lose()  # nobody asked for anything
        elif self.framing is Framing.TUNNEL and self._headed:
            listener.on_data(data)
        elif self._headed:
            self._feed(data)
            if self._listener is not None:
                self._pass_on(data)
        elif self._seen or self._bodiless or self._parsing.pieces or (body := self._repeats.body_of(data)) is None:
            self._begin(data)
        else:
            self._begin_again(listener, body)

    def eof_received(self) -> None:
        """The server will send no more. How much of the request it has got is known only while there is a socket."""
        self._fail_or_end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail_or_end(exc)
        self._closed = True
        self._transport = None
        self._dispose()

    def _dispose(self) -> None:
        """Let go of all that refers back to this object, so that nothing waits for the garbage collector."""
        self._whole.dispose()
        self._piecewise.dispose()

    # --- answers ------------------------------------------------------------------------------------------------

    def _begin(self, data: bytes) -> None:
        """Bytes of a head, and perhaps what follows it."""
        seen = self._seen = self._seen + data if self._seen else without_lines(data)
        self._feed(data)
        listener = self._listener
        if listener is None:
            return
        if self._unfit:
            self._fail(self._unfit)
            return
        if not self._headed:
            if len(seen) > HEAD_BYTES:
                self._fail(f"its head is larger than {HEAD_BYTES} bytes")
            return
        self._seen = b""
        if seen is data:
            self._learn(data, self._left)
        rest = after_heads(seen, self._interim + 1)
        if rest is None:
            self._fail("it does not speak HTTP: its head has no end")
            return
        self._tell(listener, rest)

    def _tell(self, listener: Listener, rest: bytes) -> None:
        """The head is known, and this is what came after it."""
        listener.on_head(self)
        now = self._listener
        if now is None:
            return  # it was not wanted
        if self.framing is Framing.TUNNEL:
            if rest:
                now.on_data(rest)
        elif rest or self._ended:
            self._pass_on(rest)
        else:
            now.on_pause()

    def _begin_again(self, listener: Listener, body: bytes) -> None:
        """A whole answer whose head is known, but for the length of its body."""
        length, again = self._repeats.length, self._again
        if again is None:
            raise RuntimeError("a head is known, and nobody knows what it says")
        self._headed = self._ended = True
        self.framing = Framing.LENGTH
        if listener.on_whole(again, body):
            self._listener = None
            self._go_idle()
            return
        self.status, self.reason, self.content_type = again.status, again.reason, again.content_type
        self.headers, self.passed_on = again.headers, again.passed_on
        if length != again.length:
            self.headers, self.passed_on = with_length(self.headers, length), with_length(self.passed_on, length)
        self._left = length
        self._tell(listener, body)

    def _learn(self, data: bytes, length: int) -> None:
        """Know the head of this answer when it comes again, if it is one that can be known."""
        plain = self.framing is Framing.LENGTH and self._ended and not self.extra and not self._interim
        if plain and self._parsing.keep_alive and not self._parsing.pieces and self._repeats.learn(data, length):
            self._again = Again(self, length)

    def _feed(self, data: bytes) -> None:
        try:
            self._parsing.feed(data)
        except httptools.HttpParserUpgrade:
            if self.status != 101:
                self._fail("it switched to another protocol")
        except httptools.HttpParserError as error:
            if self._ended:
                self.extra = True
            else:
                self._fail(f"it does not speak HTTP: {error}")

    def _pass_on(self, data: bytes) -> None:
        """Bytes after the head that were fed to the parser."""
        listener = self._listener
        if listener is None:
            return
        if self._parsing.pieces:
            data = self._parsing.take()
        elif self._ended:
            data = self._cut(data)
            if self.extra and self.framing is Framing.CHUNKED:
                self._fail("it sent more than its answer")
                return
        else:
            self._left -= len(data)
            self._before = data
        if data:
            listener.on_data(data)
        if self._ended and self._listener is not None:
            self._done()

    def _cut(self, data: bytes) -> bytes:
        """What belongs to the answer, of the bytes in which it ends. Nothing that follows may reach a client."""
        if self.framing is Framing.NONE:
            self.extra = self.extra or bool(data)
            return b""
        if self.framing is Framing.LENGTH:
            over = len(data) - self._left
            self.extra = self.extra or over > 0
            return data[: self._left] if over > 0 else data
        # The parser passes over line ends between answers, so these are all that it may not have told of.
        last = self._before[-4:] + data if len(data) < 8 else data
        over = len(last) - len(last.rstrip(b"\r\n")) - len(HEAD_END)
        return data[:-over] if over > 0 else data

    def _done(self) -> None:
        """The answer is complete; the connection may be used again if nothing speaks against it."""
        listener, self._listener = self._listener, None
        if not self.extra and self._parsing.keep_alive and self.framing not in _CLOSED:
            if self._bodiless:
                self._parsing.forget()  # it waits for a body that does not come
            self._go_idle()
        else:
            self.abort()
        if listener is not None:
            listener.on_end()

    def _go_idle(self) -> None:
        """Be there for another request, if the last one was complete."""
        transport = self._transport
        if self._asking or transport is None or self._closed or transport.is_closing():
            self.abort()
            return
        self.idle_since = self._loop.time()
        if self._paused:  # by the last piece; its end must be noticed, and the next answer heard
            self.resume()
        self._pool.keep(self)

    def _fail_or_end(self, exc: Exception | None) -> None:
        """No more will come."""
        if self._listener is None:
            self._lose()
        elif self._headed and self._ends_by_closing(exc):
            self._ended = True
            self._done()
        else:
            why = str(exc) if exc is not None else "the server closed the connection"
            self._fail(why, processed=not self._unnoticed(exc))

    def _ends_by_closing(self, exc: Exception | None) -> bool:
        return self.framing is Framing.TUNNEL or (self.framing is Framing.CLOSE and exc is None)

    def _lose(self) -> None:
        """An idle connection is of no use any more."""
        if not self._closed:
            self._pool.forget(self)
            self.abort()

    def _unnoticed(self, exc: Exception | None) -> bool:
        """Whether it is certain that the server has not read the request: it closed the connection before."""
        transport = self._transport
        if transport is None or self._uses < 2 or self._seen or self._headed or self._interim:
            return False
        return transport.unsent or is_unread(self.origin, transport.get_extra_info("socket"), self._written, exc)

    def _fail(self, why: str, *, processed: bool = True) -> None:
        listener = self._listener
        self.abort()
        if listener is not None:
            message = f"{self.origin} broke off: {why}"
            listener.on_broken(UpstreamError(message, processed=processed, reused=not processed))

    # --- from the parser ----------------------------------------------------------------------------------------

    def on_begin(self) -> None:
        if self._ended:
            self.extra = True  # another answer, which nobody asked for

    def on_answer(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        if self._ended or self._unfit:
            return  # of another answer, which nobody asked for, or wants
        if status < 100:
            self._unfit = f"its status is {status:03}"
            return
        if status < 200 and status != 101:
            self._interim += 1  # the real one follows (RFC 9110, 15.2)
            if status != 100 and self._listener is not None:
                self._listener.on_interim(status, reason, headers)
            return
        self.status, self.reason, self.headers = status, reason, headers
        head = read_head(status, headers, upgrade=self._upgrade)
        self.passed_on, self.content_type = head.passed_on, head.content_type
        self._left, self._unfit = head.length, head.unfit
        self.framing = Framing.NONE if self._bodiless and status != 101 else head.framing
        self._headed = True
        if self._bodiless:
            self._ended = True

    def on_complete(self) -> None:
        if self._headed:
            self._ended = True
