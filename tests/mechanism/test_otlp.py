"""Spans as OTLP's bytes, read by protobuf and compared with what the SDK's own encoder makes of them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

from plugin_sdk import End, Outcome, Usage
from plugin_sdk.messages import RawHeaders
from sidecar.mechanism import sampling
from sidecar.mechanism.exports import Ended, ExportError, SdkExporter
from sidecar.mechanism.otlp import Encoder
from sidecar.mechanism.spans import Stage
from sidecar.mechanism.traces import Traces

RESOURCE = Resource({"service.name": "sidecar", "hosts": ("a", "b"), "cores": 2})
SCOPE = InstrumentationScope("sidecar", "1.2.3")
CALLER: RawHeaders = (
    (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (b"tracestate", b"vendor=1"),
)
VALUES: list[Any] = [
    *(True, False, 0, 1, -1, 127, 128, 16384, 2**63 - 1, -(2**63), 0.0, 1.0, -1.5, 1e300),
    *("", "x", "ß€😀", "x" * 127, "y" * 128, "z" * 20_000),
    *((), (1, 2), (True, False), (1.0, 0.0), ("a", "b" * 300)),
]


def spans(headers: RawHeaders = CALLER) -> list[Stage]:
    """A request with all that its spans can say."""
    kept: list[Stage] = []
    request = Traces(sampling.ALWAYS, kept.extend, itertools.count(1_700_000_000_000_000_000).__next__).begin(
        headers, "chat", "POST", "/v1/chat/completions"
    )
    request.asks_for("parrot")
    with request.stage("auth"):
        plugins_own = trace.get_current_span()
        plugins_own.add_link(SpanContext(5, 6, True, TraceFlags(1), TraceState([("a", "b")])), {"n": 1})
        plugins_own.set_status(StatusCode.OK)
    with pytest.raises(KeyError), request.stage("filters"):
        raise KeyError("ß")
    upstream = request.begin("upstream", SpanKind.CLIENT)
    for number, value in enumerate(VALUES):
        upstream.set(f"v{number}", value)
    upstream.end()
    usage = Usage(input_tokens=3, output_tokens=4, response_model="m")
    request.end(Outcome(model="parrot", status=502, code="upstream_failed", end=End.UPSTREAM_FAILED, usage=usage))
    return kept


def decoded(ended: list[Ended]) -> ExportTraceServiceRequest:
    request: ExportTraceServiceRequest = ExportTraceServiceRequest.FromString(Encoder(RESOURCE, SCOPE).request(ended))
    return request


def by_the_sdk(ended: list[Ended]) -> ExportTraceServiceRequest:
    exporter = InMemorySpanExporter()
    SdkExporter(exporter, RESOURCE, SCOPE).export(ended)
    return encode_spans(exporter.get_finished_spans())


def meant(request: ExportTraceServiceRequest) -> ExportTraceServiceRequest:
    """Without what the SDK leaves out and the specification wants, and without empty statuses."""
    for span in request.resource_spans[0].scope_spans[0].spans:
        span.flags &= ~0xFF
        for link in span.links:
            link.flags &= ~0xFF
            link.trace_state = ""
        if span.status == Status():
            span.ClearField("status")
    return request


@pytest.mark.parametrize("headers", [CALLER, ()], ids=["child", "root"])
def test_our_bytes_say_what_the_sdks_encoder_says(headers: RawHeaders) -> None:
    ended: list[Ended] = [*spans(headers), *spans(headers)]
    assert meant(decoded(ended)) == meant(by_the_sdk(ended))


def test_spans_that_the_sdk_recorded_are_encoded_alike() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer(SCOPE.name, SCOPE.version)
    remote = trace.set_span_in_context(
        trace.NonRecordingSpan(SpanContext(7, 8, True, TraceFlags(1), TraceState([("a", "b")])))
    )
    with pytest.raises(ValueError, match="no"), tracer.start_as_current_span("out", remote, links=[Link(_context())]):
        tracer.start_span("in", kind=SpanKind.PRODUCER, attributes={"a": [1, 2], "b": True}).end()
        raise ValueError("no")
    with tracer.start_as_current_span("fine") as span:
        span.set_status(StatusCode.OK)
    provider.shutdown()
    recorded: list[Ended] = [*exporter.get_finished_spans()]
    assert meant(decoded(recorded)) == meant(by_the_sdk(recorded))


def _context() -> SpanContext:
    return SpanContext(3, 4, False)


def test_the_flags_say_whether_the_parent_is_remote() -> None:
    [server, auth, *_] = decoded([*spans()]).resource_spans[0].scope_spans[0].spans
    assert (server.flags, auth.flags) == (0x301, 0x101)


def test_equal_values_of_different_types_stay_apart() -> None:
    stage = spans()[1]
    stage.attributes = {"k": True}
    again = spans()[1]
    again.attributes = {"k": 1}
    last = spans()[1]
    last.attributes = {"k": 1.0}
    found = decoded([stage, again, last]).resource_spans[0].scope_spans[0].spans
    assert [span.attributes[0].value.WhichOneof("value") for span in found] == [
        "bool_value",
        "int_value",
        "double_value",
    ]


def test_what_has_no_form_of_its_own_goes_as_text() -> None:
    stage = spans()[1]
    stage.attributes = {"large": 1 << 63, "half": "\ud800"}
    large, half = decoded([stage]).resource_spans[0].scope_spans[0].spans[0].attributes
    assert (large.value.string_value, half.value.string_value) == (str(1 << 63), "?")


def test_an_exporter_of_the_sdk_that_fails_is_an_error() -> None:
    class Failing(InMemorySpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            assert all(isinstance(span, ReadableSpan) for span in spans)
            return SpanExportResult.FAILURE

    with pytest.raises(ExportError):
        SdkExporter(Failing(), RESOURCE, SCOPE).export(spans())
