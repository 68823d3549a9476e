"""How long a variant that fails is left alone."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.backoff import ATTEMPTS, FIRST_S, JITTER, MOST_S, NOT_ITS_OWN, STABLE_S, Fall, after
from sidecar.core.observed import Failure
from tests.core.build import NOW, laws

MIDDLE = 0.5  # the chance that changes no delay
FALL = Fall(model="a", variant="v", server="a-1", reason="Exited", message="exit code 1")
SERVED = msgspec.structs.replace(FALL, served_s=1.0)
STABLE = msgspec.structs.replace(FALL, served_s=STABLE_S)


def row(*falls: Fall, chance: float = MIDDLE) -> list[Failure]:
    """What is remembered after each of the falls."""
    found: list[Failure] = []
    for fall in falls:
        found.append(after(found[-1] if found else None, fall, NOW, chance))
    return found


def delays(*falls: Fall, chance: float = MIDDLE) -> list[float]:
    return [one.retry_at - NOW for one in row(*falls, chance=chance)]


def test_a_fall_is_remembered_with_the_server_and_the_time() -> None:
    (found,) = row(FALL)
    assert found == Failure(
        model="a", variant="v", server="a-1", reason="Exited", message="exit code 1", count=1, at=NOW, retry_at=NOW + 1
    )


def test_each_delay_in_a_row_is_twice_the_last_up_to_the_most() -> None:
    assert delays(*[FALL] * (ATTEMPTS - 1)) == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_variant_that_fails_too_often_in_a_row_is_given_up_and_says_so() -> None:
    last = row(*[FALL] * ATTEMPTS)[-1]
    assert last.retry_at == math.inf
    assert last.message == (
        f"given up after {ATTEMPTS} attempts, until its manifest changes or somebody starts it: exit code 1"
    )


def test_a_server_that_had_served_may_be_tried_again_at_once_and_once_only() -> None:
    assert delays(SERVED, SERVED, SERVED) == [0, 2, 4]


def test_a_server_that_had_served_for_long_is_no_crash_loop() -> None:
    found = row(FALL, FALL, FALL, STABLE, FALL)
    assert [one.count for one in found] == [1, 2, 3, 1, 2]
    assert found[3].retry_at == NOW


@pytest.mark.parametrize("reason", sorted(NOT_ITS_OWN))
def test_a_variant_is_not_given_up_for_what_is_not_its_own_fault(reason: str) -> None:
    blameless = msgspec.structs.replace(FALL, reason=reason)
    assert delays(*[blameless] * (2 * ATTEMPTS))[-1] == MOST_S


def test_one_that_served_a_little_less_counts_on() -> None:
    short = msgspec.structs.replace(FALL, served_s=STABLE_S - 1)
    assert [one.count for one in row(FALL, short)] == [1, 2]


@pytest.mark.parametrize(("chance", "factor"), [(0.0, 1 - JITTER), (MIDDLE, 1.0), (1.0, 1 + JITTER)])
def test_jitter_moves_the_delay_up_and_down(chance: float, factor: float) -> None:
    assert delays(FALL, FALL, chance=chance) == pytest.approx([FIRST_S * factor, 2 * FIRST_S * factor])


@laws
@given(st.lists(st.sampled_from((FALL, SERVED, STABLE)), min_size=1, max_size=30), st.floats(0, 1))
def test_delays_are_never_negative_nor_longer_than_the_most_with_its_jitter(falls: list[Fall], chance: float) -> None:
    for failure in row(*falls, chance=chance):
        assert (failure.retry_at == math.inf) == (failure.count >= ATTEMPTS)
        assert failure.retry_at == math.inf or 0 <= failure.retry_at - NOW <= MOST_S * (1 + JITTER) + 1e-9
