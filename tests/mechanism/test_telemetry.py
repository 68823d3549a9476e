"""Which exporter and sampler, from the standard variables; and that all spans go the same way."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from plugin_sdk import Outcome
from plugin_sdk.messages import RawHeaders
from sidecar import __version__
from sidecar.mechanism.telemetry import Telemetry, TelemetryError
from sidecar.mechanism.traces import UNTRACED
from sidecar.mechanism.upstream import Client
from tests.servers import HTTP_SERVER
from tests.support import free_port, serving

TRACE = "0af7651916cd43dd8448eb211c80319c"
SENT = f"00-{TRACE}-b7ad6b7169203331-01"
CALLERS: RawHeaders = ((b"Traceparent", SENT.encode()), (b"tracestate", b"vendor=1"), (b"X-Other", b"kept"))


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def recording() -> Iterator[tuple[Telemetry, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    telemetry = Telemetry([exporter])
    yield telemetry, exporter
    telemetry.close()


# --- exporters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "", "none", " none ", "none,"])
def test_by_default_nothing_is_recorded(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is not None:
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", value)
    telemetry = Telemetry.from_environment()
    span = telemetry.tracer.start_span("x")
    assert not span.is_recording()
    assert not span.get_span_context().is_valid
    telemetry.close()


@pytest.mark.parametrize("value", ["jaegr", "none,jaegr", "otlp,jaegr"])
def test_an_exporter_that_is_not_there_is_named_with_those_that_are(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", value)
    with pytest.raises(TelemetryError) as told:
        Telemetry.from_environment()
    assert str(told.value).startswith("OTEL_TRACES_EXPORTER: there is no exporter jaegr; known: ")
    assert {"none", "otlp", "console"} <= set(str(told.value).partition("known: ")[2].split(", "))


def test_otlp_over_grpc_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(TelemetryError, match="install opentelemetry-exporter-otlp-proto-grpc"):
        Telemetry.from_environment()


def test_the_console_exporter_prints() -> None:
    program = """
from sidecar.mechanism.telemetry import Telemetry
telemetry = Telemetry.from_environment()
telemetry.tracer.start_span("server start").end()
telemetry.close()
"""
    env = {"OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "box-7", "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=30)
    span = json.loads(done.stdout)
    assert span["name"] == "server start"
    assert span["resource"]["attributes"]["service.name"] == "box-7"
    assert span["resource"]["attributes"]["service.version"] == __version__


async def test_otlp_sends_to_the_endpoint_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(HTTP_SERVER) as collector:
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-token=t")
        telemetry = Telemetry.from_environment()
        telemetry.tracer.start_span("server start").end()
        await asyncio.to_thread(telemetry.close)
        client = Client()
        [seen] = json.loads((await client.probe(collector.url).get("/_seen")).body)
        await client.close()
    assert seen["path"] == "/v1/traces"
    assert "server start" in seen["body"]
    assert ["x-token", "t"] in [[name.lower(), value] for name, value in seen["headers"]]


def test_the_service_is_called_sidecar_unless_it_is_said_otherwise(
    recording: tuple[Telemetry, InMemorySpanExporter],
) -> None:
    telemetry, exporter = recording
    telemetry.tracer.start_span("x").end()
    telemetry.close()
    [span] = exporter.get_finished_spans()
    assert span.resource.attributes["service.name"] == "sidecar"


def test_resource_attributes_of_the_environment_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test,service.name=from-attributes")
    exporter = InMemorySpanExporter()
    telemetry = Telemetry([exporter])
    telemetry.tracer.start_span("x").end()
    telemetry.close()
    [span] = exporter.get_finished_spans()
    assert span.resource.attributes["deployment.environment"] == "test"
    assert span.resource.attributes["service.name"] == "from-attributes"


def test_closing_exports_what_is_left_and_may_be_repeated(recording: tuple[Telemetry, InMemorySpanExporter]) -> None:
    telemetry, exporter = recording
    for _ in range(3):
        telemetry.tracer.start_span("x").end()
    telemetry.close()
    assert len(exporter.get_finished_spans()) == 3


# --- traces of requests -------------------------------------------------------------------------------------------


def test_by_default_no_request_is_traced() -> None:
    assert Telemetry.from_environment().traces.begin(CALLERS, "chat", "POST", "/x").id == TRACE
    assert Telemetry.from_environment().traces.begin((), "chat", "POST", "/x") is UNTRACED


def test_telemetry_that_is_disabled_exports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "True")
    assert Telemetry.from_environment().traces.begin((), "chat", "POST", "/x") is UNTRACED


def test_requests_and_plugins_spans_are_exported_alike(
    recording: tuple[Telemetry, InMemorySpanExporter],
) -> None:
    telemetry, exporter = recording
    request = telemetry.traces.begin(CALLERS, "chat", "POST", "/v1/chat/completions")
    with request.stage("filters"):
        telemetry.tracer.start_span("mine").end()
    request.end(Outcome(model="parrot", status=200))
    telemetry.close()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    server, stage, mine = spans["chat"], spans["filters"], spans["mine"]
    assert [trace.format_trace_id(span.context.trace_id) for span in (server, stage, mine) if span.context] == [
        TRACE
    ] * 3
    assert (parent(mine), parent(stage)) == (stage.context, server.context)
    assert server.parent is not None
    assert (trace.format_span_id(server.parent.span_id), server.parent.is_remote) == ("b7ad6b7169203331", True)
    assert server.context is not None
    assert server.context.trace_state.to_header() == "vendor=1"
    assert {span.resource for span in (server, stage, mine)} == {mine.resource}
    assert {span.instrumentation_scope for span in (server, stage, mine)} == {mine.instrumentation_scope}


def parent(span: ReadableSpan) -> SpanContext | None:
    """As a span's own context looks."""
    found = span.parent
    return found and SpanContext(found.trace_id, found.span_id, False, found.trace_flags, found.trace_state)


def test_every_exporter_gets_every_span() -> None:
    exporters = [InMemorySpanExporter(), InMemorySpanExporter()]
    telemetry = Telemetry(exporters)
    telemetry.traces.begin((), "chat", "POST", "/x").end(Outcome(model="parrot", status=200))
    telemetry.tracer.start_span("server start").end()
    telemetry.close()
    for exporter in exporters:
        assert [span.name for span in exporter.get_finished_spans()] == ["chat", "server start"]


def test_a_callers_choice_not_to_sample_is_respected(recording: tuple[Telemetry, InMemorySpanExporter]) -> None:
    telemetry, exporter = recording
    headers = ((b"traceparent", SENT.replace("-01", "-00").encode()),)
    with telemetry.traces.begin(headers, "chat", "POST", "/x").stage("filters"):
        telemetry.tracer.start_span("mine").end()
    telemetry.close()
    assert exporter.get_finished_spans() == ()


def test_the_sampler_of_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    telemetry = Telemetry([InMemorySpanExporter()])
    assert telemetry.traces.begin(CALLERS, "chat", "POST", "/x").id == TRACE
    assert telemetry.traces.begin((), "chat", "POST", "/x") is UNTRACED
    assert not telemetry.tracer.start_span("x").is_recording()
    telemetry.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_SAMPLER", "xray"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "lots"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
    ],
)
def test_a_variable_that_cannot_be_is_an_error(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv(name, value)
    with pytest.raises(TelemetryError, match=f"{name}.*{value}"):
        Telemetry.from_environment()


def test_spans_that_are_lost_are_counted(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    telemetry = Telemetry.from_environment()
    telemetry.tracer.start_span("server start").end()
    telemetry.close()
    assert telemetry.lost == 1
    assert "spans are lost, 1 so far: http://127.0.0.1:" in caplog.text
