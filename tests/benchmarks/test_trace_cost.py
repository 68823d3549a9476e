"""What traces cost: a request that is not traced, one that is, and its encoding."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind

from plugin_sdk import Outcome, Usage
from plugin_sdk.messages import RawHeaders
from sidecar.mechanism import sampling
from sidecar.mechanism.exports import BatchLimits, Ended, Exports
from sidecar.mechanism.otlp import Encoder
from sidecar.mechanism.spans import Stage
from sidecar.mechanism.traces import Traces

pytestmark = pytest.mark.benchmark

ENCODER = Encoder(Resource({"service.name": "sidecar"}), InstrumentationScope("sidecar", "1"))
HEADERS: RawHeaders = (
    (b"Host", b"127.0.0.1:8080"),
    (b"Accept", b"application/json"),
    (b"Accept-Encoding", b"gzip, deflate"),
    (b"Connection", b"keep-alive"),
    (b"User-Agent", b"OpenAI/Python 1.60"),
    (b"Authorization", b"Bearer sk-0123456789abcdef"),
    (b"Content-Type", b"application/json"),
    (b"Content-Length", b"1024"),
    (b"X-Stainless-Lang", b"python"),
    (b"X-Stainless-OS", b"Linux"),
)
OUTCOME = Outcome(
    model="qwen3-8b",
    variant="cpu",
    principal="team-a",
    status=200,
    usage=Usage(input_tokens=900, output_tokens=120, response_model="qwen3-8b"),
)
REQUESTS = 20_000
SPANS = 4  # of a request: itself, auth, route, upstream


def request(traces: Traces) -> None:
    """What the data plane does for a warm server, with plugins called in one stage."""
    trace = traces.begin(HEADERS, "chat", "POST", "/v1/chat/completions")
    trace.asks_for("qwen3-8b")
    with trace.stage("auth"):
        pass
    trace.begin("route").end()
    stage = trace.begin("upstream", SpanKind.CLIENT)
    stage.set("url.full", "http://127.0.0.1:41000/v1/chat/completions")
    trace.carry(HEADERS, stage)
    stage.set("http.response.status_code", 200)
    stage.end()
    trace.end(OUTCOME)


def us(step: Callable[[], object], times: int) -> float:
    """CPU time of one step."""
    found = []
    for _ in range(3):
        began = time.process_time_ns()
        for _ in range(times):
            step()
        found.append((time.process_time_ns() - began) / times / 1e3)
    return min(found)


def ignore(spans: Sequence[Stage]) -> None:
    """Take them."""


@pytest.mark.parametrize(
    ("name", "traces", "most_us"),
    [
        ("no exporter", Traces(), 2.0),
        ("not sampled", Traces(sampling.Sampler(1, by_parent=True), ignore), 3.0),
        ("sampled", Traces(sampling.ALWAYS, ignore), 20.0),
    ],
)
def test_a_request(name: str, traces: Traces, most_us: float) -> None:
    began = us(lambda: traces.begin(HEADERS, "chat", "POST", "/v1/chat/completions"), REQUESTS)
    whole = us(lambda: request(traces), REQUESTS)
    print(f"\n{name}: {began:.2f} us to begin, {whole:.2f} us in all")
    assert whole < most_us


def test_encoding_a_span() -> None:
    kept: list[Ended] = []
    traces = Traces(sampling.ALWAYS, kept.extend)
    for _ in range(128):
        request(traces)
    cost = us(lambda: ENCODER.request(kept), 20) / len(kept)
    print(f"\n{cost:.2f} us for a span, {cost * SPANS:.1f} us for a request of {SPANS}")
    assert cost < 8.0


class Encodes:
    """An exporter that stops short of sending."""

    def export(self, spans: Sequence[Ended]) -> None:
        ENCODER.request(spans)

    def stop(self) -> None: ...

    def close(self) -> None: ...


def test_a_request_with_its_encoding_in_the_thread_beside() -> None:
    exports = Exports(Encodes(), BatchLimits(queue=1 << 20, batch=512, delay_s=5.0))
    traces = Traces(sampling.ALWAYS, exports.offer)
    began = time.process_time_ns()
    longest_ms, last = 0.0, time.perf_counter()
    for _ in range(REQUESTS):
        request(traces)
        now = time.perf_counter()
        longest_ms, last = max(longest_ms, (now - last) * 1e3), now
        if exports._wake.is_set():
            time.sleep(0)  # as the event loop does in each of its rounds
    exports.close(60.0)
    cost = (time.process_time_ns() - began) / REQUESTS / 1e3
    print(f"\n{cost:.1f} us for a request, recorded and encoded; the longest pause {longest_ms:.1f} ms")
    assert cost < 40.0
    assert exports.lost == 0
