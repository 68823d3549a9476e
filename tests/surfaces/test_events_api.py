"""Events over HTTP: what is asked, what is answered, and what those hear who follow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sidecar.control.clock import Clock
from sidecar.control.events import CAPACITY, Events
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.events_api import Question, answer, follow, question


def recorded(count: int, models: str = "m") -> Events:
    """Events in memory, numbered from 0, of each model in turn."""
    events = Events(Clock())
    for number in range(count):
        events.record("Started", model=models[number % len(models)], message=str(number))
    return events


def heard(messages: list[Any]) -> list[str]:
    """Server-sent events as `id data` or `id` or `gap`."""
    lines = []
    for message in messages:
        data = json.loads(message.data)["message"] if message.data and not message.event else ""
        lines.append(f"{message.event or message.id} {data}".strip())
    return lines


async def take(stream: AsyncIterator[Any], count: int) -> list[Any]:
    """The next ones."""
    async with asyncio.timeout(10):
        return [await anext(stream) for _ in range(count)]


def test_a_question_is_read_as_it_stands_in_the_address() -> None:
    assert question({}, None) == Question(after=None, model=None, limit=100, follow=False)
    asked = question({"after": "7", "model": "m", "limit": "5", "follow": "true"}, None)
    assert asked == Question(after=7, model="m", limit=5, follow=True)
    assert question({"model": ""}, None).model == ""


def test_who_comes_back_goes_on_where_the_connection_was_lost() -> None:
    assert question({"after": "7", "follow": "true"}, "9").after == 9
    assert question({"after": "7"}, "").after == 7


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"after": "x"}, "Expected `int | null`, got `str` - at `$.after`"),
        ({"after": "-1"}, "Expected `int` >= 0 - at `$.after`"),
        ({"limit": "0"}, "Expected `int` >= 1 - at `$.limit`"),
        ({"limit": "9999"}, "Expected `int` <= 2000 - at `$.limit`"),
        ({"follow": "maybe"}, "Expected `bool`, got `str` - at `$.follow`"),
        ({"modle": "m"}, "Object contains unknown field `modle`"),
    ],
)
def test_a_faulty_question_is_told(parameters: dict[str, str], why: str) -> None:
    with pytest.raises(ApiError) as caught:
        question(parameters, None)
    assert (caught.value.status, caught.value.message) == (400, f"the events asked for: {why}")


def test_without_a_place_the_newest_are_answered() -> None:
    found = answer(recorded(10), Question(limit=3))
    assert ([event.message for event in found.events], found.last, found.gap) == (["7", "8", "9"], 10, False)


def test_one_reads_on_portion_by_portion_and_misses_nothing() -> None:
    events, after, seen = recorded(25, "ab"), 0, []
    for _ in range(4):
        found = answer(events, Question(after=after, model="b", limit=4))
        seen += [event.message for event in found.events]
        after = found.last
    assert seen == [str(number) for number in range(1, 25, 2)]
    assert after == events.last
    assert answer(events, Question(after=after)).events == []


def test_a_gap_is_told_and_a_place_in_another_log_begins_anew() -> None:
    events = recorded(CAPACITY + 5)
    assert answer(events, Question(after=4)).gap
    assert not answer(events, Question(after=5)).gap
    lost = answer(events, Question(after=10**15, limit=1))
    assert (lost.gap, lost.events[0].message, lost.last) == (True, "5", 6)


async def test_who_follows_hears_what_is_held_and_then_what_comes() -> None:
    events = recorded(3)
    stream = follow(events, Question(limit=2))
    assert heard(await take(stream, 2)) == ["2 1", "3 2"]
    next_one = asyncio.create_task(take(stream, 1))
    await asyncio.sleep(0)
    events.record("Started", model="m", message="new")
    assert heard(await next_one) == ["4 new"]
    events.record("Stopped", model="m", message="last")
    events.end_followers()
    assert heard([message async for message in stream]) == ["5 last"]


async def test_who_follows_an_empty_log_is_answered_at_once_with_a_place() -> None:
    stream = follow(Events(Clock()), Question(follow=True))
    (message,) = await take(stream, 1)
    assert message.encode() == b": alive\r\nid: 0\r\n\r\n"
    await stream.aclose()  # type: ignore[attr-defined] # an async generator, which AsyncIterator does not say


async def test_silence_is_broken_by_signs_of_life_that_move_the_place() -> None:
    events = recorded(1)
    stream = follow(events, Question(model="m"), keep_alive_s=0.02)
    assert heard(await take(stream, 1)) == ["1 0"]
    alive = asyncio.create_task(take(stream, 2))
    events.record("Started", model="another")
    assert heard(await alive) == ["2", "2"]
    events.record("Started", model="m", message="at last")
    while heard(last := await take(stream, 1)) == ["2"]:
        pass
    assert heard(last) == ["3 at last"]


async def test_two_follow_at_their_own_pace_and_the_slow_one_is_told_of_its_gap() -> None:
    events = recorded(0)
    fast, slow = follow(events, Question(after=0)), follow(events, Question(after=0))
    await take(fast, 1)
    await take(slow, 1)
    for number in range(CAPACITY + 300):
        events.record("Started", message=str(number))
        assert heard(await take(fast, 1)) == [f"{number + 1} {number}"]
    said = heard(await take(slow, CAPACITY + 1))
    assert said[:2] == ["gap", "301 300"]
    assert said[-1] == f"{CAPACITY + 300} {CAPACITY + 299}"
    assert "gap" not in said[1:]
