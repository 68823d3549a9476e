"""Which exporter, from the standard variables; and trace contexts that pass through with or without one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from plugin_sdk.messages import RawHeaders
from sidecar import __version__
from sidecar.mechanism.telemetry import Telemetry, TelemetryError, parent_of, trace_id, traced
from sidecar.mechanism.upstream import Client
from tests.servers import HTTP_SERVER
from tests.support import serving

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


def forwarded(telemetry: Telemetry, headers: RawHeaders) -> RawHeaders:
    """What a request with these headers says upstream, from within a span."""
    context = parent_of(headers)
    span = telemetry.tracer.start_span("chat", context=context)
    result = traced(headers, trace.set_span_in_context(span, context))
    span.end()
    return result


# --- exporters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "", "none", " none ", "none,"])
def test_by_default_nothing_is_recorded(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is not None:
        monkeypatch.setenv("OTEL_TRACES_EXPORTER", value)
    telemetry = Telemetry.from_environment()
    span = telemetry.tracer.start_span("x")
    assert not span.is_recording()
    assert trace_id(span) == ""
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
    with pytest.raises(TelemetryError, match="install"):
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


# --- trace contexts -----------------------------------------------------------------------------------------------


def test_the_callers_trace_is_passed_on_even_without_an_exporter() -> None:
    telemetry = Telemetry.from_environment()
    headers = {name.lower(): value for name, value in forwarded(telemetry, CALLERS)}
    assert headers[b"traceparent"] == SENT.encode()
    assert headers[b"tracestate"] == b"vendor=1"
    assert headers[b"x-other"] == b"kept"
    assert len(forwarded(telemetry, CALLERS)) == 3


def test_the_id_of_the_callers_trace_is_known_even_without_an_exporter() -> None:
    telemetry = Telemetry.from_environment()
    assert trace_id(telemetry.tracer.start_span("chat", context=parent_of(CALLERS))) == TRACE


def test_with_an_exporter_the_server_hears_of_our_span_in_the_callers_trace(
    recording: tuple[Telemetry, InMemorySpanExporter],
) -> None:
    telemetry, exporter = recording
    headers = forwarded(telemetry, CALLERS)
    telemetry.close()
    [span] = exporter.get_finished_spans()
    assert span.context is not None
    own = f"00-{TRACE}-{trace.format_span_id(span.context.span_id)}-01".encode()
    assert [value for name, value in headers if name.lower() == b"traceparent"] == [own]
    assert (b"X-Other", b"kept") in headers
    assert span.parent is not None
    assert trace.format_span_id(span.parent.span_id) == "b7ad6b7169203331"


def test_a_caller_without_a_trace_gets_none_without_an_exporter() -> None:
    headers = ((b"X-Other", b"kept"),)
    assert forwarded(Telemetry.from_environment(), headers) == headers


def test_a_caller_without_a_trace_gets_ours_with_an_exporter(
    recording: tuple[Telemetry, InMemorySpanExporter],
) -> None:
    assert b"traceparent" in dict(forwarded(recording[0], ()))


@pytest.mark.parametrize("sent", [b"", b"nonsense", b"00-0-0-0", b"\xff\xfe", f"00-{'0' * 32}-{'0' * 16}-01".encode()])
def test_a_callers_nonsense_is_no_trace(sent: bytes) -> None:
    telemetry = Telemetry.from_environment()
    assert trace_id(telemetry.tracer.start_span("x", context=parent_of(((b"traceparent", sent),)))) == ""


def test_a_callers_choice_not_to_sample_is_respected(recording: tuple[Telemetry, InMemorySpanExporter]) -> None:
    telemetry, exporter = recording
    forwarded(telemetry, ((b"traceparent", SENT.replace("-01", "-00").encode()),))
    telemetry.close()
    assert exporter.get_finished_spans() == ()
