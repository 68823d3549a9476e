"""Names, and sums that cannot grow without bounds."""

from __future__ import annotations

import pytest

from sidecar.mechanism.metrics import Histogram, Kind, Metric, Point, Spread, Spreads, Sums, label_name


def metric(name: str, kind: Kind = Kind.GAUGE, unit: str = "", exposed: str = "") -> Metric:
    return Metric(name=name, kind=kind, help="It.", unit=unit, exposed=exposed)


@pytest.mark.parametrize(
    ("one", "name"),
    [
        (metric("gen_ai.server.request.duration", Kind.HISTOGRAM, "s"), "gen_ai_server_request_duration_seconds"),
        (metric("gen_ai.client.token.usage", Kind.HISTOGRAM, "{token}"), "gen_ai_client_token_usage"),
        (metric("sidecar.requests", Kind.COUNTER, "{request}"), "sidecar_requests_total"),
        (metric("sidecar.body.size", Kind.COUNTER, "By"), "sidecar_body_size_bytes_total"),
        (metric("sidecar.device.utilization", unit="1"), "sidecar_device_utilization_ratio"),
        (metric("sidecar.device.temperature", unit="Cel"), "sidecar_device_temperature_celsius"),
        (metric("sidecar.build", Kind.INFO), "sidecar_build_info"),
        (metric("sidecar.wait.seconds", unit="s"), "sidecar_wait_seconds"),
        (metric("process.cpu.time", Kind.COUNTER, "s", "process_cpu_seconds"), "process_cpu_seconds_total"),
    ],
)
def test_prometheus_has_the_names_that_the_conventions_give(one: Metric, name: str) -> None:
    assert one.sample_name == name


@pytest.mark.parametrize(
    ("attribute", "name"),
    [
        ("sidecar.model", "model"),
        ("gen_ai.operation.name", "gen_ai_operation_name"),
        ("http.response.status_code", "http_response_status_code"),
        ("9lives", "_9lives"),
        ("with space-and-ü", "with_space_and_"),
        ("sidecar.", "_"),
    ],
)
def test_labels_of_our_own_go_without_their_prefix(attribute: str, name: str) -> None:
    assert label_name(attribute) == name


def test_a_value_on_a_bound_is_in_the_bucket_below() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.add(value)
    assert histogram.spread(("a",)) == Spread(("a",), (2, 2, 1), 7.5)


def test_sums_beyond_the_most_are_one() -> None:
    sums = Sums(1, most=2)
    for name in ("a", "b", "c", "a", "d"):
        sums.add((name,))
    assert list(sums.points()) == [Point(("a", ""), 2), Point(("b", ""), 1), Point(("", "true"), 2)]


def test_histograms_beyond_the_most_are_one() -> None:
    spreads = Spreads(1, (1.0,), most=2)
    for name in ("a", "b", "c", "d", "a"):
        spreads.of((name,)).add(0.5)
    assert [(one.labels, sum(one.counts)) for one in spreads.spreads()] == [
        (("a", ""), 2),
        (("b", ""), 1),
        (("", "true"), 2),
    ]


def test_a_histogram_that_has_counted_nothing_is_not_told() -> None:
    spreads = Spreads(1, (1.0,))
    spreads.of(("a",))
    assert not list(spreads.spreads())
