"""Where metrics go by the standard variables, and what becomes of an exporter that fails, hangs, or is not there."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1 import metrics_pb2 as pb

from sidecar.mechanism.metric_exports import MetricExportError, Push, Schedule, push_of, schedule_of
from sidecar.mechanism.metrics import Family, Kind, Metric, Point, Spread
from sidecar.mechanism.otlp_metrics import Times
from tests.support import free_port, until

COUNTER = Metric(name="sidecar.requests", kind=Kind.COUNTER, help="Requests.", labels=("sidecar.model",))
HISTOGRAM = Metric(name="sidecar.wait", kind=Kind.HISTOGRAM, unit="s", help="Wait.", bounds=(1.0,))


class Receiver(ThreadingHTTPServer):
    """Keeps what it is sent, decoded, and answers with the statuses given, then with 200."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[tuple[str, ExportMetricsServiceRequest]] = []
        self.statuses: list[int] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def values(self) -> list[int]:
        """The value of the counter in each request."""
        return [_metrics(request)["sidecar.requests"].sum.data_points[0].as_int for _, request in list(self.seen)]


def _metrics(request: ExportMetricsServiceRequest) -> dict[str, pb.Metric]:
    return {metric.name: metric for metric in request.resource_metrics[0].scope_metrics[0].metrics}


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if status == 200:
            self.server.seen.append((self.path, ExportMetricsServiceRequest.FromString(body)))
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


class Source:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self) -> Sequence[Family]:
        self.asked += 1
        return [
            Family(COUNTER, [Point(("owl",), self.asked)]),
            Family(HISTOGRAM, [Spread((), (self.asked, 0), 0.5)]),
        ]


class Fake:
    """An exporter that does as it is told. exported: the values of the counter."""

    def __init__(self, work: Callable[[], None] = lambda: None) -> None:
        self.exported: list[float] = []
        self.stopped = self.closed = False
        self._work = work

    def export(self, families: Sequence[Family], times: Times) -> None:
        del times
        self._work()
        one = next(iter(families[0].series))
        assert isinstance(one, Point)
        self.exported.append(one.value)

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self.closed = True


def otlp(receiver_url: str, **more: str) -> Push:
    environment = {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": receiver_url, **more}
    push = push_of(environment)
    assert push is not None
    return push


# --- the variables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_METRICS_EXPORTER": ""},
        {"OTEL_METRICS_EXPORTER": "none"},
        {"OTEL_METRICS_EXPORTER": "prometheus"},
        {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_by_default_nothing_is_sent(environment: dict[str, str]) -> None:
    assert push_of(environment) is None


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"OTEL_METRICS_EXPORTER": "otpl"}, "OTEL_METRICS_EXPORTER: there is no exporter otpl; known: "),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL: http/json is not one of"),
        ({"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"}, "install opentelemetry-exporter-otlp-proto-grpc"),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "collector:4318"}, "collector:4318 is not an http:// or https:// URL"),
        ({"OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "soon"}, "OTEL_EXPORTER_OTLP_TIMEOUT: soon is not a number"),
        (
            {"OTEL_METRIC_EXPORT_INTERVAL": "0"},
            "OTEL_METRIC_EXPORT_INTERVAL: 0 is not a number of milliseconds above 0",
        ),
        ({"OTEL_METRIC_EXPORT_INTERVAL": "60s"}, "OTEL_METRIC_EXPORT_INTERVAL: 60s is not"),
        ({"OTEL_METRIC_EXPORT_TIMEOUT": "-5"}, "OTEL_METRIC_EXPORT_TIMEOUT: -5 is not"),
        (
            {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "both"},
            "TEMPORALITY_PREFERENCE: both is not one of cumulative, delta, lowmemory",
        ),
        (
            {"OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION": "base2_exponential_bucket_histogram"},
            "base2_exponential_bucket_histogram is not explicit_bucket_histogram",
        ),
    ],
)
def test_what_cannot_be_is_told_by_its_variable(environment: dict[str, str], told: str) -> None:
    with pytest.raises(MetricExportError) as raised:
        push_of({"OTEL_METRICS_EXPORTER": "otlp", **environment})
    assert told in str(raised.value)


def test_times_are_milliseconds() -> None:
    assert schedule_of({}) == Schedule(60.0, 30.0)
    told = {"OTEL_METRIC_EXPORT_INTERVAL": "1500", "OTEL_METRIC_EXPORT_TIMEOUT": " 250 "}
    assert schedule_of(told) == Schedule(1.5, 0.25)


# --- OTLP ---------------------------------------------------------------------------------------------------------


async def test_totals_are_sent_every_so_often_and_once_more_at_the_end(receiver: Receiver) -> None:
    push, source = otlp(receiver.url, OTEL_METRIC_EXPORT_INTERVAL="20"), Source()
    running = asyncio.create_task(push.run(source))
    await until(lambda: len(receiver.seen) >= 3, "three exports")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await push.close(source)
    path, last = receiver.seen[-1]
    assert path == "/v1/metrics"
    assert receiver.values()[-1] == source.asked
    assert _metrics(last)["sidecar.wait"].histogram.data_points[0].count == source.asked
    assert _metrics(last)["sidecar.requests"].sum.aggregation_temporality == pb.AGGREGATION_TEMPORALITY_CUMULATIVE
    assert push.failed == 0


@pytest.mark.parametrize("preference", ["delta", "LowMemory"])
async def test_changes_are_sent_if_that_is_asked_for(receiver: Receiver, preference: str) -> None:
    told = {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": preference}
    push, source = otlp(receiver.url, OTEL_EXPORTER_OTLP_COMPRESSION="gzip", **told), Source()
    source.asked = 10
    await push.once(source, 5.0)
    receiver.statuses = [400]
    await push.once(source, 5.0)
    await push.once(source, 5.0)
    assert receiver.values() == [11, 2]
    assert push.failed == 1
    sums = [_metrics(request)["sidecar.requests"].sum for _, request in receiver.seen]
    assert sums[0].aggregation_temporality == pb.AGGREGATION_TEMPORALITY_DELTA
    assert sums[1].data_points[0].start_time_unix_nano == sums[0].data_points[0].time_unix_nano
    await push.close(source)


async def test_the_endpoint_for_metrics_is_taken_as_it_is(receiver: Receiver) -> None:
    push = otlp("http://127.0.0.1:1", OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{receiver.url}/otlp/in?tenant=a")
    await push.once(Source(), 5.0)
    assert [path for path, _ in receiver.seen] == ["/otlp/in?tenant=a"]
    await push.close(Source())


async def test_a_collector_that_is_not_there_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    push, source = otlp(f"http://127.0.0.1:{free_port()}", OTEL_METRIC_EXPORT_TIMEOUT="200"), Source()
    with caplog.at_level(logging.WARNING):
        await push.once(source, 0.2)
        await push.close(source)
    assert push.failed >= 2
    assert len([record for record in caplog.records if "metrics are not exported" in record.message]) == 1


# --- exporters of any kind ----------------------------------------------------------------------------------------


def test_the_console_prints_what_the_sdk_would() -> None:
    program = """
import asyncio
from sidecar.mechanism.metric_exports import push_of
from tests.mechanism.test_metric_exports import Source
push = push_of({"OTEL_METRICS_EXPORTER": "console"})
asyncio.run(push.once(Source(), 5.0))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    [scope] = json.loads(done.stdout)["resource_metrics"][0]["scope_metrics"]
    told = {metric["name"]: metric["data"]["data_points"][0] for metric in scope["metrics"]}
    assert told["sidecar.requests"]["value"] == 1
    assert told["sidecar.requests"]["attributes"] == {"sidecar.model": "owl"}
    assert told["sidecar.wait"]["bucket_counts"] == [1, 0]


async def test_an_exporter_that_hangs_is_left_alone_and_others_go_on() -> None:
    go_on = threading.Event()

    def wait() -> None:
        go_on.wait(10)

    stuck, well = Fake(wait), Fake()
    push, source = Push([stuck, well], Schedule()), Source()
    await push.once(source, 0.05)
    await push.once(source, 0.05)
    assert well.exported == [1, 2]
    assert push.failed == 2
    go_on.set()
    await until(lambda: stuck.exported == [1], "the first export ends")
    await until(lambda: not push.busy, "that is noticed")
    await push.once(source, 5.0)
    assert stuck.exported == [1, 3]


async def test_an_exporter_that_raises_is_counted_and_asked_again() -> None:
    answers = iter([ZeroDivisionError("no"), None])

    def work() -> None:
        if (error := next(answers)) is not None:
            raise error

    fake, source = Fake(work), Source()
    push = Push([fake], Schedule())
    await push.once(source, 5.0)
    await push.once(source, 5.0)
    assert (push.failed, fake.exported) == (1, [2])


async def test_what_cannot_be_collected_is_tried_again() -> None:
    fake, source = Fake(), Source()
    broken = [True]

    async def collect() -> Sequence[Family]:
        if broken.pop() if broken else False:
            raise RuntimeError("no")
        return await source()

    push = Push([fake], Schedule(interval_s=0.01))
    running = asyncio.create_task(push.run(collect))
    await until(lambda: fake.exported, "an export")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert push.failed == 1
    await push.close(collect)
    assert fake.stopped
    assert fake.closed
