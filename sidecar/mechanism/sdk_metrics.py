"""Metrics for an exporter of the OpenTelemetry SDK, which wants the SDK's own classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from sidecar.mechanism.deltas import Deltas
from sidecar.mechanism.exports import ExportError
from sidecar.mechanism.metrics import Family, Kind, Point, Spread
from sidecar.mechanism.otlp_metrics import Times, labelled


class SdkMetrics:
    """An exporter of metrics (metric_exports.MetricExporter)."""

    def __init__(
        self,
        exporter: sdk.MetricExporter,
        resource: Resource,
        scope: InstrumentationScope,
        timeout_s: float,
        deltas: Deltas | None = None,
    ) -> None:
        self._exporter = exporter
        self._resource = resource
        self._scope = scope
        self._timeout_ms = timeout_s * 1000
        self._deltas = deltas

    def export(self, families: Sequence[Family], times: Times) -> None:
        """Deliver them. Raises ExportError, and what the exporter raises."""
        told, span = (families, times) if self._deltas is None else self._deltas.since(families, times)
        metrics = [metric for family in told if (metric := _metric(family, span)) is not None]
        of_scope = sdk.ScopeMetrics(self._scope, metrics, "")
        data = sdk.MetricsData([sdk.ResourceMetrics(self._resource, [of_scope], "")])
        if self._exporter.export(data, timeout_millis=self._timeout_ms) is not sdk.MetricExportResult.SUCCESS:
            raise ExportError("the exporter failed")
        if self._deltas is not None:
            self._deltas.delivered(families, times)

    def stop(self) -> None:
        """The SDK has no word for it."""

    def close(self) -> None:
        """Shut it down."""
        self._exporter.shutdown()


def _metric(family: Family, times: Times) -> sdk.Metric | None:
    metric = family.metric
    points = [_point(family, one, times) for one in family.series if isinstance(one, Point)]
    spreads = [_spread(family, one, times) for one in family.series if isinstance(one, Spread)]
    if not points and not spreads:
        return None
    told = sdk.AggregationTemporality.DELTA if times.delta else sdk.AggregationTemporality.CUMULATIVE
    data: sdk.DataT
    match metric.kind:
        case Kind.COUNTER:
            data = sdk.Sum(points, told, is_monotonic=True)
        case Kind.HISTOGRAM:
            data = sdk.Histogram(spreads, told)
        case _:
            data = sdk.Gauge(points)
    return sdk.Metric(metric.name, metric.help, metric.unit, data)


def _point(family: Family, one: Point, times: Times) -> sdk.NumberDataPoint:
    labels = labelled(family.metric.labels, one.labels)
    return sdk.NumberDataPoint(labels, times.began, times.now, one.value)


def _spread(family: Family, one: Spread, times: Times) -> sdk.HistogramDataPoint:
    return sdk.HistogramDataPoint(
        attributes=labelled(family.metric.labels, one.labels),
        start_time_unix_nano=times.began,
        time_unix_nano=times.now,
        count=sum(one.counts),
        sum=one.sum,
        bucket_counts=one.counts,
        explicit_bounds=family.metric.bounds,
        min=math.inf,  # as the SDK says that it has not looked
        max=-math.inf,
    )
