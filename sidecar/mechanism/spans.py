"""One span of a request, as plain values. It is encoded later, by another thread (see `exports`).

To the OpenTelemetry API it is a span like any other, so that a plugin finds it as the current one, sets attributes of
its own, and begins spans below it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from contextvars import Token
from random import getrandbits
from types import TracebackType

import msgspec
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.util.types import Attributes, AttributeValue

Now = Callable[[], int]  # unix nanoseconds


class Origin(msgspec.Struct, frozen=True, gc=False):
    """What the spans of a request have in common: their trace, and who asked. parent_id: 0 = nobody did.

    flags: those that are told on. state: the caller's `tracestate`.
    """

    trace_id: str
    parent_id: int
    flags: int
    state: str


class Note(msgspec.Struct, frozen=True):
    """An event of a span."""

    name: str
    at_ns: int
    attributes: Attributes


class Stage(trace.Span):
    """A span that records: `set`, `fail` and `end` it. It says OK only if a plugin called it so: that is `succeeded`.

    As `with` it is also the current span, and what is raised in it is its error. Then it must not stand across a return
    to the event loop, unless in a task of its own: the current span belongs to the task.
    """

    # What most spans never get, so that making one costs little.
    ended_ns = 0
    attributes: dict[str, AttributeValue] | None = None
    notes: tuple[Note, ...] = ()
    links: tuple[Link, ...] = ()
    failed = False
    succeeded = False
    message = ""
    _token: Token[Context] | None = None

    def __init__(self, origin: Origin, parent_id: int, name: str, kind: SpanKind, now: Now) -> None:
        self.origin = origin
        self.parent_id = parent_id
        self.name = name
        self.kind = kind
        self.span_id = getrandbits(64) or 1
        self._now = now
        self.started_ns = now()

    def set(self, key: str, value: AttributeValue) -> None:
        """Say something of it, until it ends: then it is another thread's."""
        if self.ended_ns:
            return
        if self.attributes is None:
            self.attributes = {key: value}
        else:
            self.attributes[key] = value

    def fail(self, error_type: str, message: str = "") -> None:
        """It came to nothing. error_type: a code of few values. message: for people."""
        self.set("error.type", error_type)
        self.failed = True
        self.message = message

    def end(self, end_time: int | None = None) -> None:
        """It ends now, or did at `end_time`. Only the first call counts."""
        if not self.ended_ns:
            self.ended_ns = self._now() if end_time is None else _moment(end_time)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Keep an error as an event."""
        kind = type(exception)
        told: dict[str, AttributeValue] = {
            "exception.type": kind.__qualname__
            if kind.__module__ == "builtins"
            else f"{kind.__module__}.{kind.__qualname__}",
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**told, **(attributes or {})}, timestamp)

    def __enter__(self) -> Stage:
        self._token = contexts.attach(trace.set_span_in_context(self))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        if self._token is not None:
            contexts.detach(self._token)
            self._token = None
        if isinstance(exc_val, Exception):  # a cancellation is no error
            self.record_exception(exc_val)
            self.failed = True
            self.message = f"{type(exc_val).__name__}: {exc_val}"
        self.end()

    # --- what is left of the API's span ---------------------------------------------------------------------------

    def get_span_context(self) -> SpanContext:
        """What a child needs to know."""
        origin = self.origin
        state = TraceState.from_header([origin.state]) if origin.state else None
        return SpanContext(int(origin.trace_id, 16), self.span_id, False, TraceFlags(origin.flags), state)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """The API's word for `set`; a plugin may give anything."""
        self.set(str(key), _plain(value))

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Say several things of it."""
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Something happened in it, now or at `timestamp`."""
        at_ns = self._now() if timestamp is None else _moment(timestamp)
        told = {str(key): _plain(value) for key, value in (attributes or {}).items()}
        self.notes += (Note(str(name), at_ns, told),)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """It has to do with another span."""
        self.links += (Link(context, attributes),)

    def update_name(self, name: str) -> None:
        """Call it something else."""
        self.name = str(name)

    def is_recording(self) -> bool:
        """Until it ends."""
        return not self.ended_ns

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """The API's word for `fail`, without a type."""
        told = status if isinstance(status, Status) else Status(status, description)
        self.failed = told.status_code is StatusCode.ERROR
        self.succeeded = told.status_code is StatusCode.OK
        self.message = str(told.description or "")


def _plain(value: object) -> AttributeValue:
    """A value that can be encoded whatever it was: an odd one of a plugin must not cost others their spans."""
    if isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return tuple(item if isinstance(item, (str, bool, int, float)) else str(item) for item in value)
    return str(value)


def _moment(unix_ns: int) -> int:
    return max(0, int(unix_ns))


# Of a trace that no sampler of the SDK keeps: neither for its parent's sake, nor by the last bits of its id.
_MUTED = SpanContext((1 << 128) - 1, (1 << 64) - 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.DEFAULT))
_MUTED_CONTEXT = trace.set_span_in_context(trace.NonRecordingSpan(_MUTED), Context())


class NoStage:
    """Stands for a span that is not recorded."""

    __slots__ = ()
    span_id = 0

    def set(self, key: str, value: AttributeValue) -> None:
        """Nothing."""

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Nothing."""

    def fail(self, error_type: str, message: str = "") -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""

    def __enter__(self) -> NoStage:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing."""


class MutedStage(NoStage):
    """Within it, plugins' spans are not recorded either: without a parent they would be traces of their own."""

    __slots__ = ("_token",)

    def __enter__(self) -> MutedStage:
        self._token = contexts.attach(_MUTED_CONTEXT)
        return self

    def __exit__(self, *_: object) -> None:
        contexts.detach(self._token)


NO_STAGE = NoStage()
AnyStage = Stage | NoStage
