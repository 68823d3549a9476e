"""`/metrics`: who may read it, in which form; that it tells no secret; and metrics that are sent over OTLP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

from tests.e2e.conftest import Run, free_block
from tests.e2e.harness import KEY, Sidecar, cli, running, settings, stub, until, write
from tests.exposition import value

OUTSIDE = {"x-forwarded-for": "203.0.113.7", "host": "gateway.example"}
OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1"
TOKEN = "sk-admin-of-metrics"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """A sidecar that has served a request."""
    folder = tmp_path_factory.mktemp("metrics")
    own = settings(folder / "state", free_block(), 'admin_token = { env = "ADMIN" }')
    with running(folder, {"sidecar.toml": own, "m.toml": stub("m")}, {"ADMIN": TOKEN}) as sidecar:
        assert sidecar.ask("m")
        yield sidecar


def get(sidecar: Sidecar, **headers: str) -> httpx.Response:
    """`/metrics`, with these headers (underscores for dashes)."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.get(f"{sidecar.url}/metrics", headers=named, trust_env=False, timeout=20)


def test_this_machine_reads_text_or_openmetrics(here: Sidecar) -> None:
    plain, opened = get(here), get(here, accept=OPENMETRICS)
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert opened.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    for text in (plain.text, opened.text):
        assert value(text, "sidecar_requests_total", model="m", end="ok") == 1
        assert value(text, "gen_ai_server_request_duration_seconds_bucket", gen_ai_request_model="m", le="+Inf") == 1


def test_it_is_compressed_for_those_who_take_that(here: Sidecar) -> None:
    assert get(here, accept_encoding="gzip").headers["content-encoding"] == "gzip"
    assert "content-encoding" not in get(here, accept_encoding="identity").headers
    assert "content-encoding" not in get(here, accept_encoding="gzip;q=0").headers


def test_nobody_else_reads_it_without_the_admin_token(here: Sidecar) -> None:
    url = f"{here.url}/metrics"
    for headers, status in (
        (OUTSIDE, 403),
        ({**OUTSIDE, "authorization": f"Bearer {KEY}"}, 401),
        ({**OUTSIDE, "authorization": f"Bearer {TOKEN}"}, 200),
        ({"origin": "https://evil.example"}, 403),
    ):
        assert httpx.get(url, headers=headers, trust_env=False).status_code == status, headers
    assert httpx.post(url, trust_env=False).status_code == 405


def test_no_secret_is_told(here: Sidecar) -> None:
    text = get(here).text
    assert KEY not in text
    assert TOKEN not in text
    assert "principal=" not in text


def from_outside(sidecar: Sidecar) -> int:
    """The status that a caller on another machine gets."""
    return httpx.get(f"{sidecar.url}/metrics", headers=OUTSIDE, trust_env=False).status_code


def test_who_may_read_it_changes_as_it_runs(here: Sidecar) -> None:
    before = (here.folder / "manifests" / "sidecar.toml").read_text(encoding="utf-8")
    try:
        here.write("sidecar.toml", before.replace("admin_token", 'metrics = "open"\nadmin_token'))
        until(lambda: from_outside(here) == 200, "everybody may read it")
        assert httpx.get(f"{here.url}/-/status", headers=OUTSIDE, trust_env=False).status_code == 403
        here.write("sidecar.toml", before.replace("admin_token", 'metrics = "off"\nadmin_token'))
        until(lambda: from_outside(here) == 404, "nobody may read it")
        assert get(here).status_code == 404
    finally:
        here.write("sidecar.toml", before)
        until(lambda: from_outside(here) == 403, "operators may read it")


# --- OTLP ---------------------------------------------------------------------------------------------------------


class Collector(ThreadingHTTPServer):
    """Keeps the metrics that it is sent: those of the last request, by name. service: who sent them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.metrics: dict[str, Metric] = {}
        self.service = ""

    def count(self, model: str) -> int:
        """How many requests for the model it was told of."""
        points = self.metrics["sidecar.requests"].sum.data_points if "sidecar.requests" in self.metrics else ()
        named = [(point, {one.key: one.value.string_value for one in point.attributes}) for point in points]
        return sum(point.as_int for point, told in named if told["sidecar.model"] == model)


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        request = ExportMetricsServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        [resource] = request.resource_metrics
        told = {one.key: one.value.string_value for one in resource.resource.attributes}
        self.server.service = told["service.name"]
        self.server.metrics = {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector on loopback."""
    with Collector() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def test_metrics_are_sent_as_it_runs_and_once_more_when_it_ends(run: Run, collector: Collector) -> None:
    env = {
        "OTEL_METRICS_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_METRIC_EXPORT_INTERVAL": "200",
        "OTEL_RESOURCE_ATTRIBUTES": "service.name=box-7",
    }
    sidecar = run(stub("m"), env=env)
    sidecar.ask("m")
    until(lambda: collector.count("m") == 1, "the request is told of")
    assert collector.service == "box-7"
    duration = collector.metrics["gen_ai.server.request.duration"]
    assert (duration.unit, duration.histogram.data_points[0].count) == ("s", 1)
    assert {one.key for one in duration.histogram.data_points[0].attributes} == {
        "gen_ai.operation.name",
        "gen_ai.provider.name",
        "gen_ai.request.model",
    }
    sidecar.ask("m")
    assert sidecar.stop() == 0
    assert collector.count("m") == 2


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("OTEL_METRICS_EXPORTER", "otpl"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "soon"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "both"),
    ],
)
def test_a_variable_that_cannot_be_stops_the_start(tmp_path: Path, name: str, told: str) -> None:
    write(tmp_path / "sidecar.toml", settings(tmp_path / "state", free_block()))
    env = {"OTEL_METRICS_EXPORTER": "otlp", name: told}
    done = cli("run", str(tmp_path), env=env, check=False)
    assert done.returncode == 1
    assert f"{name}: " in done.stderr
    assert told in done.stderr
