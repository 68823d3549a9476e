"""One inference request from its first byte to its outcome, whoever carries its bytes.

Find the interface by path and the model by name; authenticate; let the filters have their say; ask a server, starting
one if need be, and relay its answer; whatever happens, give back what was held, record the outcome and end the trace.
What needs not wait for anything happens in the calls of the connections. What has to wait gets a task, one at a time.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Coroutine
from typing import Any

import msgspec
from opentelemetry.trace import SpanKind

from plugin_sdk import End, Outcome, Reject, Request, Usage
from sidecar.control.generations import Generation
from sidecar.control.leases import Lease, Target
from sidecar.mechanism.calls import at_once
from sidecar.mechanism.connections import Connection
from sidecar.mechanism.exchanges import UpstreamError
from sidecar.mechanism.spans import AnyStage
from sidecar.mechanism.traces import AnyTrace
from sidecar.surfaces.dataplane.admission import Admission, Asked, Given
from sidecar.surfaces.dataplane.body import with_model, with_usage
from sidecar.surfaces.dataplane.choosing import Choosing, UnknownModelError
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.incoming import Found, Incoming
from sidecar.surfaces.dataplane.plane import Plane
from sidecar.surfaces.dataplane.relaying import Relaying
from sidecar.surfaces.dataplane.request import UPGRADE, headers_for, passed_on, written
from sidecar.surfaces.dataplane.response import Response
from sidecar.surfaces.dataplane.tunnel import SWITCHING, Switching, Tunnel
from sidecar.surfaces.dataplane.upload import Upload
from sidecar.surfaces.dataplane.uploading import Uploading
from sidecar.surfaces.dataplane.waiting import to_the_end
from sidecar.surfaces.dataplane.wire import Wire
from sidecar.surfaces.dataplane.withheld import UsageWithheld

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


class Call:
    """One request. `begin` it when its body is there; the wire is answered, and the outcome recorded.

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

    # --- from the client ----------------------------------------------------------------------------------------

    def begin(self, body: bytes, upload: Upload | None = None) -> None:
        """The request is complete, or its body is on its way."""
        self._bytes_in = len(body)
        try:
            admission = self.admission
            admission.identify(body, upload)
            self.response.interface = admission.found.interface
            if not admission.waits_for_nothing:
                self.spawn(self._course(body))
                return
            if self._take(at_once(admission.admit(body))) and not self._ask_at_once():
                self.spawn(self._ask())
        except Exception as error:  # noqa: BLE001 - answered, and logged if it is nobody's refusal
            self.fail(error)

    def begin_upload(self, uploading: Uploading) -> None:
        """The request has a large body, of which so much has come that its model is known."""
        self._uploading = uploading
        self._fresh = True  # one that was used may be closed in this moment, and there is no other attempt
        self.begin(b"", uploading.upload)

    def resume(self, size: int, asked: Asked | None, lease: Lease | None) -> None:
        """Go on with what has begun. size: of the body. None: the plugins have not let it in; nothing is leased."""
        self._bytes_in = size
        self._lease = lease
        if asked is not None:
            self._take(asked)

    def answer(self, given: Given) -> None:
        """A plugin has answered."""
        self._take(given)

    def wait(self) -> None:
        """Ask as soon as there is somebody to be asked."""
        if not self._finished:
            self.spawn(self._ask())

    def relay(self, relaying: Relaying, stage: AnyStage) -> None:
        """The lease's server was asked: that is how it is told."""
        self._target = self._lease.target if self._lease is not None else None
        self._relaying = relaying
        self._stage = stage

    def more(self, data: bytes) -> None:
        """More of the body has come."""
        uploading = self._uploading
        if uploading is not None and not self._finished:
            try:
                uploading.feed(data)
            except ApiError as error:
                self.cut_off(error)

    def complete(self) -> None:
        """All of the body has come."""
        uploading = self._uploading
        if uploading is not None and not self._finished:
            try:
                uploading.finish()
            except ApiError as error:
                self.cut_off(error)

    def left(self) -> None:
        """The client has gone."""
        if self._finished:
            return
        self.response.left()
        self._stop_relaying()
        if self._task is not None:
            self._task.cancel()  # and then it is finished
        else:
            self._finish()

    def slow(self, paused: bool) -> None:
        """The client does not keep up, or has caught up."""
        if self._relaying is not None:
            self._relaying.slow(paused)

    def cut_off(self, error: ApiError) -> None:
        """End the request now, whatever it waits for."""
        if self._finished:
            return
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        self.fail(error)

    # --- asking -------------------------------------------------------------------------------------------------

    async def _course(self, body: bytes) -> None:
        if self._take(await self.admission.admit(body)) and not self._ask_at_once():
            await self._ask()

    def _take(self, admitted: Asked | Given) -> bool:
        """Whether a server is to be asked."""
        self.response.interface = self.admission.found.interface
        if isinstance(admitted, Given):
            self.response.give(admitted.answer, f"answered_by:{admitted.by}")
            self._finish()
            return False
        if self._tunnel is not None:
            self._tunnel.check(admitted.passage)
        self._asked = admitted
        self._choosing = Choosing(self._plane.controller, admitted, self.response, self._trace)
        return True

    def _ask_at_once(self) -> bool:
        """Ask if a server and a connection to it are there; whether it was."""
        choosing = self._choosing
        if choosing is None:
            return False
        self._lease = choosing.at_once()
        if self._lease is None:
            return False
        self._target = self._lease.target
        origin = self._plane.origin(self._target.base_url)
        connection = None if self._fresh else self._plane.pool.take(origin)
        if connection is None:
            return False
        try:
            self._send(connection)
        except UpstreamError:
            self._fresh = True  # it was closed in this moment
            return False
        return True

    async def _ask(self, error: UpstreamError | None = None) -> None:
        """Ask, and again if it cannot have been noticed. error: why the attempt before has failed."""
        choosing = self._choosing
        if choosing is None:
            return
        while True:
            if error is not None:
                await self._again(error, choosing)
            try:
                asked_routes = self._attempt == 0 and self._asked is not None and self._asked.chain.route_inline
                self._lease = self._lease or await choosing.lease(asked_routes=asked_routes)
                self._target = self._lease.target
                origin = self._plane.origin(self._target.base_url)
                pool = self._plane.pool
                connection = (None if self._fresh else pool.take(origin)) or await pool.connect(origin)
                self._send(connection)
                return
            except UpstreamError as failed:
                error = failed

    async def _again(self, error: UpstreamError, choosing: Choosing) -> None:
        """Get ready for another attempt. Raises UpstreamError if there is none to be had."""
        self._attempt += 1
        lease, target = self._lease, self._target
        sent = self._uploading is not None and self._uploading.begun
        if error.processed or sent or lease is None or target is None or self._attempt >= choosing.attempts:
            raise await self._told(error) from error
        log.info("%s: %s; trying again", self.admission.name, error, extra=self._about())
        self._plane.meter.retried(self.admission.known_name)
        if error.reused:
            self._fresh = True  # the server closes idle connections: there is nothing wrong with it
            return
        self._release()
        choosing.tried |= {target.variant}
        if target.origin == "managed" or not choosing.others():
            await asyncio.sleep(0.05 * self._attempt)  # a server that has just died is noticed in this time

    async def _broke_off(self, error: UpstreamError) -> None:
        raise await self._told(error)

    async def _told(self, error: UpstreamError) -> UpstreamError:
        """The error, and how the server ended if it did."""
        why = await self._lease.last_words() if self._lease is not None else ""
        return UpstreamError(f"{error}; {why}" if why else str(error), processed=True)

    def _send(self, connection: Connection) -> None:
        """Raises UpstreamError, ApiError."""
        asked, target = self._asked, self._target
        if asked is None or target is None:
            raise RuntimeError("nothing is asked of nobody")
        request = asked.request
        uploading, tunnel = self._uploading, self._tunnel
        framing = UPGRADE if tunnel is not None else b""
        body, withheld = request.body, None
        renamed = asked.renames_body(target.upstream_model)
        if uploading is not None:
            framing = uploading.framing(target.upstream_model if renamed else None)
        elif renamed:
            body = with_model(body, target.upstream_model, self._content_type(request))
        if uploading is None and self._counts_itself(asked):
            body, withheld = with_usage(body), UsageWithheld()
        passage = asked.passage if asked.passage is not None and asked.passage.sees_answer else None
        if tunnel is None:
            relaying = Relaying(self, self.response, self._wire, passage, withheld)
        else:
            relaying = Switching(self, self.response, self._wire, passage, tunnel)
        plain = self.response.begun or withheld is not None or (passage is not None and passage.sees_body)
        stage = self._stage = self._trace.begin("upstream", SpanKind.CLIENT)
        stage.set("url.full", target.base_url + request.path)
        incoming = self._incoming
        headers = incoming.passed_on if request.headers.raw is incoming.headers else passed_on(request.headers.raw)
        carried = self._trace.carry(headers_for(target, headers, plain=plain), stage)
        path = self._path(request) if not asked.elsewhere else asked.target(target.upstream_model)
        data = written(request.method, path, connection, carried, body, framing)
        connection.ask(
            relaying,
            data,
            head_only=request.method == "HEAD",
            pieces=relaying.pieces,
            upgrade=tunnel is not None,
            more=uploading is not None,
        )
        relaying.connection = connection
        self._relaying = relaying
        if uploading is not None:
            uploading.attach(connection)
        if self._wire.paused:
            connection.pause()
        if target.timeout_s is not None:
            self._timer = asyncio.get_running_loop().call_later(target.timeout_s, self._too_late, target)

    def _content_type(self, request: Request) -> str:
        incoming = self._incoming
        same = request.headers.raw is incoming.headers
        return incoming.content_type if same else request.headers.get("content-type")

    def _path(self, request: Request) -> str:
        """What to ask for: the very same, unless a filter has changed it."""
        incoming = self._incoming
        if request.path is incoming.path and request.query is incoming.query:
            return incoming.target
        return f"{request.path}?{request.query}" if request.query else request.path

    def _counts_itself(self, asked: Asked) -> bool:
        """Whether the stream is to tell its usage to us, though the client has not asked for it."""
        wanted = asked.model is not None and asked.model.count_streams and asked.head.streams
        return wanted and not asked.head.asks_usage and self.admission.found.interface.usage_on_request

    def _too_late(self, target: Target) -> None:
        """The server has not answered within the target's timeout."""
        self._stop_relaying()
        message = f"{target.base_url} did not answer within {target.timeout_s:g} s"
        self.fail(UpstreamError(message, processed=True))

    # --- from the server (relaying.Owner) -----------------------------------------------------------------------

    def headed(self, status: int) -> None:
        self._keep_only_what_is_read()
        self._stop_timer()
        if self._stage is not None:
            self._stage.set("http.response.status_code", status)

    def server_slow(self, paused: bool) -> None:
        if self._uploading is not None:
            self._uploading.slow(paused)

    def answered(self) -> None:
        self._relaying = None
        self._keep_only_what_is_read()
        self._finish()
        self._wire.end()

    def broken(self, error: UpstreamError) -> None:
        relaying = self._relaying
        if relaying is None or relaying.headed:
            self.spawn(self._broke_off(error))
            return
        self._end_stage(error)
        self._stop_timer()
        self._relaying = None
        self.spawn(self._ask(error))

    def refused(self, error: Exception) -> None:
        self._relaying = None
        self.fail(error)

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
