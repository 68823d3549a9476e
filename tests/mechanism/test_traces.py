"""The spans of one request: whether there are any, whose children they are, and what they say."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Sampler, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

from plugin_sdk import End, Outcome, Usage
from plugin_sdk.messages import RawHeaders
from sidecar.mechanism import sampling
from sidecar.mechanism.spans import NO_STAGE, Stage
from sidecar.mechanism.traces import UNSAMPLED, UNTRACED, AnyTrace, RequestTrace, Traces

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
SENT: RawHeaders = ((b"traceparent", f"00-{TRACE}-{SPAN}-01".encode()), (b"tracestate", b"vendor=1"))
NOT_SAMPLED: RawHeaders = ((b"traceparent", f"00-{TRACE}-{SPAN}-00".encode()),)
OK = Outcome(model="parrot", status=200)


class Started(msgspec.Struct):
    """A target, as far as traces know it."""

    model: str = "parrot"
    variant: str = "cpu"
    cold: tuple[float, float] | None = None


@pytest.fixture
def kept() -> list[Stage]:
    """What has been handed over."""
    return []


@pytest.fixture
def traces(kept: list[Stage]) -> Traces:
    """All requests are traced; the clock says 100, 101, 102, ... ns."""
    return Traces(sampling.ALWAYS, kept.extend, itertools.count(100).__next__)


def begun(traces: Traces, headers: RawHeaders = ()) -> AnyTrace:
    return traces.begin(headers, "chat", "POST", "/v1/chat/completions")


def recorded(traces: Traces, headers: RawHeaders = ()) -> RequestTrace:
    result = begun(traces, headers)
    assert isinstance(result, RequestTrace)
    return result


# --- sampling -----------------------------------------------------------------------------------------------------


def test_without_an_exporter_nothing_is_made() -> None:
    assert begun(Traces()) is UNTRACED
    assert UNTRACED.begin("auth") is NO_STAGE
    assert UNTRACED.stage("auth") is NO_STAGE


def test_a_request_that_is_not_sampled_makes_nothing(kept: list[Stage]) -> None:
    assert begun(Traces(sampling.Sampler(0, by_parent=True), kept.extend)) is UNSAMPLED


@pytest.mark.parametrize("traces", [Traces(), Traces(sampling.ALWAYS, lambda _: None)], ids=["nobody", "exporter"])
def test_the_callers_trace_is_known_and_passed_on_though_it_is_not_recorded(traces: Traces) -> None:
    untraced = begun(traces, NOT_SAMPLED)
    assert untraced.id == TRACE
    assert untraced.carry(NOT_SAMPLED, untraced.begin("upstream")) is NOT_SAMPLED


def test_nothing_that_is_said_of_an_untraced_request_matters() -> None:
    with UNTRACED.stage("auth") as stage:
        stage.set("a", 1)
        stage.set_attribute("b", 2)
        stage.fail("x")
        stage.end()
    UNTRACED.asks_for("parrot")
    UNTRACED.cold_start(Started(cold=(1.0, 2.0)), stage)
    UNTRACED.end(OK)
    assert UNTRACED.id == ""


def test_a_ratio_of_the_requests_is_traced() -> None:
    traces = Traces(sampling.Sampler(round(0.25 * (1 << 64)), by_parent=True), lambda _: None)
    found = [trace for _ in range(4_000) if isinstance(trace := begun(traces), RequestTrace)]
    assert 800 < len(found) < 1_200
    assert all(int(trace.id[16:], 16) < 1 << 62 for trace in found)
    assert len({trace.id for trace in found}) == len(found)


# --- ids, parents and times ---------------------------------------------------------------------------------------


def test_spans_are_handed_over_at_once_with_their_times(traces: Traces, kept: list[Stage]) -> None:
    request = recorded(traces)
    auth = request.begin("auth")
    auth.end()
    upstream = request.begin("upstream", SpanKind.CLIENT)
    assert kept == []
    request.end(OK)
    request.end(OK)
    server, *children = kept
    assert children == [auth, upstream]
    assert (server.started_ns, auth.started_ns, auth.ended_ns, upstream.started_ns) == (100, 101, 102, 103)
    assert upstream.ended_ns == server.ended_ns == 104  # what nobody has ended ends with the request
    assert (server.kind, auth.kind, upstream.kind) == (SpanKind.SERVER, SpanKind.INTERNAL, SpanKind.CLIENT)


def test_stages_are_children_of_the_server_span_which_is_the_callers(traces: Traces, kept: list[Stage]) -> None:
    request = recorded(traces, SENT)
    queue = request.begin("queue")
    request.cold_start(Started(cold=(1.5, 2.0)), queue)
    request.end(OK)
    server, _, cold = kept
    assert (request.id, server.parent_id) == (TRACE, int(SPAN, 16))
    assert (queue.parent_id, cold.parent_id) == (server.span_id, queue.span_id)
    assert (cold.name, cold.started_ns, cold.ended_ns) == ("cold start", 1_500_000_000, 2_000_000_000)
    assert cold.attributes == {"sidecar.model": "parrot", "sidecar.variant": "cpu"}
    assert {span.origin.state for span in kept} == {"vendor=1"}
    assert len({span.span_id for span in kept}) == 3


def test_a_warm_server_has_no_start(traces: Traces, kept: list[Stage]) -> None:
    request = recorded(traces)
    request.cold_start(Started(), request.begin("queue"))
    request.end(OK)
    assert [span.name for span in kept] == ["chat", "queue"]


def test_the_upstream_hears_of_its_stage(traces: Traces) -> None:
    request = recorded(traces, SENT)
    stage = request.begin("upstream")
    own = (b"traceparent", f"00-{TRACE}-{stage.span_id:016x}-01".encode())
    assert request.carry(SENT, stage) == ((b"tracestate", b"vendor=1"), own)


def test_without_a_caller_the_trace_is_ours_and_its_id_random(traces: Traces) -> None:
    request = recorded(traces, ((b"tracestate", b"of=another"),))
    stage = request.begin("upstream")
    own = (b"traceparent", f"00-{request.id}-{stage.span_id:016x}-03".encode())
    assert request.carry(((b"tracestate", b"of=another"),), stage) == (own,)


# --- what is said -------------------------------------------------------------------------------------------------


def test_the_server_span_follows_the_conventions(traces: Traces, kept: list[Stage]) -> None:
    request = recorded(traces)
    request.asks_for("parrot")
    usage = Usage(input_tokens=3, output_tokens=4, response_model="parrot-q4")
    request.end(
        Outcome(model="parrot", variant="cpu", principal="team-a", status=200, cold=True, usage=usage),
    )
    assert kept[0].name == "chat parrot"
    assert kept[0].attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "parrot",
        "gen_ai.response.model": "parrot-q4",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 4,
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "sidecar.cold": True,
        "sidecar.end": "ok",
        "sidecar.model": "parrot",
        "sidecar.principal": "team-a",
        "sidecar.variant": "cpu",
        "url.path": "/v1/chat/completions",
    }
    assert not kept[0].failed


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Outcome(model="", status=200), None),
        (Outcome(model="", status=404), None),
        (Outcome(model="", status=500), "500"),
        (Outcome(model="", status=400, end=End.REFUSED, code="wrong_mode"), "wrong_mode"),
        (Outcome(model="", status=200, end=End.UPSTREAM_FAILED, code="upstream_failed"), "upstream_failed"),
        (Outcome(model="", status=200, code="answered_by:cache"), None),
    ],
)
def test_a_failure_is_named(traces: Traces, kept: list[Stage], outcome: Outcome, error: str | None) -> None:
    recorded(traces).end(outcome)
    said: dict[str, Any] = dict(kept[0].attributes or {})
    assert said.get("error.type") == error
    assert kept[0].failed == (error is not None)


def test_a_stage_fails_with_a_type_and_a_message(traces: Traces) -> None:
    stage = recorded(traces).begin("auth")
    stage.fail("unauthorized", "unknown key")
    stage.end()
    stage.set("too", "late")
    assert (stage.failed, stage.message, stage.attributes) == (True, "unknown key", {"error.type": "unauthorized"})


def test_what_is_raised_in_a_stage_is_its_error(traces: Traces) -> None:
    with pytest.raises(ValueError, match="no"), recorded(traces).stage("auth") as stage:
        raise ValueError("no")
    assert (stage.failed, stage.message) == (True, "ValueError: no")
    [note] = stage.notes
    said = dict(note.attributes or {})
    assert (note.name, said["exception.type"], said["exception.message"]) == ("exception", "ValueError", "no")
    assert 'raise ValueError("no")' in str(said["exception.stacktrace"])
    assert not stage.is_recording()


def test_a_cancellation_is_no_error(traces: Traces) -> None:
    with pytest.raises(asyncio.CancelledError), recorded(traces).stage("queue") as stage:
        raise asyncio.CancelledError
    assert not stage.failed
    assert not stage.is_recording()


# --- plugins' own spans -------------------------------------------------------------------------------------------


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Where the spans of `tracer_of` go."""
    return InMemorySpanExporter()


def tracer_of(exporter: InMemorySpanExporter, sampler: Sampler) -> Iterator[trace.Tracer]:
    provider = TracerProvider(sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider.get_tracer("plugin")
    provider.shutdown()


def test_a_plugins_span_is_a_child_of_the_stage(traces: Traces, exporter: InMemorySpanExporter) -> None:
    for tracer in tracer_of(exporter, DEFAULT_ON):
        with recorded(traces, SENT).stage("filters") as stage:
            tracer.start_span("mine").end()
        tracer.start_span("elsewhere").end()
    mine, elsewhere = exporter.get_finished_spans()
    assert mine.context is not None
    assert mine.context.trace_id == int(TRACE, 16)
    assert mine.context.trace_state.to_header() == "vendor=1"
    assert mine.parent is not None
    assert mine.parent.span_id == stage.span_id
    assert elsewhere.parent is None


@pytest.mark.parametrize("sampler", [DEFAULT_ON, TraceIdRatioBased(0.99)])
def test_a_plugins_span_in_an_unsampled_request_is_not_recorded(
    exporter: InMemorySpanExporter, sampler: Sampler
) -> None:
    for tracer in tracer_of(exporter, sampler):
        with UNSAMPLED.stage("filters"):
            tracer.start_span("mine").end()
    assert exporter.get_finished_spans() == ()


def test_a_plugin_finds_the_stage_as_the_current_span(traces: Traces) -> None:
    with recorded(traces).stage("filters") as stage:
        span = trace.get_current_span()
        assert span.is_recording()
        span.set_attributes({"a": 1, "b": ["x", 2, {}], "c": {"d": 1}})
        span.add_event("seen", {"n": 1}, timestamp=7)
        span.add_link(stage.get_span_context(), {"l": "m"})
        span.update_name("mine")
        span.set_status(StatusCode.ERROR, "bad")
    assert stage.name == "mine"
    assert stage.attributes == {"a": 1, "b": ("x", 2, "{}"), "c": "{'d': 1}"}
    assert (stage.notes[0].name, stage.notes[0].at_ns, stage.notes[0].attributes) == ("seen", 7, {"n": 1})
    assert (stage.failed, stage.message, len(stage.links)) == (True, "bad", 1)


def test_an_always_on_sampler_traces_what_the_caller_does_not(kept: list[Stage]) -> None:
    always = Traces(sampling.sampler_of({"OTEL_TRACES_SAMPLER": "always_on"}), kept.extend)
    recorded(always, NOT_SAMPLED).end(OK)
    assert kept[0].origin.trace_id == TRACE
