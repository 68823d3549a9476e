"""A request in which nothing is out of the ordinary, from its last byte until a server is asked."""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec
from opentelemetry.trace import SpanKind
from uvicorn.protocols.http.flow_control import FlowControl

from plugin_sdk import ANONYMOUS, Request
from plugin_sdk import Response as Answer
from sidecar.control.leases import Lease, Target
from sidecar.mechanism.chunks import ChunkPosition
from sidecar.mechanism.connections import Connection
from sidecar.mechanism.exchanges import Listener, UpstreamError
from sidecar.mechanism.filters import Passage
from sidecar.mechanism.spans import NO_STAGE, AnyStage
from sidecar.mechanism.traces import UNTRACED, AnyTrace, Unsampled
from sidecar.surfaces.dataplane.admission import Given, authenticated_now, reread
from sidecar.surfaces.dataplane.body import Head, with_model
from sidecar.surfaces.dataplane.call import Call
from sidecar.surfaces.dataplane.courses import Course
from sidecar.surfaces.dataplane.known import Known
from sidecar.surfaces.dataplane.plane import Plane
from sidecar.surfaces.dataplane.relaying import Relaying
from sidecar.surfaces.dataplane.request import headers_for, passed_on, written


class Edge(Protocol):
    """The connection of the request's client."""

    transport: asyncio.Transport
    flow: FlowControl

    def slow_down(self) -> Call:
        """The request becomes a call (`Quick.become`), and has its turn as such."""
        ...

    def quick_ended(self) -> None:
        """The answer is complete."""
        ...


class QuickRequest(Listener):
    """One request (`connections.Listener`). incoming, way: as it came. size: of its body. began: the loop's clock."""

    __slots__ = (
        "_came",
        "_chunked",
        "_connection",
        "_course",
        "_edge",
        "_first_byte_at",
        "_head",
        "_headed",
        "_held",
        "_known",
        "_lease",
        "_passage",
        "_plane",
        "_position",
        "_principal",
        "_relaying",
        "_request",
        "_sent",
        "_stage",
        "_started",
        "_started_unix",
        "_status",
        "_tail",
        "_trace",
        "_write",
        "began",
        "incoming",
        "size",
        "way",
    )

    def __init__(self, edge: Edge, plane: Plane, known: Known, course: Course, head: Head, began: float) -> None:
        incoming = known.incoming
        self.began = began
        self.incoming = incoming
        self.way = course.way
        self.size = known.length
        self._edge = edge
        self._plane = plane
        self._known = known
        self._course = course
        self._head = head
        self._principal = ANONYMOUS
        course.generation.enter()
        self._trace = plane.traces.begin(
            incoming.headers if incoming.traced else (),
            course.found.endpoint.operation,
            incoming.method,
            incoming.path,
        )
        clock = plane.controller.clock
        self._started = clock.monotonic()
        self._started_unix = clock.unix()
        filters = course.filters
        self._passage = Passage(filters, course.max_body) if filters is not None else None
        self._came: Request | None = None
        self._request: Request | None = None  # as the filters have left it
        self._lease: Lease | None = None
        self._connection: Connection | None = None
        self._stage: AnyStage = NO_STAGE
        self._sent = False
        self._headed = False
        self._chunked = False
        self._held = b""  # of the head, until there is something to follow it
        self._position: ChunkPosition | None = None
        self._first_byte_at: float | None = None
        self._relaying: Relaying | None = None  # what has become of it
        self._write = edge.transport.write

    # --- asking -------------------------------------------------------------------------------------------------

    def run(self, body: bytes) -> None:
        """Ask a server, or become a call that says why not."""
        self._trace.asks_for(self._course.requested)
        try:
            request = self._admitted(body)
            if request is not None:
                self._request = request
                self._ask(request)
        except Exception as error:  # noqa: BLE001 - answered, and logged if it is nobody's refusal
            self._edge.slow_down().fail(error)

    def _admitted(self, body: bytes) -> Request | None:
        """What is to be asked; None if a filter has answered. Raises ApiError and Reject."""
        trace = self._trace
        if not isinstance(trace, Unsampled):
            return self._let_in(body, trace)
        with trace.stage("plugins"):  # once for all of them, for nothing of it is recorded
            return self._let_in(body, UNTRACED)

    def _let_in(self, body: bytes, trace: AnyTrace) -> Request | None:
        course, incoming = self._course, self.incoming
        chain, passage = course.chain, self._passage
        request = Request(
            method=incoming.method,
            path=incoming.path,
            headers=self._known.headers,
            body=body,
            model=course.name,
            requested_model=course.requested,
            mode=course.found.mode,
            client=incoming.client,
        )
        if chain.has_auth:
            with trace.stage("auth") as stage:
                self._principal = authenticated_now(chain, request, stage)
            msgspec.structs.force_setattr(request, "principal", self._principal)  # nobody but they has seen it
        self._came = request
        if passage is None:
            return request
        with trace.stage("filters"):
            result = passage.request_now(request)
        if isinstance(result, Answer):
            self._edge.slow_down().answer(Given(result, passage.answered_by))
            return None
        if result.body is not body:
            self._head = reread(result, None)
        return result

    def _ask(self, request: Request) -> None:
        plane, course = self._plane, self._course
        head = self._head
        streams_usage = course.tells_usage and head.stream is True and not head.asks_usage
        if request.method is not self.incoming.method or streams_usage:  # out of the ordinary, by a filter's doing
            self._edge.slow_down().wait()
            return
        lease = self._lease = plane.controller.activator.try_acquire(course.name, course.model)
        connection = None
        if lease is not None and lease.target.timeout_s is None:
            connection = plane.pool.take(plane.origin(lease.target.base_url))
        if lease is None or connection is None:
            self._edge.slow_down().wait()
            return
        try:
            data = self._written(request, connection, lease.target)
        except Exception:  # noqa: BLE001 - it will be told when the same is tried once more
            plane.pool.keep(connection)  # nothing was asked on it
            self._edge.slow_down().wait()
            return
        # From here on it may become a call at any moment: what is written may be what makes the client a slow one.
        self._connection = connection
        self._sent = True
        try:
            connection.ask(self, data)
        except UpstreamError:  # it was closed in this moment
            self._connection, self._sent, self._stage = None, False, NO_STAGE
            self._edge.slow_down().wait()

    def _written(self, request: Request, connection: Connection, target: Target) -> bytes:
        """The bytes for a server."""
        incoming, trace, body = self.incoming, self._trace, request.body
        if self._head.model != target.upstream_model:
            same = request.headers.raw is incoming.headers
            content_type = incoming.content_type if same else request.headers.get("content-type")
            body = with_model(body, target.upstream_model, content_type)
        stage = self._stage = trace.begin("upstream", SpanKind.CLIENT)
        if stage is not NO_STAGE:
            stage.set("url.full", target.base_url + request.path)
        elif request is self._came:
            return self._known.written(connection, target, body)
        raw = request.headers.raw
        headers = incoming.passed_on if raw is incoming.headers else passed_on(raw)
        carried = trace.carry(headers_for(target, headers, plain=False), stage)
        path = f"{request.path}?{request.query}" if request.query else request.path
        return written(request.method, path, connection, carried, body)
