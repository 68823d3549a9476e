"""Spans in OTLP's protobuf encoding, written by hand.

The SDK's encoder makes a Python object of each attribute and value: 30 to 60 us for a span, where this takes 2. On one
core that is the request's time, whichever thread it is done in. (github.com/open-telemetry/opentelemetry-proto:
trace.proto, common.proto; the wire format: protobuf.dev/programming-guides/encoding)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode

from sidecar.mechanism.spans import Note, Origin, Stage

_SHORT = 100  # characters: longer values are not remembered
_SCALARS = frozenset((bool, int, float))
_INT64 = range(-(1 << 63), 1 << 63)
_MASK64 = (1 << 64) - 1

_IDS = struct.Struct(">2s16s2sQ2sQ")  # trace_id = 1, span_id = 2, parent_span_id = 4
_ROOT_IDS = struct.Struct(">2s16s2sQ")
_TIMES = struct.Struct("<cQcQ2sI")  # start = 7, end = 8, flags = 16
_DOUBLE = struct.Struct("<cd")
_FIXED32 = struct.Struct("<cI")
_FIXED64 = struct.Struct("<cQ")

_PARENT_IS_KNOWN = 0x100  # SpanFlags: whether the parent is remote is said ...
_PARENT_IS_REMOTE = 0x200  # ... and it is

_KINDS = {kind: bytes((0x30, kind.value + 1)) for kind in SpanKind}  # kind = 6; OTLP has "unspecified" before them
_ERROR = b"\x18\x02"  # code = 3: STATUS_CODE_ERROR
_OK = b"\x18\x01"


class Encoder:
    """Writes an ExportTraceServiceRequest of the spans of one resource and scope."""

    def __init__(self, resource: Resource, scope: InstrumentationScope) -> None:
        self._resource, self._scope = who(resource, scope)

    def request(self, spans: Iterable[Stage | ReadableSpan]) -> bytes:
        """The body to send."""
        written = [_span(span if isinstance(span, Stage) else _stage_of(span)) for span in spans]
        of_scope = b"".join((self._scope, *written))
        return sized(b"\x0a", self._resource + sized(b"\x12", of_scope))


def who(resource: Resource, scope: InstrumentationScope) -> tuple[bytes, bytes]:
    """The fields that stand before what a resource and a scope tell, whether spans or metrics."""
    told = b"".join(attributes(b"\x0a", resource.attributes))
    named = text(b"\x0a", scope.name) + (text(b"\x12", scope.version) if scope.version else b"")
    return sized(b"\x0a", told), sized(b"\x0a", named)


def _span(span: Stage) -> bytes:
    origin = span.origin
    flags = _PARENT_IS_KNOWN | origin.flags
    trace_id = _bytes_of(origin.trace_id)
    if not span.parent_id:
        ids = _ROOT_IDS.pack(b"\x0a\x10", trace_id, b"\x12\x08", span.span_id)
    else:
        ids = _IDS.pack(b"\x0a\x10", trace_id, b"\x12\x08", span.span_id, b"\x22\x08", span.parent_id)
        if span.parent_id == origin.parent_id:
            flags |= _PARENT_IS_REMOTE
    times = _TIMES.pack(b"\x39", span.started_ns, b"\x41", span.ended_ns, b"\x85\x01", flags)
    parts = [ids, _label(span.name, span.kind), times]
    if span.attributes:
        parts += attributes(b"\x4a", span.attributes)
    if origin.state:
        parts.append(text(b"\x1a", origin.state))
    if span.failed or span.notes or span.links or span.succeeded:
        parts += _seldom(span)
    return sized(b"\x12", b"".join(parts))


def _seldom(span: Stage) -> list[bytes]:
    """What most spans have not: events, links, a status."""
    parts = [sized(b"\x5a", _event(note)) for note in span.notes]
    parts += [sized(b"\x6a", _link(link)) for link in span.links]
    if span.failed:
        parts.append(sized(b"\x7a", (text(b"\x12", span.message) if span.message else b"") + _ERROR))
    elif span.succeeded:
        parts.append(sized(b"\x7a", _OK))
    return parts


def _event(note: Note) -> bytes:
    head = (_FIXED64.pack(b"\x09", note.at_ns), text(b"\x12", note.name))
    return b"".join((*head, *attributes(b"\x1a", note.attributes or {})))


def _link(link: Link) -> bytes:
    context = link.context
    ids = _ROOT_IDS.pack(b"\x0a\x10", context.trace_id.to_bytes(16, "big"), b"\x12\x08", context.span_id)
    state = context.trace_state.to_header()
    flags = _PARENT_IS_KNOWN | context.trace_flags | (_PARENT_IS_REMOTE if context.is_remote else 0)
    parts = [ids, text(b"\x1a", state) if state else b"", *attributes(b"\x22", link.attributes or {})]
    return b"".join((*parts, _FIXED32.pack(b"\x35", flags)))


# --- values -------------------------------------------------------------------------------------------------------


def attributes(tag: bytes, told: Mapping[str, object]) -> list[bytes]:
    """KeyValues. The few that come again and again are remembered; neither long ones nor lists, which may be any."""
    return [
        _remembered(tag, key, value)
        if (len(value) < _SHORT if type(value) is str else type(value) in _SCALARS)
        else _pair(tag, key, value)
        for key, value in told.items()
    ]


def _pair(tag: bytes, key: str, value: object) -> bytes:
    return sized(tag, text(b"\x0a", key) + sized(b"\x12", _value(value)))


_remembered = lru_cache(maxsize=4096, typed=True)(_pair)  # typed: 1, 1.0 and True are equal


def _value(value: object) -> bytes:
    """An AnyValue; what has no form of its own goes as its text."""
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int) and value in _INT64:
        return b"\x18" + _varint(value & _MASK64)
    if isinstance(value, float):
        return _DOUBLE.pack(b"\x21", value)
    if isinstance(value, bytes):
        return sized(b"\x3a", value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return sized(b"\x2a", b"".join(sized(b"\x0a", _value(item)) for item in value))
    return text(b"\x0a", str(value))


@lru_cache(maxsize=1024)
def _label(name: str, kind: SpanKind) -> bytes:
    return text(b"\x2a", name) + _KINDS[kind]


@lru_cache(maxsize=16)
def _bytes_of(trace_id: str) -> bytes:
    """The spans of a trace come one after the other."""
    return bytes.fromhex(trace_id)


def text(tag: bytes, told: str) -> bytes:
    """A string field."""
    return sized(tag, told.encode("utf-8", "replace"))


def sized(tag: bytes, body: bytes) -> bytes:
    """A field of which the length is said before it: a string, bytes, a message, packed numbers."""
    size = len(body)
    if size < 0x80:
        return b"%b%c%b" % (tag, size, body)
    if size < 0x4000:
        return b"%b%c%c%b" % (tag, size & 0x7F | 0x80, size >> 7, body)
    return b"%b%b%b" % (tag, _varint(size), body)


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


# --- the SDK's spans ----------------------------------------------------------------------------------------------


def _stage_of(span: ReadableSpan) -> Stage:
    """A span that the SDK recorded, as one of ours."""
    context: SpanContext = span.get_span_context()  # type: ignore[assignment]  # a span that has ended has one
    parent = span.parent
    parent_id = parent.span_id if parent is not None else 0
    remote_id = parent_id if parent is not None and parent.is_remote else 0
    trace_id = f"{context.trace_id:032x}"
    origin = Origin(trace_id, remote_id, int(context.trace_flags), context.trace_state.to_header())
    stage = Stage(origin, parent_id, span.name, span.kind, lambda: span.start_time or 0)
    stage.span_id = context.span_id
    stage.attributes = dict(span.attributes or {})
    stage.notes = tuple(Note(event.name, event.timestamp, event.attributes) for event in span.events)
    stage.links = tuple(span.links)
    stage.failed = span.status.status_code is StatusCode.ERROR
    stage.succeeded = span.status.status_code is StatusCode.OK
    stage.message = span.status.description or ""
    stage.ended_ns = span.end_time or stage.started_ns
    return stage
