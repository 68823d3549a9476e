"""Covering knapsacks: as cheap as can be, for one deficit with many items and for several with some."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.cover import WORK
from sidecar.core.knapsack import Item, Work, cover
from tests.core.build import thorough

Problem = tuple[list[Item], list[int]]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    rows = draw(st.integers(1, 4))
    frees = st.tuples(*[st.integers(0, 6)] * rows)
    items = draw(st.lists(st.builds(Item, st.integers(1, 12), frees), max_size=8))
    return items, draw(st.lists(st.integers(1, 14), min_size=rows, max_size=rows))


def least(items: list[Item], deficits: list[int]) -> int | None:
    """By trying all sets."""
    sets = [chosen for size in range(len(items) + 1) for chosen in combinations(items, size)]
    rows = range(len(deficits))
    enough = [
        sum(item.cost for item in chosen)
        for chosen in sets
        if all(sum(item.frees[row] for item in chosen) >= deficits[row] for row in rows)
    ]
    return min(enough, default=None)


def least_for_one(items: list[Item], deficit: int) -> int | None:
    """By the least cost for every amount up to the deficit."""
    costs: list[int | None] = [0, *[None] * deficit]
    for item in items:
        for amount in range(deficit, 0, -1):
            before = costs[max(0, amount - item.frees[0])]
            if before is not None:
                now = costs[amount]
                costs[amount] = before + item.cost if now is None else min(now, before + item.cost)
    return costs[deficit]


@thorough
@given(problems(), st.one_of(st.none(), st.integers(0, 40)))
def test_nothing_cheaper_covers_the_deficits(problem: Problem, below: int | None) -> None:
    expected = least(*problem)
    if expected is not None and below is not None and expected >= below:
        expected = None
    assert cover(*problem, Work(WORK), below) == expected


@pytest.mark.parametrize("part", [0.05, 0.3, 0.5, 0.8, 0.97])
@pytest.mark.parametrize("kind", ["unrelated", "as they free", "as they load", "few sizes", "counted first"])
def test_sixty_four_items_are_decided_exactly(kind: str, part: float) -> None:
    some = random.Random(f"{kind} {part}")  # noqa: S311 # examples, not secrets
    items = []
    for place in range(64):
        freed = some.choice((64, 96, 128)) if kind == "few sizes" else some.randint(10, 60)
        cost = {
            "unrelated": some.randint(1, 1000),
            "as they free": freed,
            "as they load": (1 << 40) + 10 * freed + some.randint(0, 50),
            "few sizes": some.choice((10, 15, 16, 20)),
            "counted first": (1 << 7 * some.randrange(3) + 40) + some.randint(1000, 60000),
        }[kind]
        items.append(Item(cost << 64 | 1 << place, (freed,)))
    deficit = round(part * sum(item.frees[0] for item in items))
    work = Work(WORK)
    assert cover(items, [deficit], work) == least_for_one(items, deficit)
    assert work.left > 0


def test_out_of_work_it_still_finds_something_that_covers() -> None:
    some = random.Random(1)  # noqa: S311 # examples, not secrets
    items = [
        Item(some.randint(50, 60) << 40 | 1 << place, (some.randint(1, 50), some.randint(1, 50))) for place in range(40)
    ]
    best, found = cover(items, [500, 500], Work(10**9)), cover(items, [500, 500], Work(1))
    assert best is not None
    assert found is not None
    assert found >= best
    chosen = [item for place, item in enumerate(items) if found >> place & 1]
    assert all(sum(item.frees[row] for item in chosen) >= 500 for row in (0, 1))
