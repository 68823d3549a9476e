"""A request in which nothing is out of the ordinary: one object, from its last byte to that of its answer.

Nearly all requests are such: their head is known, no plugin has to wait for anything or see the answer's body, a server
is ready, and a connection to it idle. What it takes to serve any other is never made for them. As soon as something
else comes up - a plugin refuses, there is nobody to be asked, the client is slow, says more, or leaves, the server
breaks off - it becomes a `Call`, as it would be by then had it always been one (`become`), and goes on as that.
"""

from __future__ import annotations

from plugin_sdk import End, Outcome
from plugin_sdk.messages import with_headers
from sidecar.mechanism.chunks import ChunkPosition
from sidecar.mechanism.connections import Connection
from sidecar.mechanism.exchanges import Again, Framing, UpstreamError
from sidecar.mechanism.filters import Passage
from sidecar.mechanism.repeats import with_length
from sidecar.mechanism.upstream import Pair
from sidecar.surfaces.dataplane.admission import Asked
from sidecar.surfaces.dataplane.body import read_head
from sidecar.surfaces.dataplane.call import Call
from sidecar.surfaces.dataplane.ending import Start
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.known import Known
from sidecar.surfaces.dataplane.notes import Notes, is_streamed
from sidecar.surfaces.dataplane.plane import Plane
from sidecar.surfaces.dataplane.quick_request import Edge, QuickRequest
from sidecar.surfaces.dataplane.relaying import Relaying, came_as
from sidecar.surfaces.dataplane.response import framed_as
from sidecar.surfaces.dataplane.tail import WHOLE_BYTES, Tail
from sidecar.surfaces.dataplane.wire import Wire, head_lines, lines

_AS_IT_COMES = (Framing.LENGTH, Framing.CHUNKED, Framing.NONE)


class Quick(QuickRequest):
    """One request, and the answer to it."""

    __slots__ = ()

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
                status, head = self._filtered(passage, again, notes, length)
        except Exception as error:  # noqa: BLE001 - answered, and logged if it is nobody's refusal
            self._edge.slow_down().fail(error)
            return True
        self._edge.quick_ended()
        self._write(head + body)
        self._finish_whole(status, body, streamed=is_streamed(again.content_type))
        return True

    def _filtered(self, passage: Passage, again: Again, notes: Notes, length: int) -> tuple[int, bytes]:
        """The status and the head that clients get of one that filters have seen. Raises Reject."""
        came = notes.came(length)
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
        streamed = is_streamed(answer.content_type)
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
        tail = self._tail  # as `Tail.feed`, which would be one more call for every chunk of every stream
        tail.chunks.append(data)
        tail.held += len(data)
        if tail.held > tail.most:
            tail.drop()
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
        if course.filters is not None and course.filters.want_end and self._passage is not None:
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
