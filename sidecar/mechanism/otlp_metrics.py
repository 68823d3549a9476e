"""Metrics in OTLP's protobuf encoding, written by hand as spans are. (opentelemetry-proto: metrics.proto)"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from sidecar.mechanism.metrics import Family, Kind, Labels, Metric, Point, Spread
from sidecar.mechanism.otlp import attributes, sized, text, who

_DELTA = b"\x10\x01"  # aggregation_temporality = 2
_CUMULATIVE = b"\x10\x02"
_MONOTONIC = b"\x18\x01"  # is_monotonic = 3

_SPAN = struct.Struct("<cQcQ")  # start_time_unix_nano = 2, time_unix_nano = 3
_INT = struct.Struct("<cq")  # as_int = 6
_DOUBLE = struct.Struct("<cd")  # as_double = 4; sum = 5
_COUNT = struct.Struct("<cQ")  # count = 4
_INT64 = range(-(1 << 63), 1 << 63)


class Times(msgspec.Struct, frozen=True):
    """Unix nanoseconds. began: since when it is counted. delta: what has come since then is told, and no more."""

    began: int
    now: int
    delta: bool = False


class MetricsEncoder:
    """Writes an ExportMetricsServiceRequest of the metrics of one resource and scope."""

    def __init__(self, resource: Resource, scope: InstrumentationScope) -> None:
        self._resource, self._scope = who(resource, scope)

    def request(self, families: Iterable[Family], times: Times) -> bytes:
        """The body to send. Metrics without series are left out."""
        written = (_metric(family, times) for family in families)
        of_scope = b"".join((self._scope, *(sized(b"\x12", one) for one in written if one)))
        return sized(b"\x0a", self._resource + sized(b"\x12", of_scope))


def _metric(family: Family, times: Times) -> bytes:
    metric = family.metric
    spans = _SPAN.pack(b"\x11", times.began, b"\x19", times.now)
    points = b"".join(sized(b"\x0a", _point(metric, one, spans)) for one in family.series)
    if not points:
        return b""
    temporality = _DELTA if times.delta else _CUMULATIVE
    match metric.kind:
        case Kind.COUNTER:
            data = sized(b"\x3a", points + temporality + _MONOTONIC)
        case Kind.HISTOGRAM:
            data = sized(b"\x4a", points + temporality)
        case _:
            data = sized(b"\x2a", points)
    head = text(b"\x0a", metric.name) + text(b"\x12", metric.help)
    return head + (text(b"\x1a", metric.unit) if metric.unit else b"") + data


def _point(metric: Metric, one: Point | Spread, spans: bytes) -> bytes:
    if isinstance(one, Spread):
        return _spread(metric, one, spans)
    value = one.value
    number = _INT.pack(b"\x31", value) if isinstance(value, int) and value in _INT64 else _DOUBLE.pack(b"\x21", value)
    return b"".join((*attributes(b"\x3a", labelled(metric.labels, one.labels)), spans, number))


def _spread(metric: Metric, one: Spread, spans: bytes) -> bytes:
    counts = one.counts
    return b"".join(
        (
            *attributes(b"\x4a", labelled(metric.labels, one.labels)),
            spans,
            _COUNT.pack(b"\x21", sum(counts)),
            _DOUBLE.pack(b"\x29", one.sum),
            sized(b"\x32", struct.pack(f"<{len(counts)}Q", *counts)),
            sized(b"\x3a", struct.pack(f"<{len(metric.bounds)}d", *metric.bounds)),
        )
    )


def labelled(names: Labels, values: Labels) -> dict[str, str]:
    """The attributes of a series, without those that it does not have."""
    return {name: value for name, value in zip(names, values, strict=True) if value}
