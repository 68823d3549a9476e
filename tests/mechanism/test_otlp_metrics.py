"""Metrics in OTLP, as OpenTelemetry's own classes decode them."""

from __future__ import annotations

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from sidecar.mechanism.metrics import Family, Kind, Metric, Point, Spread
from sidecar.mechanism.otlp_metrics import MetricsEncoder, Times

ENCODER = MetricsEncoder(Resource({"service.name": "sidecar"}), InstrumentationScope("sidecar", "1.2"))
TIMES = Times(1_700_000_000_000_000_000, 1_700_000_060_000_000_000)


def decoded(family: Family, times: Times = TIMES) -> pb.Metric:
    request = ExportMetricsServiceRequest.FromString(ENCODER.request([family], times))
    metric: pb.Metric
    [metric] = request.resource_metrics[0].scope_metrics[0].metrics
    return metric


def test_whose_they_are_is_told() -> None:
    request = ExportMetricsServiceRequest.FromString(ENCODER.request([], TIMES))
    [resource] = request.resource_metrics
    assert resource.resource.attributes[0].value.string_value == "sidecar"
    assert (resource.scope_metrics[0].scope.name, resource.scope_metrics[0].scope.version) == ("sidecar", "1.2")


@pytest.mark.parametrize("delta", [False, True])
def test_a_counter_is_a_monotonic_sum(delta: bool) -> None:
    metric = Metric(name="sidecar.tokens", kind=Kind.COUNTER, unit="{token}", help="Tokens.", labels=("m", "overflow"))
    read = decoded(Family(metric, [Point(("öwl", ""), 3), Point(("b", "true"), 0.5)]), Times(5, 9, delta=delta))
    assert (read.name, read.description, read.unit) == ("sidecar.tokens", "Tokens.", "{token}")
    assert read.sum.is_monotonic
    assert read.sum.aggregation_temporality == (
        pb.AGGREGATION_TEMPORALITY_DELTA if delta else pb.AGGREGATION_TEMPORALITY_CUMULATIVE
    )
    first, second = read.sum.data_points
    assert (first.as_int, second.as_double) == (3, 0.5)
    assert {one.key: one.value.string_value for one in first.attributes} == {"m": "öwl"}
    assert {one.key: one.value.string_value for one in second.attributes} == {"m": "b", "overflow": "true"}
    assert (first.start_time_unix_nano, first.time_unix_nano) == (5, 9)


@pytest.mark.parametrize("kind", [Kind.GAUGE, Kind.INFO])
def test_gauges_and_infos_are_gauges(kind: Kind) -> None:
    read = decoded(Family(Metric(name="g", kind=kind, help="G."), [Point((), -2)]))
    assert read.WhichOneof("data") == "gauge"
    assert read.gauge.data_points[0].as_int == -2


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 1e300, float("inf")])
def test_numbers_of_any_size_arrive(value: float) -> None:
    read = decoded(Family(Metric(name="g", kind=Kind.GAUGE, help="G."), [Point((), value)]))
    assert read.gauge.data_points[0].as_double == float(value)


def test_a_histogram_has_its_buckets() -> None:
    metric = Metric(name="h", kind=Kind.HISTOGRAM, unit="s", help="H.", labels=("a",), bounds=(0.5, 1, 2.5))
    read = decoded(Family(metric, [Spread(("x",), (1, 0, 3, 2**40), 12.25)]))
    [point] = read.histogram.data_points
    assert list(point.bucket_counts) == [1, 0, 3, 2**40]
    assert list(point.explicit_bounds) == [0.5, 1.0, 2.5]
    assert (point.count, point.sum) == (2**40 + 4, 12.25)
    assert point.attributes[0].key == "a"


def test_what_has_no_series_is_left_out() -> None:
    family = Family(Metric(name="g", kind=Kind.GAUGE, help="G."), [])
    request = ExportMetricsServiceRequest.FromString(ENCODER.request([family], TIMES))
    assert not request.resource_metrics[0].scope_metrics[0].metrics
