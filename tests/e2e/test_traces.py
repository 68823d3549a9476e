"""Spans, as they arrive at a collector over OTLP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.e2e.conftest import Run
from tests.e2e.harness import llama, seen, stub, until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


class Collector(ThreadingHTTPServer):
    """Keeps the spans that it is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []

    def env(self) -> dict[str, str]:
        """The standard variables that point an exporter here."""
        return {
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }

    def named(self, name: str) -> Span:
        """The span of that name."""
        return next(span for span in list(self.spans) if span.name == name)

    def tree(self, trace: str) -> list[str]:
        """The spans of a trace, indented by depth, in the order in which they began."""
        spans = [span for span in self.spans if span.trace_id.hex() == trace]

        def below(parent: str, depth: int) -> Iterator[str]:
            for span in sorted(spans, key=lambda span: span.start_time_unix_nano):
                if span.parent_span_id.hex() == parent:
                    yield "  " * depth + span.name
                    yield from below(span.span_id.hex(), depth + 1)

        return list(below(PARENT, 0))


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector on loopback."""
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def attributes(span: Span) -> dict[str, Any]:
    """A span's attributes as plain values."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in span.attributes}


def test_a_cold_request_is_one_tree_of_spans(run: Run, collector: Collector) -> None:
    sidecar = run(llama("parrot"), env=collector.env())
    body = {"model": "parrot", "messages": [{"role": "user", "content": "hi"}]}
    with sidecar.http() as http:
        assert http.post("/v1/chat/completions", json=body, headers=HEADERS).status_code == 200
    until(lambda: any(span.name == "chat parrot" for span in collector.spans), "the server span is exported")
    assert collector.tree(TRACE) == ["chat parrot", "  auth", "  queue", "    cold start", "  upstream"]
    server = collector.named("chat parrot")
    assert server.kind == Span.SPAN_KIND_SERVER
    told = attributes(server)
    assert told["gen_ai.operation.name"] == "chat"
    assert (told["gen_ai.request.model"], told["gen_ai.response.model"]) == ("parrot", "parrot")
    assert told["gen_ai.usage.input_tokens"] > 0
    assert told["gen_ai.usage.output_tokens"] > 0
    assert (told["http.response.status_code"], told["sidecar.principal"], told["sidecar.cold"]) == (200, "tester", True)
    assert collector.named("upstream").kind == Span.SPAN_KIND_CLIENT
    until(lambda: any(span.name == "server start" for span in collector.spans), "the start is exported")
    start = collector.named("server start")
    assert start.parent_span_id == collector.named("reconcile").span_id
    sidecar.cli("stop", "parrot")
    until(lambda: any(span.name == "server stop" for span in collector.spans), "the stop is exported")


def test_a_refused_request_says_why_in_its_span(run: Run, collector: Collector) -> None:
    sidecar = run(stub("mirror"), env=collector.env())
    with sidecar.http() as http:
        body = {"model": "mirror", "input": "x"}
        assert http.post("/v1/embeddings", json=body, headers=HEADERS).status_code == 400
    until(lambda: any(span.name == "embeddings mirror" for span in collector.spans), "the span is exported")
    assert attributes(collector.named("embeddings mirror"))["error.type"] == "wrong_mode"


def test_the_upstream_becomes_a_child_of_the_upstream_span(run: Run, collector: Collector) -> None:
    with_exporter = run(stub("mirror"), env=collector.env())
    with with_exporter.http() as http:
        http.post("/v1/chat/completions", json={"model": "mirror", "messages": []}, headers=HEADERS)
    until(lambda: any(span.name == "upstream" for span in collector.spans), "the upstream span is exported")
    (request,) = seen(with_exporter.model("mirror")["server"]["port"])
    told = dict(request["headers"])["traceparent"]
    assert told == f"00-{TRACE}-{collector.named('upstream').span_id.hex()}-01"


def test_without_an_exporter_the_callers_trace_is_passed_on_as_it_is(run: Run) -> None:
    sidecar = run(stub("mirror"))
    with sidecar.http() as http:
        http.post("/v1/chat/completions", json={"model": "mirror", "messages": []}, headers=HEADERS)
    (request,) = seen(sidecar.model("mirror")["server"]["port"])
    assert dict(request["headers"])["traceparent"] == HEADERS["traceparent"]
