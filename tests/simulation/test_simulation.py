"""A few lives, as a part of the ordinary tests; `python -m tests.simulation` lives through thousands of hours more."""

from __future__ import annotations

import asyncio

import pytest

from tests.simulation.life import simulate
from tests.simulation.loop import DeadlockError, VirtualLoop

HOURS = 15.0


@pytest.mark.parametrize("seed", range(12))
def test_every_promise_is_kept_through_all_trouble(seed: int) -> None:
    result = simulate(seed, HOURS)
    assert not result.broken, (
        f"{result.broken}\nsee it again: python -m tests.simulation --first {seed} --seeds 1 --hours {HOURS:g} --trace"
    )
    assert result.hours >= HOURS
    assert result.sidecars
    assert result.starts
    assert result.checks


def test_a_seed_tells_the_same_story_each_time() -> None:
    stories: list[list[str]] = [[], []]
    for story in stories:
        simulate(3, HOURS, story.append)
    assert stories[0] == stories[1]
    assert len(stories[0]) > 100


def test_time_passes_without_waiting() -> None:
    loop = VirtualLoop()
    loop.run_until_complete(asyncio.sleep(1e6))
    assert loop.now == pytest.approx(1e6)
    loop.close()


def test_who_waits_for_ever_is_told_so() -> None:
    loop = VirtualLoop()
    with pytest.raises(DeadlockError):
        loop.run_until_complete(loop.create_future())
    loop.close()
