"""The answer to one request: what its client has been sent so far, and the ways in which it can end."""

from __future__ import annotations

from collections.abc import Iterable

from plugin_sdk import End
from plugin_sdk import Response as Head
from plugin_sdk.messages import RawHeaders
from sidecar.control.clock import Clock
from sidecar.mechanism.hop_by_hop import HOP_BY_HOP
from sidecar.mechanism.modes import Mode
from sidecar.mechanism.upstream import Pair
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.tail import Tail
from sidecar.surfaces.dataplane.wire import Sending, Wire

EVENT_STREAM = b"text/event-stream"
FRAMING = HOP_BY_HOP | {b"content-length"}
_EVENTS_HEAD: RawHeaders = (
    (b"content-type", EVENT_STREAM),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would keep comments back until its buffer is full
)


class Response:
    """One answer on its way.

    status: what came of the request, 0 while that is not known; the head says something else if it had to be sent
    before. first_byte_at: when the server's body began (monotonic clock). tail: of that body.
    chunked: it holds the framing of the server's chunks. interface: whose errors
    it speaks.
    """

    __slots__ = ("_clock", "_wire", "chunked", "code", "end", "first_byte_at", "interface", "status", "tail")

    def __init__(self, wire: Wire, clock: Clock) -> None:
        self.status = 0
        self.code = ""
        self.end = End.OK
        self.first_byte_at: float | None = None
        self.tail = Tail(False)
        self.chunked = False
        self.interface: Mode | None = None
        self._wire = wire
        self._clock = clock

    @property
    def begun(self) -> bool:
        """Whether its head was sent."""
        return self._wire.begun

    def comment(self, comment: bytes) -> None:
        """Send an event stream's comment, which clients skip, and before the first one the stream's head."""
        if not self._wire.begun:
            self.tail = Tail(True)
            self._wire.start(200, b"", _EVENTS_HEAD, self.framed())
        self._wire.send(comment)

    def framed(self) -> Sending:
        """How to frame a body of which the length is not known."""
        return Sending.CHUNKED if self._wire.http11 else Sending.UNTIL_CLOSED

    def start(
        self, status: int, reason: bytes, headers: Iterable[Pair], sending: Sending, *, hold: bool = False
    ) -> None:
        """Send the head, unless one was sent. hold: together with what is sent next."""
        if not self._wire.begun:
            self._wire.start(status, reason, headers, sending, hold=hold)

    def note(self, data: bytes) -> None:
        """Take note of the server's bytes."""
        if self.first_byte_at is None:
            self.first_byte_at = self._clock.monotonic()
        self.tail.feed(data)

    def give(self, given: Head, code: str) -> None:
        """A filter's answer in the server's place."""
        self.status, self.code = given.status, code
        self.tail = Tail(given.streamed)
        self.note(given.body)
        self._wire.answer(given.status, unframed(given.headers.raw), given.body)

    def refuse(self, error: ApiError, end: End = End.REFUSED) -> None:
        """End with an error of the sidecar's own: a plain one if nothing was sent; else it breaks off."""
        self.code, self.end = error.code, end
        if self._wire.begun:
            self.status = self.status or error.status
            self.break_off(error.body_for(self.interface))
            return
        self.status = error.status
        self._wire.answer(error.status, error.response_headers(), error.body_for(self.interface))

    def break_off(self, error: bytes) -> None:
        """An error event where there are events, and a broken connection."""
        if self.tail.streamed:
            self._wire.send(b"\n\n" + self._error_event(error))
        self._wire.break_off()

    def left(self) -> None:
        """The client did not wait for the end; or only for the last event, as the official clients do: that is one."""
        if not self.tail.says_farewell(chunked=self.chunked):
            self.end, self.code = End.CLIENT_GONE, "client_gone"

    def _error_event(self, error: bytes) -> bytes:
        said = self.interface.error_event(error) if self.interface is not None else None
        return b"data: " + error + b"\n\n" if said is None else said


def unframed(headers: Iterable[Pair]) -> list[Pair]:
    """Without what says where the body ends, which is for whoever sends it to say."""
    return [pair for pair in headers if pair[0].lower() not in FRAMING]


def framed_as(original: list[Pair], came: RawHeaders, headers: RawHeaders) -> list[Pair]:
    """A filter's headers with the framing of the body as the server said it, for a body that nobody changes.

    came: the server's headers as filters got them; as a rule, some are added to those.
    """
    count = len(came)
    if headers[:count] == came:
        return [*original, *unframed(headers[count:])]
    framing = [pair for pair in original if len(pair[0]) in _FRAMING_LENGTHS and pair[0].lower() in _FRAMED_BY]
    return [*unframed(headers), *framing]


_FRAMED_BY = (b"content-length", b"transfer-encoding")
_FRAMING_LENGTHS = frozenset(map(len, _FRAMED_BY))
