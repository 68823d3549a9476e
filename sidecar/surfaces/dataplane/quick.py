"""A request in which nothing is out of the ordinary: one object, from its last byte to that of its answer.

Nearly all requests are such: their head is known, no plugin has to wait for anything or see the answer's body, a server
is ready, and a connection to it idle. What it takes to serve any other is never made for them. As soon as something
else comes up - a plugin refuses, there is nobody to be asked, the client is slow, says more, or leaves, the server
breaks off - it becomes a `Call`, as it would be by then had it always been one (`become`), and goes on as that.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec
from opentelemetry.trace import SpanKind
from uvicorn.protocols.http.flow_control import FlowControl

from plugin_sdk import ANONYMOUS, End, Headers, Outcome, Request
from plugin_sdk import Response as Answer
from plugin_sdk.messages import RawHeaders, with_headers
from sidecar.control.leases import Lease, Target
from sidecar.mechanism.chunks import ChunkPosition
from sidecar.mechanism.connections import Connection
from sidecar.mechanism.exchanges import Again, Framing, UpstreamError
from sidecar.mechanism.filters import Passage
from sidecar.mechanism.repeats import with_length
from sidecar.mechanism.spans import NO_STAGE, AnyStage
from sidecar.mechanism.upstream import Pair
from sidecar.surfaces.dataplane.admission import Asked, Given, authenticated_now, reread
from sidecar.surfaces.dataplane.body import Head, read_head, with_model
from sidecar.surfaces.dataplane.call import Call
from sidecar.surfaces.dataplane.courses import Course
from sidecar.surfaces.dataplane.ending import Start
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.incoming import Incoming
from sidecar.surfaces.dataplane.known import Known
from sidecar.surfaces.dataplane.plane import Plane
from sidecar.surfaces.dataplane.relaying import Relaying, came_as
from sidecar.surfaces.dataplane.request import headers_for, passed_on, written
from sidecar.surfaces.dataplane.response import EVENT_STREAM, FRAMING, framed_as
from sidecar.surfaces.dataplane.tail import WHOLE_BYTES, Tail
from sidecar.surfaces.dataplane.wire import Wire, head_lines, lines


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


class Notes:
    """An answer's head that comes again and again, as clients and plugins get it, for a body of whatever length."""

    __slots__ = ("_after", "_before", "_came", "_length", "_longest", "_names", "again", "encoding")

    def __init__(self, again: Again) -> None:
        self.again = again
        self._came, self.encoding = came_as(again.status, again.passed_on, streamed=_streamed(again.content_type))
        self._length = again.length
        names = [name.lower() for name, _ in again.passed_on]
        self._names = FRAMING.union(names)
        self._longest = max(map(len, self._names))
        at = names.index(b"content-length")
        name = again.passed_on[at][0]
        self._before = head_lines(again.status, again.reason, again.passed_on[:at]) + name + b": "
        self._after = b"\r\n" + lines(again.passed_on[at + 1 :])

    def head(self, length: int) -> bytes:
        """As it is sent, but for the empty line at the end."""
        return b"%b%d%b" % (self._before, length, self._after)

    def has_any(self, headers: RawHeaders) -> bool:
        """Whether it has one of these already, or they would tell where its body ends."""
        longest, names = self._longest, self._names
        return bool([name for name, _ in headers if len(name) <= longest and name.lower() in names])

    def came(self, length: int) -> Answer:
        """As plugins get it."""
        if length != self._length:
            raw = tuple(with_length(self._came.headers.raw, length))
            self._came = msgspec.structs.replace(self._came, headers=Headers(raw))
            self._length = length
        return self._came


class Quick:
    """One request (`connections.Listener`). incoming, way: as it came. size: of its body. began: the loop's clock."""

    __slots__ = (
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
        course, incoming, trace = self._course, self.incoming, self._trace
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
        if self._changed(request):
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

    def _changed(self, request: Request) -> bool:
        """Whether filters have made something out of the ordinary of it."""
        if request.method is not self.incoming.method:
            return True
        return self._course.tells_usage and self._head.stream is True and not self._head.asks_usage

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
        elif _unchanged(request, incoming):
            return self._known.written(connection, target, body)
        raw = request.headers.raw
        headers = incoming.passed_on if raw is incoming.headers else passed_on(raw)
        carried = trace.carry(headers_for(target, headers, plain=False), stage)
        path = f"{request.path}?{request.query}" if request.query else request.path
        return written(request.method, path, connection, carried, body)

    # --- from the connection ------------------------------------------------------------------------------------

    def on_whole(self, again: Again, body: bytes) -> bool:
        self._connection = None
        self._stage.set("http.response.status_code", again.status)
        notes = again.notes
        if not isinstance(notes, Notes):
            notes = again.notes = Notes(again)
        passage = self._passage
        status, length = again.status, len(body)
        try:
            if passage is None or not passage.sees_answer:
                head = notes.head(length) + b"\r\n"
            else:
                status, head = self._filtered(passage, notes, length)
        except Exception as error:  # noqa: BLE001 - answered, and logged if it is nobody's refusal
            self._edge.slow_down().fail(error)
            return True
        self._edge.quick_ended()
        self._write(head + body)
        self._finish_whole(status, body, streamed=_streamed(again.content_type))
        return True

    def _filtered(self, passage: Passage, notes: Notes, length: int) -> tuple[int, bytes]:
        """The status and the head that clients get of one that filters have seen. Raises Reject."""
        again, came = notes.again, notes.came(length)
        head, added = passage.changed_now(came, notes.encoding)
        if head is came and not notes.has_any(added):
            return again.status, b"%b%b\r\n" % (notes.head(length), lines(added))
        if added:
            head = with_headers(head, added)
        original = with_length(again.passed_on, length)
        reason = again.reason if head.status == again.status else b""
        headers = framed_as(original, came.headers.raw, head.headers.raw)
        return head.status, head_lines(head.status, reason, headers) + b"\r\n"

    def _finish_whole(self, status: int, body: bytes, *, streamed: bool) -> None:
        if streamed or len(body) > WHOLE_BYTES:
            tail = Tail(streamed)
            tail.feed(body)
            read = tail.read()
        else:
            read = body
        now = self._plane.controller.clock.monotonic()
        self._finish(now, status, read, now if body else None, len(body), streamed=streamed)

    def on_head(self, answer: Connection) -> None:
        if answer.framing not in _AS_IT_COMES:
            self._as_relaying().on_head(answer)
            return
        self._stage.set("http.response.status_code", answer.status)
        streamed = _streamed(answer.content_type)
        try:
            self._status, self._held = self._headed_by(answer, streamed=streamed)
        except Exception as error:  # noqa: BLE001 - answered, and logged if it is nobody's refusal
            self._edge.slow_down().fail(error)
            return
        self._headed = True
        self._tail = Tail(streamed)
        if answer.framing is Framing.CHUNKED:
            self._chunked = True
            if streamed:
                self._position = answer.between = ChunkPosition()

    def _headed_by(self, answer: Connection, *, streamed: bool) -> tuple[int, bytes]:
        """Status and head, when filters have seen them. Raises Reject."""
        status, reason, headers = answer.status, answer.reason, answer.passed_on
        passage = self._passage
        if passage is not None and passage.sees_answer:
            came, encoding = came_as(status, headers, streamed=streamed)
            head = passage.response_now(came, encoding)
            if head is not came:
                headers = framed_as(headers, came.headers.raw, head.headers.raw)
                status, reason = head.status, reason if head.status == status else b""
        return status, head_lines(status, reason, headers) + b"\r\n"

    def on_pause(self) -> None:
        held, self._held = self._held, b""
        self._write(held)

    def on_interim(self, status: int, reason: bytes, headers: list[Pair]) -> None:
        self._as_relaying().on_interim(status, reason, headers)

    def on_data(self, data: bytes) -> None:
        if self._position is not None:
            self._position.feed(data)
        self.on_chunks(data)

    def on_chunks(self, data: bytes) -> None:
        if self._first_byte_at is None:
            self._first_byte_at = self._plane.controller.clock.monotonic()
        self._tail.feed(data)
        if self._held:
            data, self._held = self._held + data, b""
        self._write(data)

    def on_end(self) -> None:
        self._connection = None
        self._edge.quick_ended()
        if self._held:
            self._write(self._held)
        tail = self._tail
        read = tail.read(chunked=self._chunked) if self._first_byte_at is not None else b""
        now = self._plane.controller.clock.monotonic()
        self._finish(now, self._status, read, self._first_byte_at, tail.total, streamed=tail.streamed)

    def on_broken(self, error: UpstreamError) -> None:
        self._connection = None
        self._as_relaying().on_broken(error)

    def on_writable(self, writable: bool) -> None:
        """Nothing: the connection has the whole request."""

    # --- ends ---------------------------------------------------------------------------------------------------

    def _finish(
        self, now: float, status: int, read: bytes, first_byte_at: float | None, size: int, *, streamed: bool
    ) -> None:
        """Give back what is held, and tell everybody what came of it. read: of the body, to find its usage."""
        course, lease = self._course, self._lease
        found, incoming, principal = course.found, self.incoming, self._principal
        if lease is None:
            raise RuntimeError("somebody has answered without a lease")
        lease.release()
        self._stage.end()
        outcome = Outcome(
            model=course.name,
            variant=lease.target.variant,
            mode=found.mode,
            method=incoming.method,
            path=incoming.path,
            client=incoming.client,
            principal=principal.id,
            key=principal.key,
            end=End.OK,
            status=status,
            streamed=streamed,
            started_s=self._started_unix,
            duration_s=now - self._started,
            first_byte_s=None if first_byte_at is None else first_byte_at - self._started,
            bytes_in=self.size,
            bytes_out=size,
            usage=None if first_byte_at is None else found.interface.usage(read, streamed),
            trace_id=self._trace.id,
            request_id=incoming.request_id,
        )
        self._plane.count(outcome, found.endpoint.operation)
        course.chain.record(outcome)
        self._trace.end(outcome)
        if self._passage is not None and self._passage.has_end:
            self._passage.end_now(outcome)
        course.generation.leave()

    def become(self, wire: Wire) -> Call:
        """What it would be by now, had it always been a call."""
        course, connection, passage = self._course, self._connection, self._passage
        start = Start(course.generation, self._trace, self._started, self._started_unix)
        call = Call(self._plane, self.incoming, self.way.found, wire, start=start)
        call.admission.resume(course, self._head, self._principal, passage)
        call.response.interface = course.found.interface
        asked = None
        if self._request is not None:
            asked = Asked(
                name=course.name,
                model=course.model,
                request=self._request,
                head=self._head,
                chain=course.chain,
                passage=passage,
            )
        call.resume(self.size, asked, self._lease)
        if not self._sent:
            return call
        response = call.response
        if self._headed:
            response.status, response.tail, response.chunked = self._status, self._tail, self._chunked
            response.first_byte_at = self._first_byte_at
            wire.resume(self._held)
        sees = passage is not None and passage.sees_answer
        relaying = self._relaying = Relaying(call, response, wire, passage if sees else None, None)
        relaying.resume(connection, self._position, headed=self._headed)
        call.relay(relaying, self._stage)
        return call

    def _as_relaying(self) -> Relaying:
        self._edge.slow_down()
        if self._relaying is None:
            raise RuntimeError("nothing was asked")
        return self._relaying


def quick(edge: Edge, plane: Plane, known: Known, length: int, body: bytes, began: float) -> Quick | None:
    """The request, to be run, if there is nothing about it that is out of the ordinary."""
    if not known.may_be_quick or edge.flow.write_paused:
        return None
    try:
        head = read_head(body)
    except ApiError:
        return None  # told to whom plugins have let in
    course = known.course
    if course is None or course.requested != head.model:
        if head.model is None:
            return None
        course = known.course = plane.course(plane.way(known.method, known.url), head.model)
        if course is None:
            return None
    if length > course.max_body or (course.tells_usage and head.stream is True and not head.asks_usage):
        return None
    if length != known.length:
        known.resize(length)
    return Quick(edge, plane, known, course, head, began)


def _streamed(content_type: bytes) -> bool:
    return content_type.startswith(EVENT_STREAM)


def _unchanged(request: Request, incoming: Incoming) -> bool:
    """Whether filters have left alone all of it but the body."""
    return (
        request.headers.raw is incoming.headers
        and request.path is incoming.path
        and request.method is incoming.method
        and not request.query
    )


_AS_IT_COMES = (Framing.LENGTH, Framing.CHUNKED, Framing.NONE)
