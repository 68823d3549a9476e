"""Tracing: which exporter, from the standard OTEL_* variables; none by default, and then spans cost next to nothing.

Names of spans and attributes follow the GenAI semantic conventions (opentelemetry.io/docs/specs/semconv/gen-ai).
"""

from __future__ import annotations

import os
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from opentelemetry import trace
from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from plugin_sdk.messages import RawHeaders
from sidecar import __version__

_GROUP = "opentelemetry_traces_exporter"


class TelemetryError(Exception):
    """The OTEL_* variables ask for something that is not there."""


class Telemetry:
    """The tracer, and the provider behind it if there is anything to export."""

    def __init__(self, exporters: list[SpanExporter]) -> None:
        self._provider: TracerProvider | None = None
        provider: trace.TracerProvider = trace.NoOpTracerProvider()
        if exporters:
            provider = self._provider = TracerProvider(resource=_resource())
            for exporter in exporters:
                self._provider.add_span_processor(BatchSpanProcessor(exporter))  # no request waits for an export
        self.tracer = provider.get_tracer("sidecar", __version__)

    @classmethod
    def from_environment(cls) -> Telemetry:
        """Exporters as OTEL_TRACES_EXPORTER names them (`none`, `console`, `otlp`). Raises TelemetryError."""
        names = [name.strip() for name in os.environ.get("OTEL_TRACES_EXPORTER", "none").split(",")]
        return cls([_exporter(name) for name in names if name not in ("", "none")])

    def close(self) -> None:
        """Export what is left. Blocks, with the exporter's own deadline: keep it off the event loop."""
        if self._provider is not None:
            self._provider.shutdown()


def _resource() -> Resource:
    """What the OTEL_* variables say about this service; `sidecar` where they do not name it."""
    said = OTELResourceDetector().detect()
    return Resource.create({SERVICE_NAME: "sidecar", SERVICE_VERSION: __version__, **said.attributes})


def parent_of(headers: RawHeaders) -> Any:
    """The trace context that the caller sent (W3C `traceparent`, `tracestate`)."""
    return extract({name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers})


def traced(headers: RawHeaders, context: Any) -> RawHeaders:
    """The headers with the trace context of `context` in place of the caller's."""
    carrier: dict[str, str] = {}
    inject(carrier, context)
    if not carrier:
        return headers
    kept = tuple((name, value) for name, value in headers if name.decode("latin-1").lower() not in carrier)
    return (*kept, *((name.encode(), value.encode()) for name, value in carrier.items()))


def trace_id(span: trace.Span) -> str:
    """32 hexadecimal digits, or "" outside any trace."""
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def _exporter(name: str) -> SpanExporter:
    if name == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
            "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
        )
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found: list[EntryPoint] = list(entry_points(group=_GROUP, name=name))
    if not found:
        known = ", ".join(sorted({"none", "otlp", *(entry.name for entry in entry_points(group=_GROUP))}))
        extra = ' (install "llm-sidecar[otlp]")' if name.startswith("otlp") else ""
        raise TelemetryError(f"OTEL_TRACES_EXPORTER: there is no exporter {name}{extra}; known: {known}")
    exporter: SpanExporter = found[0].load()()
    return exporter
