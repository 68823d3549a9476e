"""What metrics cost: the count of a request, and the text of many models."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from plugin_sdk import Outcome, Usage
from sidecar.mechanism.exposition import PROMETHEUS, rendered
from sidecar.mechanism.metrics import Family, Kind, Metric, Point
from sidecar.mechanism.request_meter import RequestMeter

pytestmark = pytest.mark.benchmark

WHOLE = Outcome(
    model="qwen3-8b",
    variant="cpu",
    mode="chat",
    principal="team-a",
    status=200,
    duration_s=1.4,
    bytes_in=1000,
    bytes_out=2000,
    first_byte_s=0.4,
    usage=Usage(input_tokens=900, output_tokens=120),
)
STREAM = Outcome(
    model="qwen3-8b",
    variant="cpu",
    mode="chat",
    status=200,
    streamed=True,
    duration_s=1.4,
    first_byte_s=0.4,
    usage=Usage(input_tokens=900, output_tokens=120),
)
REFUSED = Outcome(model="qwen3-8b", mode="chat", status=401, code="unknown_key", duration_s=0.001)


def best_us(work: Callable[[], object], times: int) -> float:
    """Of 20 rounds, what one call took in the quickest."""
    taken: list[float] = []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(times):
            work()
        taken.append((time.perf_counter() - began) / times * 1e6)
    return min(taken)


@pytest.mark.parametrize(("outcome", "most_us"), [(WHOLE, 1.2), (STREAM, 1.6), (REFUSED, 0.9)])
def test_a_request_is_counted_in_about_a_microsecond(outcome: Outcome, most_us: float) -> None:
    meter = RequestMeter()
    assert best_us(lambda: meter.count(outcome, "chat"), 5000) < most_us


def test_no_piece_of_the_text_holds_up_the_loop_for_a_millisecond() -> None:
    metric = Metric(name="g", kind=Kind.GAUGE, help="G.", labels=("sidecar.model", "sidecar.variant", "sidecar.state"))
    points = [Point((f"model-{number}", "default", "ready"), number) for number in range(5000)]
    slowest = []
    for _ in range(5):
        pieces = iter(rendered([Family(metric, iter(points))], PROMETHEUS))
        slowest.append(max(_each_s(pieces)))
    assert min(slowest) < 0.001


def _each_s(pieces: Iterator[str]) -> list[float]:
    taken: list[float] = []
    while True:
        began = time.thread_time()
        if next(pieces, None) is None:
            return taken
        taken.append(time.thread_time() - began)
