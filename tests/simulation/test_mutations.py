"""The simulation can fail: each of many mistakes, put into the product one at a time, breaks a promise within hours."""

from __future__ import annotations

import pytest

from tests.simulation import mutants
from tests.simulation.life import Result, simulate
from tests.simulation.mutants import Mutant

SEEDS, HOURS = 40, 15.0


@pytest.mark.parametrize(("mutant", "promises"), mutants.ALL, ids=lambda value: getattr(value, "__name__", ""))
def test_a_mistake_is_found(mutant: Mutant, promises: str) -> None:
    found = _first_broken(mutant)
    assert found is not None, f"{mutant.__name__} was not found within {SEEDS} lives of {HOURS:g} hours"
    assert any(found.broken.startswith(told) for told in promises.split("|")), found.broken


def _first_broken(mutant: Mutant) -> Result | None:
    for seed in range(SEEDS):
        with mutant():
            result = simulate(seed, HOURS)
        if result.broken:
            return result
    return None
