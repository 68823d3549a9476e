"""What a plan costs on a large machine: 500 models, 16 devices, 60 servers, 20 models that somebody waits for."""

from __future__ import annotations

import statistics
import time

import pytest

from sidecar.core.planner import plan
from tests.core.build import NOW
from tests.core.crowd import crowd

RUNS = 30

pytestmark = pytest.mark.benchmark


def cost_ms(*, waiting: bool) -> float:
    """The median of CPU time, so that others on the machine count for little."""
    declared, observed = crowd(waiting=waiting)
    found = []
    for _ in range(RUNS):
        began = time.process_time()
        plan(declared, observed, NOW)
        found.append(1000 * (time.process_time() - began))
    return statistics.median(found)


def test_twenty_models_that_wait_are_planned_for_in_50_ms() -> None:
    cost = cost_ms(waiting=True)
    print(f"\n20 models wait: {cost:.1f} ms")
    assert cost < 50


def test_nothing_to_do_is_found_in_5_ms() -> None:
    cost = cost_ms(waiting=False)
    print(f"\nnothing to do: {cost:.1f} ms")
    assert cost < 5
