"""Passes one server's answer on to the client: the very bytes where nobody changes them, else through the filters.

Where no filter waits for anything, all of it happens in the connection's own calls. Else the steps are queued, and a
task takes them one after the other, which slows the server down when the filters are slow.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec

from plugin_sdk import Headers
from plugin_sdk import Response as Head
from sidecar.mechanism.bodies import RefusedError
from sidecar.mechanism.calls import at_once
from sidecar.mechanism.chunks import ChunkPosition
from sidecar.mechanism.connections import Connection
from sidecar.mechanism.exchanges import Again, Framing, UpstreamError
from sidecar.mechanism.filters import Passage
from sidecar.mechanism.hop_by_hop import HOP_BY_HOP
from sidecar.mechanism.upstream import Pair, kept
from sidecar.surfaces.dataplane.errors import error_body
from sidecar.surfaces.dataplane.response import EVENT_STREAM, Response, framed_as, unframed
from sidecar.surfaces.dataplane.steps import Steps
from sidecar.surfaces.dataplane.tail import Tail
from sidecar.surfaces.dataplane.wire import Sending, Wire
from sidecar.surfaces.dataplane.withheld import UsageWithheld

log = logging.getLogger(__name__)

ERROR_BYTES = 64 * 1024  # of a server's error, when it has to go into an event
FILL_BYTES = 64 * 1024  # to end a chunk in which a server died


class Owner(Protocol):
    """Whose answer it is. Exactly one of the first three is called, once, unless it was stopped."""

    def answered(self) -> None:
        """All of it is passed on, but for the end."""
        ...

    def broken(self, error: UpstreamError) -> None: ...

    def refused(self, error: Exception) -> None:
        """A filter refused it, or failed; ApiError, Reject, or whatever went wrong."""
        ...

    def headed(self, status: int) -> None:
        """The server has answered."""
        ...

    def server_slow(self, paused: bool) -> None:
        """The server does not keep up with the request, or has caught up."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it in the request's task."""
        ...


class Answered(msgspec.Struct, frozen=True, gc=False):
    """The head of an answer, kept: the connection may be on its next one before the filters have seen it."""

    status: int
    reason: bytes
    headers: list[Pair]
    framing: Framing
    streamed: bool

    def header(self, wanted: bytes) -> bytes:
        """The value of a header in lower case, b"" without it."""
        return next((value.lower() for name, value in self.headers if name.lower() == wanted), b"")


class Relaying:
    """One server's answer on its way (`connections.Listener`)."""

    def __init__(
        self, owner: Owner, response: Response, wire: Wire, passage: Passage | None, withheld: UsageWithheld | None
    ) -> None:
        self.connection: Connection | None = None
        self._owner: Owner | None = owner
        self._response = response
        self._wire = wire
        self._passage = passage
        self._withheld = withheld
        # Whether the body has to be seen without its framing.
        self.pieces = (
            not wire.http11 or response.begun or withheld is not None or (passage is not None and passage.sees_body)
        )
        self._position: ChunkPosition | None = None
        self._verbatim = False
        self._headed = False
        self._error_body: list[bytes] | None = None  # of an answer that cannot follow what was sent already
        self._given: Head | None = None  # a head that waits for its body
        self._steps: Steps | None = None

    @property
    def headed(self) -> bool:
        """Whether the server has begun to answer."""
        return self._headed

    def resume(self, connection: Connection | None, position: ChunkPosition | None, *, headed: bool) -> None:
        """Go on with an answer of which so much has been passed on, as it came. headed: its head, at least."""
        self.connection = connection
        self._headed = self._verbatim = headed
        self._position = position
        if connection is not None:
            connection.hand_over(self)

    def stop(self) -> None:
        """Nobody waits for it any more."""
        self._owner = None
        self._steps = None  # whose steps refer back to this object
        if self.connection is not None:
            self.connection.abort()
            self.connection = None

    def slow(self, paused: bool) -> None:
        """The client is slow, or has caught up."""
        if self.connection is None:
            return
        if paused:
            self.connection.pause()
        elif self._steps is None or not self._steps.full:
            self.connection.resume()

    def end_chunk(self) -> bool:
        """Get to where a chunk of our own may follow those of the server; False if there is no such place."""
        if not self._verbatim:
            return True
        filling = self._position.to_boundary(FILL_BYTES) if self._position is not None else None
        if filling is None:
            return False
        self._wire.reframe(filling)
        self._verbatim = False
        return True

    # --- from the connection ------------------------------------------------------------------------------------

    def on_whole(self, again: Again, body: bytes) -> bool:  # noqa: ARG002 - it may have to wait for filters, or be framed anew
        return False

    def on_head(self, answer: Connection) -> None:
        self._headed = True
        owner = self._owner
        if owner is None:
            return
        owner.headed(answer.status)
        passage = self._passage
        streamed = answer.content_type.startswith(EVENT_STREAM)
        answered = Answered(answer.status, answer.reason, answer.passed_on, answer.framing, streamed)
        if passage is None and not self._response.begun:
            self._start(answered)
            return
        if self._response.begun and not _can_follow(answered):
            self._fall_short(answered)
        elif passage is None:
            self._response.status = answered.status
            self._verbatim = False
        elif passage.answer_inline:
            self._head_through_now(passage, answered)
        else:
            self._steps = Steps(self._wire)
            owner.spawn(self._steps.run(self._failed))
            self._take(lambda: self._head_through(passage, answered))

    def on_pause(self) -> None:
        self._wire.flush()

    def on_interim(self, status: int, reason: bytes, headers: list[Pair]) -> None:
        if self._owner is not None:
            self._wire.interim(status, reason, kept(headers, HOP_BY_HOP))

    def on_data(self, data: bytes) -> None:
        if self._verbatim and self._steps is None:
            self._relay(data)
        elif self._error_body is not None:
            self._keep_error(data)
        else:
            self._take(lambda: self._data_through(data), len(data))
            if self._steps is not None and self._steps.full and self.connection is not None:
                self.connection.pause()
                self._steps.when_empty = self._go_on

    def on_chunks(self, data: bytes) -> None:
        self._response.note(data)
        self._wire.send(data)

    def on_end(self) -> None:
        self.connection = None
        if self._verbatim and self._steps is None:
            self._done()
        elif self._error_body is not None:
            self._tell_error()
        else:
            self._take(self._end_through)

    def on_broken(self, error: UpstreamError) -> None:
        self.connection = None
        if self._steps is not None:

            async def broken() -> None:
                raise error

            self._steps.put(broken, 0)
        elif self._owner is not None:
            self._owner.broken(error)

    def on_writable(self, writable: bool) -> None:
        if self._owner is not None:
            self._owner.server_slow(not writable)

    # --- passing on ---------------------------------------------------------------------------------------------

    def _start(self, answered: Answered) -> None:
        """The head as it came, and then the body in its own framing if the client can take it."""
        response, framing, headers = self._response, answered.framing, answered.headers
        response.status = answered.status
        whole = framing is Framing.LENGTH and self._withheld is None
        as_it_comes = whole or framing is Framing.NONE or (framing is Framing.CHUNKED and not self.pieces)
        streamed = answered.streamed
        response.tail = Tail(streamed)
        if not as_it_comes:
            response.start(answered.status, answered.reason, unframed(headers), response.framed())
            return
        self._verbatim = True
        if framing is Framing.CHUNKED:
            response.chunked = True
            if streamed:
                self._position = ChunkPosition()
                if self._steps is None and self.connection is not None:
                    self.connection.between = self._position
        response.start(answered.status, answered.reason, headers, Sending.AS_IT_COMES, hold=self._steps is None)

    def _head_through_now(self, passage: Passage, answered: Answered) -> None:
        came, encoding = came_as(answered.status, answered.headers, streamed=answered.streamed)
        try:
            self._passed(passage, answered, came, passage.response_now(came, encoding))
        except Exception as error:  # noqa: BLE001 - whoever owns the request says what becomes of it
            self._failed(error)

    async def _head_through(self, passage: Passage, answered: Answered) -> None:
        came, encoding = came_as(answered.status, answered.headers, streamed=answered.streamed)
        self._passed(passage, answered, came, await passage.response(came, encoding))

    def _passed(self, passage: Passage, answered: Answered, came: Head, head: Head) -> None:
        response = self._response
        response.status = head.status
        if response.begun:
            return
        response.tail = Tail(answered.streamed)
        if not passage.sees_body:
            if head is not came:
                headers = framed_as(answered.headers, came.headers.raw, head.headers.raw)
                reason = answered.reason if head.status == answered.status else b""
                answered = Answered(head.status, reason, headers, answered.framing, answered.streamed)
            self._start(answered)
        elif passage.holds:
            self._given = head
        else:
            response.start(head.status, b"", unframed(head.headers.raw), response.framed())

    def _relay(self, data: bytes) -> None:
        self._response.note(data)
        if self._position is not None:
            self._position.feed(data)
        self._wire.send(data)

    async def _data_through(self, data: bytes) -> None:
        if self._verbatim:  # filters that wait have seen the head, and none sees the body
            self._relay(data)
            return
        self._response.note(data)
        await self._filter(self._withheld.feed(data) if self._withheld is not None else data)

    async def _filter(self, data: bytes) -> None:
        """Pass on what the filters make of it. Raises Reject."""
        if data and self._passage is not None and self._passage.sees_body:
            try:
                data = await self._passage.chunk(data)
            except RefusedError as error:
                if not self._passage.holds:
                    self._pass_on(error.before)
                raise error.reject from None
        self._pass_on(data)

    async def _end_through(self) -> None:
        rest = self._withheld.finish() if self._withheld is not None else b""
        if self._passage is not None and self._passage.sees_body:
            await self._filter(rest)
            rest = await self._passage.finish()
        if self._given is not None and not self._response.begun:
            head, length = self._given, b"%d" % len(rest)
            headers = [*unframed(head.headers.raw), (b"content-length", length)]
            self._response.start(head.status, b"", headers, Sending.AS_IT_COMES)
        self._pass_on(rest)
        self._done()

    def _pass_on(self, data: bytes) -> None:
        if not data:
            return
        if self._given is not None:  # it did not become whole: a body that is too large is passed on as it is
            self._response.start(self._given.status, b"", unframed(self._given.headers.raw), self._response.framed())
            self._given = None
        self._wire.send(data)

    def _take(self, step: Callable[[], Coroutine[Any, Any, None]], size: int = 0) -> None:
        """Do the step: now if nothing in it waits for anything, else when its turn has come."""
        if self._steps is not None:
            self._steps.put(step, size)
            return
        if self._owner is None:
            return
        try:
            at_once(step())
        except Exception as error:  # noqa: BLE001 - whoever owns the request says what becomes of it
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        owner = self._owner
        self.stop()
        if owner is None:
            return
        if isinstance(error, UpstreamError):
            owner.broken(error)
        else:
            owner.refused(error)

    def _done(self) -> None:
        owner, self._owner = self._owner, None
        self._steps = None
        if owner is not None:
            owner.answered()

    def _go_on(self) -> None:
        if self.connection is not None and not self._wire.paused:
            self.connection.resume()

    # --- an answer that comes too late for a head of its own -----------------------------------------------------

    def _fall_short(self, answered: Answered) -> None:
        """The client was promised events, and the server has none: its error becomes the only one."""
        self._response.status = answered.status
        if answered.status >= 300:
            self._error_body = []
            return
        sent = b" ".join(filter(None, (answered.header(b"content-encoding"), answered.header(b"content-type"))))
        kind = sent[:100].decode("latin-1") or "no content type"
        self._response.status = 0
        self._failed(UpstreamError(f"the server answered with {kind}, not with a plain event stream", processed=True))

    def _keep_error(self, data: bytes) -> None:
        kept_bytes = self._error_body if self._error_body is not None else []
        kept_bytes.append(data)
        if sum(map(len, kept_bytes)) > ERROR_BYTES:
            self._tell_error()

    def _tell_error(self) -> None:
        # Filters may be there to keep something from clients, and cannot see this.
        body = b"".join(self._error_body or []) if self._passage is None else b""
        owner = self._owner
        self.stop()
        if owner is not None:
            self._response.break_off(error_body(self._response.status, body))
            owner.answered()


def came_as(status: int, sent: list[Pair], *, streamed: bool) -> tuple[Head, str]:
    """The head as filters see it, and the body's encoding, "" for none."""
    headers: list[Pair] = []
    encoding = b""
    for pair in sent:
        name = pair[0].lower()
        if name not in HOP_BY_HOP:
            headers.append(pair)
            if name == b"content-encoding":
                encoding = encoding or pair[1].lower()
    came = Head(status=status, headers=Headers(tuple(headers)), streamed=streamed)
    return came, "" if encoding == b"identity" else encoding.decode("latin-1")


def _can_follow(answered: Answered) -> bool:
    """Whether the body continues an event stream whose head said nothing of an encoding."""
    encoded = answered.header(b"content-encoding") not in (b"", b"identity")
    return answered.status < 300 and not encoded and answered.streamed
