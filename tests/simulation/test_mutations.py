"""The simulation can fail: each of many mistakes, put into the product one at a time, breaks a promise within hours."""

from __future__ import annotations

import pytest

from tests.simulation import mutants
from tests.simulation.life import Result, simulate
from tests.simulation.mutants import Case

SEEDS, HOURS = 40, 15.0


@pytest.mark.parametrize("case", mutants.ALL, ids=lambda case: case.mutant.__name__)
def test_a_mistake_is_found(case: Case) -> None:
    found = _first_broken(case)
    assert found is not None, f"{case.mutant.__name__} was not found within {SEEDS} lives of {HOURS:g} hours"
    assert found.broken.startswith(case.promises)


def _first_broken(case: Case) -> Result | None:
    for seed in range(SEEDS):
        with case.mutant():
            result = simulate(seed, HOURS, course=case.course)
        if result.broken:
            return result
    return None
