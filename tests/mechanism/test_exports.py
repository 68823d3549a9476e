"""The queue of ended spans and the thread that empties it, with exporters that do not do as they should."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from opentelemetry.trace import SpanKind

from sidecar.mechanism.exports import BatchLimits, Ended, Exports, LimitsError, limits_of
from sidecar.mechanism.spans import Origin, Stage
from tests.support import until

NOW_OR_NEVER = BatchLimits(queue=100, batch=10, delay_s=600.0)
SOON = BatchLimits(queue=100, batch=10, delay_s=0.01)


class Memory:
    """An exporter that keeps batches, and holds them up while its gate is closed."""

    def __init__(self) -> None:
        self.batches: list[Sequence[Ended]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.raised: Exception | None = None
        self.stopped = self.closed = False

    def export(self, spans: Sequence[Ended]) -> None:
        self.gate.wait()
        if self.raised is not None:
            raise self.raised
        self.batches.append(spans)

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        self.closed = True


Make = Callable[[BatchLimits], Exports]


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def make(memory: Memory) -> Iterator[Make]:
    """Exports to `memory`, closed at the end."""
    made: list[Exports] = []

    def exports(limits: BatchLimits) -> Exports:
        made.append(Exports(memory, limits))
        return made[-1]

    yield exports
    memory.gate.set()
    for each in made:
        each.close()


def spans(number: int) -> list[Ended]:
    origin = Origin("1" * 32, 0, 1, "")
    return [Stage(origin, 0, f"s{n}", SpanKind.INTERNAL, lambda: 1) for n in range(number)]


def names(batch: Sequence[Ended]) -> list[str]:
    return [span.name for span in batch]


# --- batches ------------------------------------------------------------------------------------------------------


async def test_a_full_batch_goes_at_once(make: Make, memory: Memory) -> None:
    exports = make(NOW_OR_NEVER)
    exports.offer(spans(9))
    exports.offer(spans(4))
    await until(lambda: memory.batches, "the batch is exported")
    assert names(memory.batches[0]) == [f"s{n}" for n in (*range(9), 0)]
    assert len(memory.batches) == 1  # the other three wait for more


async def test_what_is_no_full_batch_goes_after_the_delay(make: Make, memory: Memory) -> None:
    make(SOON).offer(spans(3))
    await until(lambda: memory.batches, "it is exported")
    assert names(memory.batches[0]) == ["s0", "s1", "s2"]


def test_closing_exports_what_is_left_in_order_and_may_be_repeated(make: Make, memory: Memory) -> None:
    exports = make(BatchLimits(queue=100, batch=50, delay_s=600.0))
    for _ in range(9):
        exports.offer(spans(5))
    exports.close()
    exports.close()
    assert names(memory.batches[0]) == [f"s{n}" for n in range(5)] * 9
    assert (memory.stopped, memory.closed, exports.lost) == (True, True, 0)


# --- exporters that do not do as they should ----------------------------------------------------------------------


async def test_what_finds_the_queue_full_is_dropped_whole_counted_and_told_once(
    make: Make, memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    memory.gate.clear()
    exports = make(BatchLimits(queue=20, batch=10, delay_s=600.0))
    exports.offer(spans(10))
    await until(lambda: len(exports) == 0, "the first batch is being exported")
    exports.offer(spans(15))
    exports.offer(spans(6))
    exports.offer(spans(7))
    exports.offer(spans(5))
    assert (exports.lost, len(exports)) == (13, 20)
    assert [record.getMessage() for record in caplog.records] == [
        "spans are lost, 6 so far: the exporter does not keep up"
    ]


async def test_an_exporter_that_raises_loses_its_batch_and_goes_on(
    make: Make, memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    exports = make(SOON)
    memory.raised = ValueError("it is down")
    exports.offer(spans(3))
    await until(lambda: exports.lost == 3, "they are lost")
    memory.raised = None
    exports.offer(spans(2))
    await until(lambda: memory.batches, "it goes on")
    assert names(memory.batches[0]) == ["s0", "s1"]
    assert [record.getMessage() for record in caplog.records] == ["spans are lost, 3 so far: it is down"]


async def test_the_log_tells_of_losses_again_after_a_minute(
    make: Make, memory: Memory, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.mechanism.exports.TELL_EVERY_S", 0.0)
    exports = make(BatchLimits(queue=1, batch=1, delay_s=600.0))
    exports.offer(spans(2))
    exports.offer(spans(3))
    assert [record.args for record in caplog.records] == [
        (2, "the exporter does not keep up"),
        (5, "the exporter does not keep up"),
    ]


async def test_an_exporter_that_hangs_holds_up_neither_requests_nor_the_end(
    make: Make, memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    memory.gate.clear()
    exports = make(SOON)
    exports.offer(spans(10))
    await until(lambda: len(exports) == 0, "it hangs in the first batch")
    began = time.monotonic()
    for _ in range(30):
        exports.offer(spans(10))
    exports.close(0.05)
    assert time.monotonic() - began < 2.0
    assert exports.lost == 200
    assert caplog.records[-1].getMessage() == "the trace exporter does not end: at least 100 spans are lost"


def test_an_exporter_that_cannot_close_is_told(
    make: Make, memory: Memory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("no")

    monkeypatch.setattr(memory, "close", fail)
    make(SOON).close()
    assert [record.getMessage() for record in caplog.records] == ["the trace exporter failed to close"]


# --- OTEL_BSP_* ---------------------------------------------------------------------------------------------------


def test_the_variables_set_the_limits() -> None:
    told = {
        "OTEL_BSP_MAX_QUEUE_SIZE": "64",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": " 32 ",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    assert limits_of(told) == BatchLimits(queue=64, batch=32, delay_s=0.1)


def test_without_variables_there_are_defaults_and_a_batch_is_no_larger_than_the_queue() -> None:
    assert limits_of({}) == BatchLimits()
    assert limits_of({"OTEL_BSP_MAX_QUEUE_SIZE": "64"}).batch == 64


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_limit_that_is_no_number_is_an_error(value: str) -> None:
    with pytest.raises(LimitsError, match=f"OTEL_BSP_SCHEDULE_DELAY: {value} is not"):
        limits_of({"OTEL_BSP_SCHEDULE_DELAY": value})


def test_a_batch_above_the_queue_is_an_error() -> None:
    with pytest.raises(LimitsError, match="must not be above"):
        limits_of({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "9000"})
