"""How a request ends, whichever way: what is held is given back, the outcome recorded, the trace ended."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Coroutine
from typing import Any

import msgspec

from plugin_sdk import End, Outcome, Reject, Usage
from sidecar.control.generations import Generation
from sidecar.control.leases import Lease, Target
from sidecar.mechanism.exchanges import UpstreamError
from sidecar.mechanism.spans import AnyStage
from sidecar.mechanism.traces import AnyTrace
from sidecar.surfaces.dataplane.admission import Admission, Asked
from sidecar.surfaces.dataplane.choosing import Choosing, UnknownModelError
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.incoming import Found, Incoming
from sidecar.surfaces.dataplane.plane import Plane
from sidecar.surfaces.dataplane.relaying import Relaying
from sidecar.surfaces.dataplane.response import Response
from sidecar.surfaces.dataplane.tunnel import SWITCHING, Tunnel
from sidecar.surfaces.dataplane.uploading import Uploading
from sidecar.surfaces.dataplane.waiting import to_the_end
from sidecar.surfaces.dataplane.wire import Wire

log = logging.getLogger(__name__)


class Start(msgspec.Struct, frozen=True, gc=False):
    """When a request has begun, on the monotonic clock and in unix seconds; on a generation that it has entered."""

    generation: Generation
    trace: AnyTrace
    at_s: float
    unix_s: float


def begun(plane: Plane, incoming: Incoming, operation: str) -> Start:
    """A request begins now."""
    generation, clock = plane.generation, plane.controller.clock
    generation.enter()
    told = incoming.headers if incoming.traced else ()
    trace = plane.traces.begin(told, operation, incoming.method, incoming.path)
    return Start(generation, trace, clock.monotonic(), clock.unix())


class Ending:
    """What is known of one request, and what can go wrong with it.

    start: if it has begun already. response, admission: what has come of it so far.
    """

    def __init__(
        self,
        plane: Plane,
        incoming: Incoming,
        candidates: tuple[Found, ...],
        wire: Wire,
        tunnel: Tunnel | None = None,
        start: Start | None = None,
    ) -> None:
        if start is None:
            start = begun(plane, incoming, candidates[0].endpoint.operation)
        self._plane = plane
        self._start = start
        self._generation = start.generation
        self._trace = start.trace
        self._incoming = incoming
        self._wire = wire
        self._tunnel = tunnel
        self._clock = plane.controller.clock
        self.response = Response(wire, self._clock)
        self.admission = Admission(self._generation, incoming, candidates, self._trace)
        self.response.interface = self.admission.found.interface
        self._choosing: Choosing | None = None
        self._asked: Asked | None = None
        self._lease: Lease | None = None
        self._target: Target | None = None
        self._relaying: Relaying | None = None
        self._stage: AnyStage | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._attempt = 0
        self._fresh = False  # no connection that was used before
        self._uploading: Uploading | None = None
        self._bytes_in = 0
        self._finished = False

    # --- a task, for what has to wait ---------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._task = self._plane.loop.create_task(self._guarded(work))
        self._task.add_done_callback(functools.partial(self._over, work))

    def _over(self, work: Coroutine[Any, Any, None], task: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first step does nothing at all."""
        work.close()
        if self._task is task:
            self._task = None
            self._finish()

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError:
            if self._task is asyncio.current_task():
                self._task = None
                self._finish()
            raise
        except Exception as error:  # noqa: BLE001 - answered, and logged if it is nobody's refusal
            self._task = None
            self.fail(error)
        finally:
            if self._task is asyncio.current_task():
                self._task = None

    # --- ends ---------------------------------------------------------------------------------------------------

    def fail(self, error: Exception) -> None:
        """Answer with an error, or break off."""
        if self._finished:
            return
        self._end_stage(error)
        relaying, self._relaying = self._relaying, None
        # Nothing may be framed by us as long as the server's own framing is open.
        at_boundary = relaying is None or relaying.end_chunk()
        if relaying is not None:
            relaying.stop()
        self._keep_only_what_is_read()
        refusal, end = self._worded(error)
        if not at_boundary:
            self.response.tail.streamed = False
        self.response.refuse(refusal, end)
        self._finish()

    def _keep_only_what_is_read(self) -> None:
        """The connection is of no use any more if the rest of the body is still to come on it."""
        if self._uploading is not None and not self._uploading.whole:
            self._wire.keep_alive = False

    def _worded(self, error: Exception) -> tuple[ApiError, End]:
        if isinstance(error, ApiError):
            return error, End.REFUSED
        if isinstance(error, Reject):
            return ApiError.rejected(error), End.REFUSED
        if isinstance(error, UnknownModelError):
            return self.admission.unknown_model(), End.REFUSED
        if isinstance(error, UpstreamError):
            log.warning("%s: %s", self.admission.name, error, extra=self._about())
            return ApiError(502, "upstream_failed", str(error)), End.UPSTREAM_FAILED
        log.error("%s %s failed", self._incoming.method, self._incoming.path, exc_info=error, extra=self._about())
        message = "the sidecar failed on this request; its log says how"
        return ApiError(500, "internal_error", message), End.REFUSED

    def _about(self) -> dict[str, object]:
        """What a line of the log tells of the request, beside its text."""
        target = self._target
        return {
            "per_request": True,
            "trace_id": self._trace.id,
            "span_id": self._trace.span_id,
            "model": self.admission.name if target is not None else self.admission.known_name,
            **({"request_id": self._incoming.request_id} if self._incoming.request_id else {}),
            **({"variant": target.variant} if target is not None else {}),
        }

    def _finish(self) -> None:
        """Give back what is held, and tell everybody what came of it; the plugins are in use until then."""
        if self._finished:
            return
        self._finished = True
        if self._uploading is not None:
            self._bytes_in = self._uploading.size
            self._uploading.detach()
        self._stop_timer()
        self._release()
        if self._stage is not None:
            self._stage.end()
            self._stage = None
        outcome = self._outcome()
        self._plane.count(outcome, self.admission.found.endpoint.operation)
        if self._choosing is not None:
            self._choosing.finished(outcome)
        self.admission.chain.record(outcome)
        self._trace.end(outcome)
        passage = self.admission.passage
        if passage is None or not passage.has_end:
            self._generation.leave()
        elif passage.end_inline:
            passage.end_now(outcome)
            self._generation.leave()
        else:
            self._plane.later(self._ended(passage.end(outcome)))

    async def _ended(self, end: Coroutine[Any, Any, None]) -> None:
        try:
            await to_the_end(end)
        finally:
            self._generation.leave()

    def _release(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _stop_relaying(self) -> None:
        relaying, self._relaying = self._relaying, None
        if relaying is not None:
            relaying.stop()

    def _end_stage(self, error: Exception) -> None:
        stage, self._stage = self._stage, None
        if stage is not None:
            stage.fail(type(error).__name__, str(error))
            stage.end()

    def _usage(self) -> Usage | None:
        if self._asked is None or self.response.first_byte_at is None or self.response.status == SWITCHING:
            return None  # no server has counted anything, or nobody knows where
        response = self.response
        tail = response.tail.read(chunked=response.chunked)
        return self.admission.found.interface.usage(tail, response.tail.streamed)

    def _outcome(self) -> Outcome:
        admission, response, target, start = self.admission, self.response, self._target, self._start
        first_byte_at = response.first_byte_at
        now = self._clock.monotonic()
        return Outcome(
            model=admission.name if target is not None else admission.known_name,
            variant=target.variant if target is not None else "",
            mode=admission.found.mode,
            method=self._incoming.method,
            path=self._incoming.path,
            client=self._incoming.client,
            principal=admission.principal.id,
            key=admission.principal.key,
            end=response.end,
            status=response.status,
            code=response.code,
            streamed=response.tail.streamed or response.status == SWITCHING,
            cold=target is not None and target.cold is not None,
            started_s=start.unix_s,
            duration_s=now - start.at_s,
            queue_s=self._choosing.queue_s if self._choosing is not None else 0.0,
            first_byte_s=None if first_byte_at is None else first_byte_at - start.at_s,
            bytes_in=self._bytes_in if self._tunnel is None else self._tunnel.size,
            bytes_out=response.tail.total,
            usage=self._usage(),
            trace_id=self._trace.id,
            request_id=self._incoming.request_id,
        )
