"""The trace that a caller says its request belongs to, and how it is told on (W3C Trace Context, level 2)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from plugin_sdk.messages import RawHeaders

Pair = tuple[bytes, bytes]

SAMPLED = 0x01
RANDOM = 0x02  # the trace's id is random in its last 56 bits at least

_PARENT = b"traceparent"
_STATE = b"tracestate"
_LENGTH = len(_PARENT)
_LENGTHS = (len(_PARENT), len(_STATE))
_FORM = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[^\r\n]*)?")
_NO_TRACE = b"0" * 32
_NO_SPAN = b"0" * 16


class Caller(msgspec.Struct, frozen=True, gc=False):
    """Which span of which trace asks. trace_id: 32 hexadecimal digits. flags: those that it sent."""

    trace_id: str
    span_id: int
    flags: int

    @property
    def sampled(self) -> bool:
        """Whether the caller records its own spans."""
        return bool(self.flags & SAMPLED)


def read_caller(headers: RawHeaders) -> Caller | None:
    """What `traceparent` says; None without one, or if it is not well-formed, or there are several."""
    found: bytes | None = None
    for name, value in headers:
        if len(name) == _LENGTH and name.lower() == _PARENT:
            if found is not None:
                return None
            found = value
    return None if found is None else _parsed(found)


def _parsed(value: bytes) -> Caller | None:
    match = _FORM.fullmatch(value)
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more is not None):  # later versions may say more (section 3.2.4)
        return None
    if trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return Caller(trace_id.decode(), int(span_id, 16), int(flags, 16))


def read_state(headers: RawHeaders) -> str:
    """The caller's `tracestate`, its headers joined; "" if it is none that can be exported."""
    values = [value for name, value in headers if name.lower() == _STATE]
    state = b",".join(values)
    return state.decode() if state.isascii() else ""


def retold(headers: Sequence[Pair], trace_id: str, span_id: int, flags: int, *, keep_state: bool) -> Sequence[Pair]:
    """The headers with this span as the parent, in place of the caller's.

    keep_state: the caller's `tracestate` belongs to this trace. Otherwise it is of another, and is left out.
    """
    own = (_PARENT, f"00-{trace_id}-{span_id:016x}-{flags:02x}".encode())
    dropped = (_PARENT,) if keep_state else (_PARENT, _STATE)
    kept = [pair for pair in headers if len(pair[0]) not in _LENGTHS or pair[0].lower() not in dropped]
    return (*kept, own)
