"""One client's connection. Requests to inference paths are served in its own calls, all others by uvicorn as ever.

A subclass of uvicorn's protocol on httptools. What is stricter here is said where it is: a proxy must not pass on what
others might read in another way (RFC 9112, 11.2).
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sidecar.core.manifest import Settings
from sidecar.surfaces.dataplane.call import Call
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.heads import HEAD_BYTES, BadRequestError, check_size, read
from sidecar.surfaces.dataplane.incoming import Incoming
from sidecar.surfaces.dataplane.listing import ListingCall
from sidecar.surfaces.dataplane.plane import Plane
from sidecar.surfaces.dataplane.routing import Way
from sidecar.surfaces.dataplane.turn import Turn
from sidecar.surfaces.dataplane.wire import Wire

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 75.0  # longer than clients keep connections in their pools, so that they are the ones to close them
LINGER_S = 2.0
LINGER_BYTES = 2 * 2**20
PIPELINE_MOST = 16  # requests that wait for one before them; reading on is how it is noticed that the client leaves
PIPELINE_BYTES = 256 * 1024  # of the body of one of them

_NOT_THE_APPLICATIONS: Any = None
_NOTHING = Incoming("", "", "", "", (), "")
_NOWHERE = Way("", "", "", "")


class Phase(enum.Enum):
    """What a connection is waiting for, so that none is held for ever by a client that says nothing."""

    IDLE = "a request"
    HEAD = "the rest of a head"
    BODY = "the rest of a body"
    BUSY = "an answer"
    LINGER = "the client to hang up"


class EdgeProtocol(HttpToolsProtocol):
    """phase, since (of the loop's clock): for whoever looks after connections that stand still."""

    def __init__(self, plane: Plane, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.plane = plane
        self.phase = Phase.IDLE
        self.since = self.loop.time()
        # Without the leniency that uvicorn allows: what comes after the last request is no request.
        self.parser = httptools.HttpRequestParser(self)
        self._turn: Turn | None = None  # whose request comes in, if it is one of ours
        self._turns: list[Turn] = []  # of ours, unfinished, in order
        self._in_head = False
        self._head_bytes = 0
        self._is_large = False
        self._deaf = False  # nothing that comes counts any more
        self._discarded = 0
        self._last = False

    # --- the connection -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self.since = self.loop.time()
        if not self.plane.connected(self):
            message = "the sidecar has as many connections as it may (max_connections)"
            error = ApiError(503, "too_many_connections", message, retry_after_s=1.0)
            self._deaf = True
            wire = Wire(self.transport, self._hang_up, _ignore, http11=True)
            wire.keep_alive = False
            wire.answer(error.status, error.response_headers(), error.body())

    def connection_lost(self, exc: Exception | None) -> None:
        self.plane.disconnected(self)
        self._deaf = True
        turns, self._turns = self._turns, []
        for turn in turns:
            turn.wire.gone()
            if turn.answering is not None:
                turn.answering.left()
        self.pipeline.clear()
        super().connection_lost(exc)
        self._turn = None
        self.cycle = _NOT_THE_APPLICATIONS

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._discard(data)
            return
        if self.phase is Phase.IDLE:
            self._unset_keepalive_if_required()
            self.phase = Phase.HEAD
            self.since = self.loop.time()
        elif self.phase is Phase.BODY:
            self.since = self.loop.time()
        self._is_large = self._head_bytes + len(data) > HEAD_BYTES
        try:
            self.parser.feed_data(data)
            if self._in_head:
                self._head_bytes += len(data)
            if self._in_head and self._head_bytes > 2 * HEAD_BYTES:
                raise BadRequestError(431, f"the head of the request has more than {HEAD_BYTES} bytes")
        except httptools.HttpParserUpgrade as upgrade:
            self._after_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            cause = error.__context__
            if not isinstance(cause, BadRequestError):
                cause = BadRequestError(400, f"this is not an HTTP request: {error}")
            self._malformed(cause)
        except BadRequestError as error:
            self._malformed(error)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._tell_slow(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._tell_slow(False)

    def _tell_slow(self, paused: bool) -> None:
        turn = self._turns[0] if self._turns else None
        if turn is None:
            return
        turn.wire.pause(paused)
        if paused:
            self.since = self.loop.time()
        if turn.answering is not None:
            turn.answering.slow(paused)

    def cut_off(self, error: ApiError) -> None:
        """End what is being answered, and the connection."""
        for turn in list(self._turns):
            turn.wire.keep_alive = turn.wire.keep_alive and turn.wire.begun
            if turn.answering is not None:
                turn.answering.cut_off(error)
        self.transport.close()

    def shutdown(self) -> None:
        """The server ends: what is being answered is the last."""
        self._last = True
        if self._turns:
            for turn in self._turns:
                turn.wire.keep_alive = False
        else:
            super().shutdown()

    def look_after(self, now: float, settings: Settings) -> None:
        """End it, if nothing has moved for too long."""
        stood_s = now - self.since
        if self.phase in (Phase.IDLE, Phase.LINGER):
            if stood_s > (KEEP_ALIVE_S if self.phase is Phase.IDLE else LINGER_S):
                self.transport.close()
        elif self.phase is Phase.HEAD and stood_s > settings.header_timeout:
            self._malformed(BadRequestError(408, "the head of the request did not come (header_timeout)"))
        elif self.phase is Phase.BODY and self._turn is not None and stood_s > settings.body_timeout:
            self._malformed(BadRequestError(408, "the body of the request did not come (body_timeout)"))
        elif self._turns:
            self._look_after_answer(self._turns[0], now, settings)

    def _look_after_answer(self, turn: Turn, now: float, settings: Settings) -> None:
        if turn.wire.paused and now - self.since > settings.send_timeout:
            self.transport.abort()  # the client takes nothing of it
        elif settings.request_timeout and now - turn.began > settings.request_timeout:
            self.cut_off(ApiError(504, "request_timeout", "the request took too long (request_timeout)"))

    # --- from the parser ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._turn = None
        self._in_head = True
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers mean nothing to anybody, and end here (RFC 9110, 6.5.1)
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        parser, headers = self.parser, self.headers
        if self._is_large:
            check_size(headers)
        facts = read(parser.get_http_version(), headers)
        way = self.plane.way(parser.get_method(), self.url)
        if not way.ours:
            self.expect_100_continue = facts.expects_continue
            self._hand_over()
            return
        client = self.client
        incoming = Incoming(
            way.method,
            way.target,
            way.path,
            way.query,
            tuple(headers),
            client[0] if client else "",
            facts.passed_on,
            facts.content_type,
            facts.traced,
        )
        wire = Wire(self.transport, self._hang_up, self._answered, http11=facts.http11)
        wire.keep_alive = facts.http11 and parser.should_keep_alive()
        wire.head_only = way.method == "HEAD"
        wire.expects_continue = facts.expects_continue
        turn = self._turn = Turn(wire, incoming, way, self.since)
        self.phase = Phase.BODY
        turn.error = self._too_large() if facts.length > self.plane.max_body else way.error
        self._queue(turn)

    def _queue(self, turn: Turn) -> None:
        """Let the turn come when those before it are answered."""
        self.plane.accepted += 1
        before, self.cycle = self.cycle, cast(Any, turn)
        self._turns.append(turn)
        if before is not None and not before.response_complete:
            self.pipeline.appendleft((cast(Any, turn), _NOT_THE_APPLICATIONS))
            if len(self.pipeline) >= PIPELINE_MOST:
                self.flow.pause_reading()
        elif turn.error is not None:
            self._begin(turn)
        elif turn.wire.expects_continue:
            turn.wire.go_on()

    def on_body(self, body: bytes) -> None:
        turn = self._turn
        if turn is None:
            super().on_body(body)
            return
        turn.size += len(body)
        if turn.error is None and turn.size > self.plane.max_body:
            turn.error = self._too_large()
            turn.body.clear()
            self._welcome(turn)
        elif turn.error is None:
            turn.body.append(body)
            if self.pipeline and turn.size > PIPELINE_BYTES:
                self.flow.pause_reading()

    def on_message_complete(self) -> None:
        turn = self._turn
        if turn is None:
            self.phase = Phase.BUSY
            super().on_message_complete()
            return
        turn.received = True
        self.phase = Phase.BUSY
        if self._turns and self._turns[0] is turn and turn.answering is None and self._first(turn):
            self._begin(turn)

    # --- turns --------------------------------------------------------------------------------------------------

    def _welcome(self, turn: Turn) -> None:
        """It is the request's turn: refuse it before its body has come, or let it come."""
        if not self._first(turn):
            return
        if turn.error is not None or turn.received:
            self._begin(turn)
        else:
            turn.wire.go_on()

    def _first(self, turn: Turn) -> bool:
        """Whether nothing before it is unanswered."""
        return not self.pipeline or not any(cast(Any, cycle) is turn for cycle, _ in self.pipeline)

    def _begin(self, turn: Turn) -> None:
        wire = turn.wire
        if turn.answering is not None or wire.complete:
            return
        error = turn.error
        if error is not None:
            if not turn.received:
                wire.keep_alive = False
            turn.body.clear()
            wire.answer(error.status, error.response_headers(), error.body())
        elif turn.way.lists:
            listing = turn.answering = ListingCall(self.plane, turn.incoming, wire)
            listing.begin()
        else:
            call = turn.answering = Call(self.plane, turn.incoming, turn.way.found, wire)
            call.begin(turn.whole())

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """The turn of a request that had to wait for those before it."""
        if isinstance(cycle, Turn):
            self._welcome(cycle)
        else:
            super()._start_asgi_task(cycle, app)

    def _answered(self, wire: Wire) -> None:
        """An answer is complete, or broken off."""
        if self._turns and self._turns[0].wire is wire:
            turn = self._turns.pop(0)
            turn.answering = None
            if turn is self._turn and turn.received:
                self._turn = None
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """What uvicorn does here, without a timer for each request: connections are looked after together."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self._last and not self.pipeline:
            self.transport.close()
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        elif self.phase is Phase.BUSY:
            self.phase = Phase.HEAD if self._in_head else Phase.IDLE
            self.since = self.loop.time()

    def _hang_up(self) -> None:
        """Close the connection; but what was not read would have the system tear it down, and the answer with it."""
        if self.phase is Phase.BODY or (self._turn is not None and not self._turn.received):
            self._deaf = True
            self.phase = Phase.LINGER
            self.since = self.loop.time()
            if self.transport.can_write_eof():
                self.transport.write_eof()
                self.flow.resume_reading()
                return
        self.transport.close()

    def _discard(self, data: bytes) -> None:
        self._discarded += len(data)
        if self._discarded > LINGER_BYTES:
            self.transport.close()

    # --- what is no request of ours -----------------------------------------------------------------------------

    def _hand_over(self) -> None:
        """Let uvicorn have it, in the form that it expects."""
        url, expects = self.url, self.expect_100_continue
        headers = [(name.lower(), value) for name, value in self.headers]
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        self.phase = Phase.BODY
        super().on_headers_complete()

    def _after_upgrade(self, rest: bytes) -> None:
        """The client offers to speak something else, which nobody has to take up (RFC 9110, 7.8)."""
        if rest:
            self.data_received(rest)

    def _malformed(self, error: BadRequestError) -> None:
        """Answer what is no request, after those that were; then hang up."""
        log.debug("a client sent what is no request: %s", error)
        self.plane.malformed += 1
        self._deaf = True
        turn = self._turn if self._turn is not None and not self._turn.received else None
        if turn is None:
            wire = Wire(self.transport, self._hang_up, self._answered, http11=True)
            turn = Turn(wire, _NOTHING, _NOWHERE, self.since)
            turn.error = ApiError(error.status, "bad_request", str(error))
            self.phase = Phase.BODY
            wire.keep_alive = False
            self._queue(turn)
            return
        turn.error = ApiError(error.status, "bad_request", str(error))
        turn.wire.keep_alive = False
        self.phase = Phase.BODY  # so that what is still on its way is waited for
        self._welcome(turn)

    def _too_large(self) -> ApiError:
        return ApiError(413, "body_too_large", f"the body is larger than {self.plane.max_body} bytes")


def _ignore(_: Wire) -> None:
    """Nobody waits for it to be answered."""


Factory = Callable[..., EdgeProtocol]


def factory(plane: Plane) -> Factory:
    """What makes uvicorn a protocol for each connection."""

    def make(**uvicorns: Any) -> EdgeProtocol:
        return EdgeProtocol(plane, **uvicorns)

    return make
