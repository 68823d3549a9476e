"""The event log: never in the way, bounded, and there again after a restart."""

from __future__ import annotations

import asyncio
import logging
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sidecar.control import events as module
from sidecar.control.clock import Clock
from sidecar.control.events import CAPACITY, Event, Events
from sidecar.mechanism.eventlog import EventLog
from tests.support import until

DAY_S = 86_400.0


class Hands:
    """A clock that a test moves."""

    def __init__(self, unix: float = 20_000 * DAY_S) -> None:
        self.now = 0.0
        self.offset = unix
        self.clock = Clock(monotonic=lambda: self.now, unix=lambda: self.offset + self.now)


@asynccontextmanager
async def opened(folder: Path, clock: Clock | None = None) -> AsyncIterator[Events]:
    """Events that are open, and closed at the end."""
    events = Events(clock or Clock(), folder)
    await events.open()
    try:
        yield events
    finally:
        await events.close()


def told(found: list[Event]) -> list[tuple[str, str, int]]:
    """What matters of events."""
    return [(event.type, event.model, event.count) for event in found]


# --- in memory ------------------------------------------------------------------------------------------------------


def test_events_are_read_by_place_model_and_number() -> None:
    events = Events(Hands().clock)
    for number in range(6):
        events.record("Started", model="ab"[number % 2], message=str(number))
    assert [event.seq for event in events.since(0)] == [1, 2, 3, 4, 5, 6]
    assert [event.message for event in events.since(3)] == ["3", "4", "5"]
    assert [event.message for event in events.since(1, "a")] == ["2", "4"]
    assert [event.message for event in events.since(1, limit=2)] == ["1", "2"]
    assert [event.message for event in events.newest(2, "b")] == ["3", "5"]
    assert events.newest(0) == []
    assert events.since(6) == events.since(0, "nobody") == []
    assert events.last == 6


def test_an_event_tells_all_that_was_recorded() -> None:
    hands = Hands()
    events = Events(hands.clock)
    events.record("Evicted", model="m", server="m-1", reason="MakesRoom", message="for n", revision="abc")
    assert events.since(0) == [
        Event(
            seq=1,
            at=hands.offset,
            type="Evicted",
            model="m",
            server="m-1",
            reason="MakesRoom",
            message="for n",
            revision="abc",
            count=1,
            first_at=hands.offset,
        )
    ]


def test_the_same_again_within_a_minute_is_counted_and_comes_last() -> None:
    hands = Hands()
    events = Events(hands.clock)
    events.record("Exited", model="m", server="m-1", message="code 1")
    events.record("Stopped", model="n")
    hands.now = 50.0
    events.record("Exited", model="m", server="m-2", message="code 1")
    hands.now = 105.0
    events.record("Exited", model="m", server="m-3", message="code 1")
    assert told(events.since(0)) == [("Stopped", "n", 1), ("Exited", "m", 3)]
    last = events.since(0)[-1]
    assert (last.seq, last.server, last.at - last.first_at) == (4, "m-3", 105.0)
    assert told(events.since(3)) == [("Exited", "m", 3)]  # whoever follows hears of each time
    hands.now = 200.0
    events.record("Exited", model="m", message="code 1")
    assert told(events.since(3)) == [("Exited", "m", 3), ("Exited", "m", 1)]


@pytest.mark.parametrize("other", [{"model": "n"}, {"reason": "r"}, {"message": "x"}])
def test_what_differs_is_another_event(other: dict[str, str]) -> None:
    events = Events(Hands().clock)
    same = {"model": "m", "reason": "", "message": ""}
    events.record("Exited", **same)
    events.record("Exited", **(same | other))
    assert [event.count for event in events.since(0)] == [1, 1]


def test_what_flaps_does_not_push_out_all_else() -> None:
    hands = Hands()
    events = Events(hands.clock)
    events.record("Adopted", model="quiet")
    for _ in range(5000):
        hands.now += 1.0
        events.record("Started", model="m")
        events.record("Exited", model="m")
    assert told(events.since(0)) == [("Adopted", "quiet", 1), ("Started", "m", 5000), ("Exited", "m", 5000)]
    assert not events.missed(1)


def test_a_clock_that_jumps_folds_nothing_wrongly() -> None:
    hands = Hands()
    events = Events(hands.clock)
    events.record("Exited")
    hands.now, hands.offset = 100.0, hands.offset - DAY_S
    events.record("Exited")
    assert [event.count for event in events.since(0)] == [1, 1]


def test_a_condition_is_the_same_again_whatever_numbers_its_message_tells_and_the_newest_message_wins() -> None:
    hands = Hands()
    events = Events(hands.clock)
    events.record("Started", model="n")
    for number in range(CAPACITY * 2):
        events.record("ConditionChanged", model="m", reason="InsufficientMemory", message=f"{number} MB are missing")
    events.record("ConditionChanged", model="m", reason="Backoff", message="tried again in 7 s")
    assert told(events.since(0)) == [
        ("Started", "n", 1),
        ("ConditionChanged", "m", CAPACITY * 2),
        ("ConditionChanged", "m", 1),
    ]
    assert events.since(0)[1].message == f"{CAPACITY * 2 - 1} MB are missing"


def test_the_oldest_make_room_and_who_has_not_read_them_is_told() -> None:
    events = Events(Hands().clock)
    for number in range(CAPACITY + 10):
        events.record("Started", message=str(number))
    assert len(events.since(0)) == CAPACITY
    assert events.since(0)[0].seq == 11
    assert events.missed(9)
    assert not events.missed(10)
    assert not events.missed(events.last)
    assert events.missed(events.last + 1)  # of another log


def test_long_and_broken_text_is_kept_short_and_writable() -> None:
    events = Events(Hands().clock)
    events.record("Failed", model="m" * 5000, message="begin" + "x" * 50_000 + "end", reason="\udcff")
    (event,) = events.since(0)
    assert event.message.startswith("begin")
    assert event.message.endswith("end")
    assert len(event.message) < 2100
    assert len(event.model) < 400
    assert event.reason == "?"


def test_a_hundred_thousand_events_are_fast_and_memory_stays_bounded() -> None:
    events = Events(Clock())
    for number in range(CAPACITY):
        events.record("Started", model="m", message=f"warm {number}")
    tracemalloc.start()
    for number in range(20_000):
        events.record("Started", model="m", message=f"number {number}")
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 5_000_000
    began = time.process_time()
    for number in range(100_000):
        events.record("Started", model=f"m{number % 50}", message=f"number {number}")
    assert time.process_time() - began < 5.0
    assert len(events.since(0)) == CAPACITY


async def test_in_memory_alone_there_is_no_task_and_no_file(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    events = Events(Clock())
    await events.open()
    events.record("Started")
    assert asyncio.all_tasks() == before
    await events.close()
    assert events.dropped == 0


# --- followers ------------------------------------------------------------------------------------------------------


async def read(events: Events, pause_s: float) -> list[Event]:
    """Follow until the end, with a pause after each portion."""
    seen, after = [], 0
    while await events.wait(after):
        found = events.since(after, limit=10)
        seen += found
        after = found[-1].seq
        await asyncio.sleep(pause_s)
    return seen


async def test_two_followers_each_hear_everything_in_order() -> None:
    events = Events(Clock())
    fast, slow = asyncio.create_task(read(events, 0)), asyncio.create_task(read(events, 0.001))
    for number in range(500):
        events.record("Started", message=str(number))
        if number % 7 == 0:
            await asyncio.sleep(0)
    events.end_followers()
    for seen in await asyncio.gather(fast, slow):
        assert [event.message for event in seen] == [str(number) for number in range(500)]


async def test_followers_wait_for_news_and_are_let_go_at_the_end() -> None:
    events = Events(Clock())
    events.record("Started")
    waiting = asyncio.create_task(events.wait(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    events.record("BecameReady")
    assert await waiting
    last = asyncio.create_task(events.wait(2))
    await asyncio.sleep(0)
    await events.close()
    assert not await last
    events.record("Stopped")  # a shutdown still has something to tell
    assert await events.wait(2)
    assert not await events.wait(3)


# --- on disk --------------------------------------------------------------------------------------------------------


async def test_history_survives_a_restart_and_seqs_go_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as events:
        events.record("Started", model="m")
        events.record("BecameReady", model="m")
        seen, before = events.last, events.since(0)
    async with opened(tmp_path) as events:
        assert events.since(0) == before
        assert not events.missed(seen)
        events.record("Adopted", model="m")
        (new,) = events.since(seen)
        assert (new.type, new.seq > seen) == ("Adopted", True)


async def test_events_are_on_disk_without_a_close(tmp_path: Path) -> None:
    async with opened(tmp_path) as events:
        events.record("Started", model="m")
        await until(lambda: EventLog(tmp_path).read() == events.since(0), "the event is written")


async def test_a_run_that_wrote_nothing_still_leaves_its_seqs_to_nobody(tmp_path: Path) -> None:
    lost = Events(Clock(), tmp_path)  # never opened, never closed: killed
    for number in range(100):
        lost.record("Started", message=str(number))
    async with opened(tmp_path) as events:
        events.record("Started")
        assert events.since(0)[0].seq > lost.last


async def test_seqs_rise_though_the_clock_went_back(tmp_path: Path) -> None:
    async with opened(tmp_path, Hands(unix=2000 * DAY_S).clock) as events:
        events.record("Started")
        seen = events.last
    async with opened(tmp_path, Hands(unix=1000 * DAY_S).clock) as events:
        events.record("Stopped")
        assert events.last == seen + 1
        assert [event.type for event in events.since(0)] == ["Started", "Stopped"]


async def test_what_is_recorded_before_the_history_is_read_comes_after_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as events:
        events.record("Stopped")
    later = Events(Clock(), tmp_path)
    later.record("Started")
    later.record("BecameReady")
    await later.open()
    await later.close()
    assert [event.type for event in later.since(0)] == ["Stopped", "Started", "BecameReady"]
    assert EventLog(tmp_path).read() == later.since(0)


async def test_history_that_is_no_longer_held_is_a_gap_after_a_restart_too(tmp_path: Path) -> None:
    EventLog(tmp_path).append(
        Event(seq=seq, at=1.0, type="Started", message=str(seq), first_at=1.0) for seq in range(100, 110)
    )
    async with opened(tmp_path) as events:
        assert events.missed(98)
        assert not events.missed(99)


async def test_a_count_goes_on_over_restarts_and_is_held_once(tmp_path: Path) -> None:
    for run in range(1, 4):
        async with opened(tmp_path) as events:
            events.record("Adopted", model="m")
            events.record("Started", model=f"other {run}")
            events.record("Adopted", model="m")
            assert told(events.since(0, "m")) == [("Adopted", "m", run * 2)]
    async with opened(tmp_path) as events:
        assert told(events.since(0, "m")) == [("Adopted", "m", 6)]
        assert len(events.since(0)) == 4


async def test_what_flaps_does_not_fill_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_S", 0.0)
    async with opened(tmp_path) as events:
        events.record("Exited", model="m")
        await until(lambda: len(EventLog(tmp_path).read()) == 1, "the first is written")
        for _ in range(200):
            events.record("Exited", model="m")
            await asyncio.sleep(0.001)
    lines = (tmp_path / "events.jsonl").read_bytes().count(b"\n")
    assert lines <= 3  # the first, the first repeat, the last
    assert EventLog(tmp_path).read()[-1].count == 201


async def test_a_full_disk_loses_nothing_is_told_once_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    caplog.set_level(logging.INFO)
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    tries = 0
    append = EventLog.append

    def counted(log: EventLog, batch: list[Event]) -> None:
        nonlocal tries
        tries += 1
        append(log, batch)

    monkeypatch.setattr(EventLog, "append", counted)
    async with opened(tmp_path) as events:
        events.record("Started", message="1")
        await until(lambda: tries >= 3, "it is tried again")
        events.record("Started", message="2")
        assert "No space left" in events.problem
        assert [event.message for event in events.since(0)] == ["1", "2"]
        (tmp_path / "events.jsonl").unlink()
        await until(lambda: not events.problem, "it is written at last")
        assert [event.message for event in EventLog(tmp_path).read()] == ["1", "2"]
    assert events.dropped == 0
    assert caplog.text.count("cannot be written") == 1
    assert caplog.text.count("can be written again") == 1


async def test_what_never_comes_to_disk_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    (tmp_path / "events.jsonl").mkdir()
    async with opened(tmp_path) as events:
        events.record("Started", message="first")
        await until(lambda: bool(events.problem), "it cannot be written")
        for number in range(CAPACITY + 5):
            events.record("Started", message=str(number))
        assert events.dropped <= 6
        await until(lambda: events.dropped == 6, "six were pushed out unwritten")
        assert len(events.since(0)) == CAPACITY
    assert events.dropped == CAPACITY + 6
    assert "Is a directory" in events.problem


async def test_a_history_that_cannot_be_read_stops_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "events.jsonl.1").mkdir()
    async with opened(tmp_path) as events:
        events.record("Started")
        assert "cannot be read" in caplog.text
        (tmp_path / "events.jsonl.1").rmdir()
    assert EventLog(tmp_path).read() == events.since(0)


async def test_recording_never_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_S", 0.0)
    entered, released = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(log: EventLog, batch: list[Event]) -> None:
        loop.call_soon_threadsafe(entered.set)
        asyncio.run_coroutine_threadsafe(released.wait(), loop).result()

    monkeypatch.setattr(EventLog, "append", hang)
    async with opened(tmp_path) as events:
        events.record("Started")
        await entered.wait()
        began = time.perf_counter()
        for number in range(100):
            events.record("Exited", message=str(number))
        assert time.perf_counter() - began < 0.5
        assert await events.wait(events.since(0)[0].seq)
        released.set()
