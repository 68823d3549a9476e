"""The spans of one request: a server span by the GenAI semantic conventions, and a child for each stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer

from plugin_sdk import End, Outcome
from plugin_sdk.messages import RawHeaders
from sidecar.control.leases import Target
from sidecar.mechanism.telemetry import parent_of, trace_id, traced


class RequestTrace:
    """One request's spans. Without an exporter they record nothing, and only carry the caller's context on."""

    def __init__(self, tracer: Tracer, headers: RawHeaders, operation: str, method: str, path: str) -> None:
        self._tracer = tracer
        self._operation = operation
        self.span = tracer.start_span(
            operation,
            context=parent_of(headers),
            kind=SpanKind.SERVER,
            attributes={"gen_ai.operation.name": operation, "http.request.method": method, "url.path": path},
        )
        self._context = trace.set_span_in_context(self.span)

    @property
    def id(self) -> str:
        """The trace's id, or "" outside any."""
        return trace_id(self.span)

    def asks_for(self, model: str) -> None:
        """The model that the client named."""
        self.span.update_name(f"{self._operation} {model}")
        self.span.set_attribute("gen_ai.request.model", model)

    @contextmanager
    def stage(self, name: str, kind: SpanKind = SpanKind.INTERNAL) -> Iterator[trace.Span]:
        """A child span around one stage; what is raised in it is its error."""
        with self._tracer.start_as_current_span(name, context=self._context, kind=kind) as span:
            yield span

    def cold_start(self, target: Target, parent: trace.Span) -> None:
        """The start that the request waited for, as a span with the times at which it happened."""
        if target.cold is None or not self.span.is_recording():
            return
        started, ready = (int(moment * 1e9) for moment in target.cold)
        attributes = {"sidecar.model": target.model, "sidecar.variant": target.variant}
        context = trace.set_span_in_context(parent)
        self._tracer.start_span("cold start", context=context, start_time=started, attributes=attributes).end(ready)

    def carry(self, headers: RawHeaders, span: trace.Span) -> RawHeaders:
        """The headers with this trace's context in them, for the upstream."""
        return traced(headers, trace.set_span_in_context(span))

    def end(self, outcome: Outcome) -> None:
        """Close the server span with what came of it."""
        span = self.span
        if span.is_recording():
            span.set_attribute("http.response.status_code", outcome.status)
            span.set_attribute("sidecar.end", outcome.end.value)
            for key, value in _told(outcome).items():
                span.set_attribute(key, value)
            if outcome.status >= 500 or (outcome.code and outcome.end is not End.OK):
                span.set_attribute("error.type", outcome.code or str(outcome.status))
                span.set_status(Status(StatusCode.ERROR))
        span.end()


def _told(outcome: Outcome) -> dict[str, str | int | bool]:
    values: dict[str, str | int | bool] = {
        "sidecar.model": outcome.model,
        "sidecar.variant": outcome.variant,
        "sidecar.principal": outcome.principal,
        "sidecar.cold": outcome.cold,
    }
    if outcome.usage is not None:
        values |= {
            "gen_ai.usage.input_tokens": outcome.usage.input_tokens,
            "gen_ai.usage.output_tokens": outcome.usage.output_tokens,
            "gen_ai.response.model": outcome.usage.response_model,
        }
    return {key: value for key, value in values.items() if value != ""}
