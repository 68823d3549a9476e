"""The requests of one client's connection, answered in their order; and what ends those on which nothing moves.

uvicorn's protocol keeps what waits in `pipeline`, and what is being answered in `cycle`. Requests of ours are in both
as `Turn`s, beside its own.
"""

from __future__ import annotations

import abc
import enum
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sidecar.core.manifest import Settings
from sidecar.surfaces.dataplane.call import Call
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.heads import BadRequestError
from sidecar.surfaces.dataplane.listing import ListingCall
from sidecar.surfaces.dataplane.plane import Plane
from sidecar.surfaces.dataplane.quick import Quick
from sidecar.surfaces.dataplane.turn import Turn
from sidecar.surfaces.dataplane.uploading import has_left
from sidecar.surfaces.dataplane.wire import Wire

KEEP_ALIVE_S = 75.0  # longer than clients keep connections in their pools, so that they are the ones to close them
LINGER_S = 2.0
PIPELINE_MOST = 16  # requests that wait for one before them; reading on is how it is noticed that the client leaves

NOT_THE_APPLICATIONS: Any = None  # in the place of what uvicorn has for a request of its own


class Phase(enum.Enum):
    """What a connection is waiting for, so that none is held for ever by a client that says nothing."""

    IDLE = "a request"
    HEAD = "the rest of a head"
    BODY = "the rest of a body"
    BUSY = "an answer"
    LINGER = "the client to hang up"


class InTurn(HttpToolsProtocol, abc.ABC):
    """phase, since (of the loop's clock): for whoever looks after connections that stand still."""

    def __init__(self, plane: Plane, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.plane = plane
        self.phase = Phase.IDLE
        self.since = self.loop.time()
        self._turn: Turn | None = None  # whose request comes in, if it is one of ours
        self._turns: list[Turn] = []  # of ours, unfinished, in order
        self._quick: Quick | None = None  # in place of the only one
        self._in_head = False
        self._deaf = False  # nothing that comes counts any more
        self._advancing = False
        self._last = False

    @abc.abstractmethod
    def _malformed(self, error: BadRequestError) -> None:
        """Answer what is no request, after those that were; then hang up."""

    def _queue(self, turn: Turn) -> None:
        """Let the turn come when those before it are answered."""
        self.plane.accepted += 1
        before, self.cycle = self.cycle, cast(Any, turn)
        self._turns.append(turn)
        if before is not None and not before.response_complete:
            turn.began = self.loop.time()
            self.pipeline.appendleft((cast(Any, turn), NOT_THE_APPLICATIONS))
            if len(self.pipeline) >= PIPELINE_MOST:
                self.flow.pause_reading()
        elif turn.error is not None:
            if turn.length or turn.wire.expects_continue:
                self._begin(turn)  # before any of its body comes; without one, the connection may be kept
        elif turn.wire.expects_continue:
            turn.wire.go_on()

    def slow_down(self) -> Call:
        """What was quick gets its turn, as any other request (`quick.Edge`)."""
        quick, self._quick = self._quick, None
        if quick is None:
            raise RuntimeError("nothing here is quick")
        wire = Wire(self.transport, self._hang_up, self._answered, http11=True)
        wire.paused = self.flow.write_paused
        turn = self._turn = Turn(wire, quick.incoming, quick.way, quick.began)
        turn.length = turn.size = quick.size
        turn.received = True
        self._turns.append(turn)
        self.cycle = cast(Any, turn)
        call = turn.answering = quick.become(wire)
        return call

    def quick_ended(self) -> None:
        """The answer is complete, and the next request may come (`quick.Edge`)."""
        self._quick = None
        self.server_state.total_requests += 1
        self.since = self.loop.time()
        if not self.transport.is_closing():
            self.phase = Phase.IDLE

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
        wire.paused = self.flow.write_paused
        error = turn.error
        if error is not None:
            if not turn.received:
                wire.keep_alive = False
            turn.body.clear()
            self.plane.refused_early += 1
            wire.answer(error.status, error.response_headers(), error.body_for(turn.way.errors_of))
        elif turn.way.lists:
            listing = turn.answering = ListingCall(self.plane, turn.incoming, wire)
            listing.begin()
        else:
            call = turn.answering = Call(self.plane, turn.incoming, turn.way.found, wire, turn.tunnel)
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
                if turn.tunnel is None:
                    self._turn = None
                else:
                    self.loop.call_soon(self._go_on_after, turn)  # when this answer is done with
        self.on_response_complete()

    def _go_on_after(self, turn: Turn) -> None:
        """What came after a request for a WebSocket that the client has not got is its next one."""
        early = turn.tunnel.take() if turn.tunnel is not None else b""
        if self._turn is turn:
            self._turn = None
            if early:
                self.data_received(early)

    def on_response_complete(self) -> None:
        """What uvicorn does here, without a timer for each request: connections are looked after together."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self.since = self.loop.time()
        elif self.pipeline:
            self._advance()
        else:
            self._rest()

    def _advance(self) -> None:
        """Begin what waits: in a loop, since each may be answered in the very call that begins it."""
        if self._advancing:
            return
        self._advancing = True
        cycle: Any = self.cycle
        while self.pipeline and self.phase is not Phase.LINGER and not self.transport.is_closing():
            cycle, app = self.pipeline.pop()
            if len(self.pipeline) < PIPELINE_MOST:
                self._read_on()
            self._start_asgi_task(cycle, app)
            if not cycle.response_complete:
                break
        self._advancing = False
        if cycle.response_complete and not self.transport.is_closing():
            self._rest()

    def _rest(self) -> None:
        """Wait for the next request, if there is not some of it already."""
        if self._last:
            self._close()
            return
        self.flow.resume_reading()
        if self.phase is Phase.BUSY:
            self.phase = Phase.HEAD if self._in_head else Phase.IDLE
            self.since = self.loop.time()

    def _read_on(self) -> None:
        """Have the client go on; as long as it was not read, it was not slow."""
        if self.flow.read_paused:
            self.since = self.loop.time()
            self.flow.resume_reading()

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
        self._close()

    def _close(self) -> None:
        """Close it when all is written."""
        self.since = self.loop.time()
        self.transport.close()

    # --- from outside -------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        if self._quick is not None:
            self.slow_down()
        super().pause_writing()
        self.since = self.loop.time()
        self._tell_slow(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._tell_slow(False)

    def _tell_slow(self, paused: bool) -> None:
        turn = self._turns[0] if self._turns else None
        if turn is None:
            return
        turn.wire.pause(paused)
        if turn.answering is not None:
            turn.answering.slow(paused)

    def cut_off(self, error: ApiError) -> None:
        """End what is being answered, and the connection."""
        if self._quick is not None:
            self.slow_down()
        for turn in list(self._turns):
            turn.wire.keep_alive = turn.wire.keep_alive and turn.wire.begun
            if turn.answering is not None:
                turn.answering.cut_off(error)
        self._close()

    def shutdown(self) -> None:
        """The server ends: what is being answered is the last."""
        self._last = True
        if self._quick is not None:
            self.slow_down()
        if self._turns:
            for turn in self._turns:
                turn.wire.keep_alive = False
        else:
            super().shutdown()

    def look_after(self, now: float, settings: Settings) -> None:
        """End it, if nothing has moved for too long."""
        quick = self._quick
        if quick is not None and settings.request_timeout and now - quick.began > settings.request_timeout:
            self.slow_down()
        stood_s = now - self.since
        waits = not self.flow.read_paused  # for the client: else it is we who do not read
        if (self.flow.write_paused or self.transport.is_closing()) and stood_s > settings.send_timeout:
            self.transport.abort()  # the client takes nothing of what was written
        elif self.phase in (Phase.IDLE, Phase.LINGER):
            if stood_s > (KEEP_ALIVE_S if self.phase is Phase.IDLE else LINGER_S):
                self.transport.close()
        elif waits and self.phase is Phase.HEAD and stood_s > settings.header_timeout:
            self._malformed(BadRequestError(408, "the head of the request did not come (header_timeout)"))
        elif waits and self.phase is Phase.BODY and not self._deaf and stood_s > settings.body_timeout:
            self._malformed(BadRequestError(408, "the body of the request did not come (body_timeout)"))
        elif self._turns and settings.request_timeout and now - self._turns[0].began > settings.request_timeout:
            self.cut_off(ApiError(504, "request_timeout", "the request took too long (request_timeout)"))
        elif not waits and self.phase is Phase.BODY and has_left(self.transport):
            self.transport.abort()
