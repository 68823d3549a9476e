"""A plan for a large machine does not hold up the loop; what it costs is in tests/benchmarks/test_planner_cost.py."""

from __future__ import annotations

import time

import pytest

from sidecar.core.planner import plan
from tests.core.build import NOW, starts, stops
from tests.core.crowd import crowd


@pytest.mark.parametrize("waiting", [True, False])
def test_five_hundred_models_are_planned_in_less_than_a_second(waiting: bool) -> None:
    declared, observed = crowd(waiting=waiting)
    began = time.process_time()
    decided = plan(declared, observed, NOW)
    assert time.process_time() - began < 1
    assert bool(starts(decided)) == bool(stops(decided, "Evicted")) == waiting
    assert waiting or decided.actions == ()
