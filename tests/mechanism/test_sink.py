"""Outcomes on their way to a stats plugin: some at a time, in their order, and none missed that fitted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from plugin_sdk import Outcome, Stats, inline
from sidecar.mechanism import sink as sinks
from sidecar.mechanism.instance import Instance
from sidecar.mechanism.sink import BATCH, TURN, Sink
from tests.support import PATIENCE_S, plugin, until

Make = Callable[[type[Stats[Any]]], Awaitable[tuple[Any, Sink, Instance]]]


class Batches(Stats):
    """Takes several at once."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.got: list[list[str]] = []

    def record(self, outcome: Outcome) -> None:
        raise AssertionError  # it can have them all at once

    @inline
    def record_many(self, outcomes: Sequence[Outcome]) -> Awaitable[None] | None:
        self.got.append([outcome.model for outcome in outcomes])
        return None


class Singles(Stats):
    """Takes one after the other."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.got: list[list[str]] = []

    @inline
    def record(self, outcome: Outcome) -> None:
        self.got.append([outcome.model])


@pytest.fixture
async def made() -> AsyncIterator[Make]:
    """`await made(cls)`: the plugin, its sink and its instance, which is closed at the end."""
    opened: list[Instance] = []

    async def make(cls: type[Stats[Any]]) -> tuple[Any, Sink, Instance]:
        instance = Instance("ledger", plugin(cls, "ledger"))
        opened.append(instance)
        await instance.open()
        assert instance.sink is not None
        return instance.plugin, instance.sink, instance

    yield make
    for instance in opened:
        await instance.close()


def put(sink: Sink, *numbers: int) -> None:
    for number in numbers:
        sink.put(Outcome(model=str(number)))


def in_order(count: int) -> list[str]:
    return [str(number) for number in range(count)]


async def test_outcomes_wait_for_others_and_come_all_at_once(made: Make) -> None:
    ledger, sink, instance = await made(Batches)
    put(sink, *range(10))
    await asyncio.sleep(0)
    assert ledger.got == []
    await until(lambda: ledger.got, "they are handed over")
    assert ledger.got == [in_order(10)]
    put(sink, 10)
    await until(lambda: len(ledger.got) == 2, "so are later ones")
    assert ledger.got[1] == ["10"]
    assert (instance.runs, instance.failed) == (2, 0)


async def test_many_are_not_kept_waiting(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "WAIT_S", 10 * PATIENCE_S)
    ledger, sink, _ = await made(Batches)
    put(sink, *range(BATCH + 1))
    await until(lambda: ledger.got, "they are handed over")
    assert ledger.got == [in_order(BATCH + 1)[:BATCH], [str(BATCH)]]


async def test_closing_delivers_what_waits_and_what_comes_later_is_counted(
    made: Make, caplog: pytest.LogCaptureFixture
) -> None:
    for cls in (Batches, Singles):
        ledger, sink, _ = await made(cls)
        put(sink, *range(2 * BATCH + 5))
        await sink.close()
        assert [one for batch in ledger.got for one in batch] == in_order(2 * BATCH + 5)
        put(sink, 1, 2)
        assert sink.dropped == 2
    assert not caplog.records


async def test_what_does_not_fit_is_dropped_and_counted_and_told_once(
    made: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sinks, "QUEUE", 5)
    ledger, sink, _ = await made(Batches)
    with caplog.at_level(logging.WARNING):
        put(sink, *range(9))
    assert (sink.dropped, len(caplog.records)) == (4, 1)
    await until(lambda: ledger.got == [in_order(5)], "what fitted arrives")
    put(sink, 9)
    await until(lambda: len(ledger.got) == 2, "there is room again")
    assert sink.dropped == 4


async def test_what_a_slow_plugin_is_busy_with_takes_up_room_and_is_missed_if_it_is_lost(
    made: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Hangs(Batches):
        async def record_many(self, outcomes: Sequence[Outcome]) -> None:
            self.got.append([])
            await asyncio.Event().wait()

    monkeypatch.setattr(sinks, "QUEUE", 5)
    monkeypatch.setattr(sinks, "CLOSE_S", 0.05)
    ledger, sink, _ = await made(Hangs)
    put(sink, *range(5))
    await until(lambda: ledger.got, "it is busy with all of them")
    put(sink, 5)
    assert sink.dropped == 1
    await sink.close()
    assert "5 outcomes were lost at close" in caplog.text


async def test_a_batch_that_fails_is_one_failure_and_the_next_one_may_do_better(made: Make) -> None:
    class Fails(Batches):
        @inline
        def record_many(self, outcomes: Sequence[Outcome]) -> Awaitable[None] | None:
            if not self.got:
                self.got.append(["failed"])
                raise OSError
            return super().record_many(outcomes)

    ledger, sink, instance = await made(Fails)
    put(sink, 1, 2, 3)
    await until(lambda: instance.failed, "it has failed")
    put(sink, 4)
    await until(lambda: instance.runs, "it goes well")
    assert (instance.failed, ledger.got) == (1, [["failed"], ["4"]])


async def test_while_many_are_handed_over_the_loop_turns(made: Make) -> None:
    ledger, sink, _ = await made(Singles)
    put(sink, *range(10 * TURN))
    seen: set[int] = set()
    while len(ledger.got) < 10 * TURN:
        seen.add(len(ledger.got))
        await asyncio.sleep(0)
    assert seen >= {number * TURN for number in range(1, 10)}
