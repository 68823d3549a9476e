"""One client's connection. Requests to inference paths are served in its own calls, all others by uvicorn as ever.

A subclass of uvicorn's protocol on httptools. What is stricter here is said where it is: a proxy must not pass on what
others might read in another way (RFC 9112, 11.2).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import httptools

from sidecar.mechanism.outbox import Posted
from sidecar.mechanism.repeats import Repeats
from sidecar.surfaces.dataplane import websockets
from sidecar.surfaces.dataplane.call import Call
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.heads import HEAD_BYTES, BadRequestError, check_size, read
from sidecar.surfaces.dataplane.incoming import Incoming
from sidecar.surfaces.dataplane.known import Known
from sidecar.surfaces.dataplane.plane import Plane
from sidecar.surfaces.dataplane.quick import quick
from sidecar.surfaces.dataplane.routing import Way
from sidecar.surfaces.dataplane.turn import Turn
from sidecar.surfaces.dataplane.turns import LINGER_S, NOT_THE_APPLICATIONS, InTurn, Phase
from sidecar.surfaces.dataplane.upload import Upload
from sidecar.surfaces.dataplane.uploading import STREAM_BYTES, Uploading
from sidecar.surfaces.dataplane.wire import Wire

log = logging.getLogger(__name__)

LINGER_BYTES = 2 * 2**20
PIPELINE_BYTES = 256 * 1024  # of the body of one of them

_NOTHING = Incoming("", "", "", "", (), "")
_NOWHERE = Way("", "", "", "")


class EdgeProtocol(InTurn):
    """What comes in: requests, and what is none."""

    def __init__(self, plane: Plane, **uvicorns: Any) -> None:
        super().__init__(plane, **uvicorns)
        # Without the leniency that uvicorn allows: what comes after the last request is no request.
        self.parser = httptools.HttpRequestParser(self)
        self._repeats = Repeats()
        self._known: Known | None = None  # the request whose head may come again: that which `_repeats` knows
        self._parsed: Known | None = None  # the latest of which that may be said
        self._head_bytes = 0
        self._is_large = False
        self._discarded = 0

    # --- the connection -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(Posted(cast(asyncio.Transport, transport), self.plane.pool.outbox))
        self.since = self.loop.time()
        if not self.plane.connected(self):
            message = "the sidecar has as many connections as it may (max_connections)"
            error = ApiError(503, "too_many_connections", message, retry_after_s=1.0)
            self._deaf = True
            self.phase = Phase.BODY  # for all that is known, a request is on its way
            wire = Wire(self.transport, self._hang_up, _ignore, http11=True)
            wire.keep_alive = False
            wire.answer(error.status, error.response_headers(), error.body())
            self.loop.call_later(LINGER_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self.plane.disconnected(self)
        if self._quick is not None:
            self.slow_down()
        self._deaf = True
        turns, self._turns = self._turns, []
        for turn in turns:
            turn.wire.gone()
            if turn.answering is not None:
                turn.answering.left()
            else:
                self.plane.abandoned += 1
        self.pipeline.clear()
        super().connection_lost(exc)
        self._turn = None
        self.cycle = NOT_THE_APPLICATIONS

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._discard(data)
            return
        if self._quick is not None:
            self.slow_down()
        first = self.phase is Phase.IDLE
        if first:
            self.since = self.loop.time()
            known = self._known
            if known is not None:
                body = self._repeats.body_of(data)
                if body is not None and self._read_again(known, body):
                    return
            self.phase = Phase.HEAD
            self._known = self._parsed = None
        elif self.phase is not Phase.HEAD:
            self.since = self.loop.time()
        rest = self._read(data)
        parsed = self._parsed
        if first and parsed is not None and not rest:
            self._known = parsed if self._repeats.learn(data, parsed.length) else None
        while rest and not self._deaf:
            rest = self._read(rest)

    def _read_again(self, known: Known, body: bytes) -> bool:
        """A whole request whose head is known, but for the length of its body; False if it has to be parsed."""
        plane, length = self.plane, self._repeats.length
        if known.generation is not plane.generations.current:
            return False  # who may read the answer, among others, may be said anew
        self.phase = Phase.BUSY
        one = self._quick = quick(self, plane, known, length, body, self.since)
        if one is not None:
            plane.accepted += 1
            one.run(body)
            return True
        way = plane.way(known.method, known.url)
        if length > plane.max_body or way.error is not None or not way.found:
            return False
        if length != known.length:
            known.resize(length)
        wire = Wire(self.transport, self._hang_up, self._answered, http11=True)
        wire.extra = known.extra
        turn = self._turn = Turn(wire, known.incoming, way, self.since)
        turn.length = turn.size = length
        turn.received = True
        turn.body.append(body)
        self._queue(turn)
        self._begin(turn)
        return True

    def _read(self, data: bytes) -> bytes:
        """What was not read of it, since the client has offered to speak something else."""
        turn = self._turn
        if turn is not None and turn.tunnel is not None and turn.received:
            turn.tunnel.feed(data)
            return b""
        self._is_large = self._head_bytes + len(data) > HEAD_BYTES
        try:
            self.parser.feed_data(data)
            if self._in_head:  # since this read, most of which may have been of other requests, or since one before
                self._head_bytes += len(data) if self._head_bytes else min(len(data), HEAD_BYTES)
            if self._in_head and self._head_bytes > 2 * HEAD_BYTES:
                raise BadRequestError(431, f"the head of the request has more than {HEAD_BYTES} bytes")
        except httptools.HttpParserUpgrade as upgrade:
            return data[upgrade.args[0] :]  # which nobody has to take up (RFC 9110, 7.8)
        except httptools.HttpParserError as error:
            cause = error.__context__
            if not isinstance(cause, BadRequestError):
                cause = BadRequestError(400, f"this is not an HTTP request: {error}")
            self._malformed(cause)
        except BadRequestError as error:
            self._malformed(error)
        return b""

    # --- from the parser ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._deaf:
            raise BadRequestError(400, "nothing may follow what was refused")
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
            facts.request_id,
        )
        wire = Wire(self.transport, self._hang_up, self._answered, http11=facts.http11)
        wire.keep_alive = facts.http11 and parser.should_keep_alive()
        wire.head_only = way.method == "HEAD"
        wire.expects_continue = facts.expects_continue
        turn = self._turn = Turn(wire, incoming, way, self.since)
        turn.length = facts.length
        self.phase = Phase.BODY
        turn.error = self._too_large() if facts.length > self.plane.max_body else way.error
        cors = self.plane.cors
        if cors is not None:
            wire.extra = cors.lines(incoming.method, incoming.headers)
            turn.error = cors.asked_before(incoming.method, incoming.headers) or turn.error
        if turn.error is None and wire.keep_alive and facts.length and not (facts.upgrade or facts.expects_continue):
            generation = self.plane.generation
            self._parsed = Known(parser.get_method(), self.url, incoming, facts.length, wire.extra, generation)
        if facts.upgrade:
            websockets.offer(turn, facts, cors, self.flow)
        self._queue(turn)

    def on_body(self, body: bytes) -> None:
        turn = self._turn
        if turn is None:
            super().on_body(body)
            return
        turn.size += len(body)
        if turn.error is not None:
            self._welcome(turn)
        elif turn.size > self.plane.max_body:
            turn.error = self._too_large()
            turn.body.clear()
            self._refuse_rest(turn, turn.error)
        elif turn.call is not None:
            turn.call.more(body)
        else:
            turn.body.append(body)
            if turn.size > STREAM_BYTES and turn.way.found and self._first(turn):
                self._look_at(turn, body)
            if self.pipeline and turn.size > PIPELINE_BYTES:
                self.flow.pause_reading()

    def on_message_complete(self) -> None:
        turn = self._turn
        if turn is None:
            self.phase = Phase.BUSY
            super().on_message_complete()
            if self.cycle.response_complete:
                self._rest()
            return
        turn.received = True
        if self._deaf:
            return
        self.phase = Phase.BUSY
        if turn.call is not None:
            turn.call.complete()
        elif self._turns and self._turns[0] is turn and turn.answering is None and self._first(turn):
            self._begin(turn)

    def _look_at(self, turn: Turn, body: bytes) -> None:
        """Pass a large body on while it comes, if it can be told what becomes of it."""
        upload = turn.upload
        try:
            if upload is None:
                if len(turn.body) > 1 and turn.size - len(body) > STREAM_BYTES:
                    return  # it was looked at before, and has to be gathered
                upload = turn.upload = Upload(turn.incoming.content_type, self.plane.max_body)
                body = turn.whole()
                turn.body.append(body)
            upload.feed(body)
        except ApiError:
            turn.upload = None  # what is wrong with it is told to whom plugins have let in
            return
        if not upload.known:
            return
        if not self.plane.may_stream(turn.way, upload.model):
            turn.upload = None
            return
        turn.body.clear()
        turn.wire.paused = self.flow.write_paused
        uploading = Uploading(upload, turn.length, self._pause_client)
        uploading.size = turn.size
        call = turn.answering = turn.call = Call(self.plane, turn.incoming, turn.way.found, turn.wire)
        call.begin_upload(uploading)

    def _pause_client(self, paused: bool) -> None:
        if paused:
            self.flow.pause_reading()
        else:
            self._read_on()

    def _refuse_rest(self, turn: Turn, error: ApiError) -> None:
        """What has come of its body is wrong."""
        if turn.call is not None:
            turn.call.cut_off(error)
        else:
            self._welcome(turn)

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

    def _malformed(self, error: BadRequestError) -> None:
        """Answer what is no request, after those that were; then hang up."""
        if self._deaf:
            return
        log.debug("a client sent what is no request: %s", error)
        self.plane.malformed += 1
        self._deaf = True
        if self._turn is None and self.phase is Phase.BODY:
            self._close()  # the application waits for the rest of a body, and would do so for ever
            return
        turn = self._turn if self._turn is not None and not self._turn.received else None
        if turn is None:
            wire = Wire(self.transport, self._hang_up, self._answered, http11=True)
            turn = Turn(wire, _NOTHING, _NOWHERE, self.since)
            turn.error = ApiError(error.status, "bad_request", str(error))
            self.phase = Phase.BODY
            wire.keep_alive = False
            self._queue(turn)
            self._welcome(turn)
            return
        turn.error = ApiError(error.status, "bad_request", str(error))
        turn.wire.keep_alive = False
        self.phase = Phase.BODY  # so that what is still on its way is waited for
        self._refuse_rest(turn, turn.error)

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
