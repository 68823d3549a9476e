"""Made-up messages mean the same on both sides. Many more of them: `python -m tests.conformance.fuzz`."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.conformance.fuzz import Seed, findings, kept_seeds, try_out
from tests.conformance.world import World

MESSAGES = 400


@pytest.mark.parametrize("seed", kept_seeds(), ids=lambda seed: seed.why[:60])
def test_what_taught_something_is_not_forgotten(here: World, seed: Seed) -> None:
    assert try_out(here, seed) == ""


def test_made_up_messages_mean_the_same_on_both_sides(here: World) -> None:
    tally: Counter[str] = Counter()
    assert list(findings(here, 0, MESSAGES, tally)) == []
    assert min(tally.values()) > MESSAGES // 20  # of every kind
