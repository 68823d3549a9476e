"""The cheapest set of servers that makes room, against all sets; and how long it takes to find."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from itertools import combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.cover import Candidate, Limit, Need, Problem, cheapest
from sidecar.core.observed import Server
from tests.core.build import laws, model, server, thorough

M = model(500)
DEVICES = ("a", "b", "c")


def candidate(name: str, cost: int) -> Candidate:
    return Candidate(server(name, M), cost)


def limit(*devices: str, free: int = 0, **frees: int) -> Limit:
    """What the models' servers free."""
    return Limit(frozenset(devices), free, {f"{name}-1": mb for name, mb in frees.items()})


def victims(problem: Problem) -> list[str] | None:
    found = cheapest(problem)
    return None if found is None else [one.model for one in found]


def fits(problem: Problem, gone: Sequence[Server]) -> bool:
    """By trying all assignments."""
    return any(
        all(device in devices for device, (devices, _) in zip(chosen, problem.needs, strict=True))
        and all(any(device in one.devices for one in problem.limits) for device in chosen)
        and all(_holds(one, dict(zip(chosen, problem.needs, strict=True)), gone) for one in problem.limits)
        for chosen in permutations(DEVICES, len(problem.needs))
    )


def _holds(one: Limit, claims: dict[str, Need], gone: Sequence[Server]) -> bool:
    claimed = [mb for device, (_, mb) in claims.items() if device in one.devices]
    return not claimed or sum(claimed) <= one.free_mb + sum(one.frees_mb.get(victim.id, 0) for victim in gone)


def by_trying_all(problem: Problem) -> tuple[Server, ...] | None:
    ordered = sorted(problem.candidates, key=lambda one: one.server.id)
    sets = [chosen for size in range(len(ordered) + 1) for chosen in combinations(range(len(ordered)), size)]
    by_cost = sorted(sets, key=lambda one: (sum(ordered[at].cost for at in one), sum(1 << at for at in one)))
    tried = (tuple(ordered[at].server for at in one) for one in by_cost)
    return next((gone for gone in tried if fits(problem, gone)), None)


@st.composite
def problems(draw: st.DrawFn, size: int = 6) -> Problem:
    """Up to three devices, of which two may share one memory and one may be unknown, with two readings each."""
    known = DEVICES[: draw(st.integers(1, 3))]
    scopes = [(device,) for device in known for _ in range(2)] + draw(st.sampled_from(([], [], [("a", "b")])))
    names = [f"m{number}" for number in range(draw(st.integers(0, size)))]
    on = {name: draw(st.sets(st.sampled_from(known), min_size=1)) for name in names}
    limits = []
    for scope in scopes:
        frees = {name: draw(st.integers(0, 5)) for name in names if not on[name].isdisjoint(scope)}
        limits.append(limit(*scope, free=draw(st.integers(-2, 4)), **frees))
    classes = st.sampled_from((("a",), ("b", "c"), DEVICES, DEVICES))
    needs = draw(st.lists(st.tuples(classes, st.sampled_from((0, 3, 6, 9))), max_size=3))
    costs = st.sampled_from((1, 2, 3, 100, 101, 205))
    return Problem(tuple(needs), tuple(limits), tuple(candidate(name, draw(costs)) for name in names))


@thorough
@given(problems())
def test_the_set_is_the_cheapest_of_all_that_make_room(problem: Problem) -> None:
    assert cheapest(problem) == by_trying_all(problem)


@laws
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_what_is_given_makes_no_difference(problem: Problem, some: random.Random) -> None:
    def shuffled(values: Sequence[object]) -> list[object]:
        return some.sample(values, len(values))

    mixed = Problem(*(tuple(shuffled(part)) for part in (problem.needs, problem.limits, problem.candidates)))  # type: ignore[arg-type] # each part keeps its type
    assert cheapest(mixed) == cheapest(problem)


@laws
@given(problems())
def test_out_of_work_the_set_makes_room_and_nobody_in_it_can_be_spared(problem: Problem) -> None:
    found = cheapest(problem, work=1)
    if found is None:
        return  # it may have given up where memory is shared
    assert fits(problem, found)
    assert not any(fits(problem, [other for other in found if other is not one]) for one in found)


def test_nobody_goes_when_there_is_room_already() -> None:
    held = limit("a", free=5, dear=9)
    assert victims(Problem(((("a",), 5),), (held,), (candidate("dear", 1),))) == []
    assert victims(Problem((), (held,), (candidate("dear", 1),))) == []


def test_nobody_goes_when_all_together_are_not_enough() -> None:
    held = limit("a", free=5, one=3, other=3)
    assert victims(Problem(((("a",), 12),), (held,), (candidate("one", 1), candidate("other", 1)))) is None


def test_nothing_is_placed_on_an_unknown_device() -> None:
    assert victims(Problem(((("lost",), 0),), ())) is None
    assert victims(Problem(((("lost", "a"), 1),), (limit("a", one=1),), (candidate("one", 1),))) == ["one"]


def test_each_need_has_a_device_of_its_own() -> None:
    two = ((("a", "b"), 4), (("a", "b"), 4))
    assert victims(Problem(two, (limit("a", free=99),))) is None
    assert victims(Problem(two, (limit("a", free=99), limit("b", one=4)), (candidate("one", 1),))) == ["one"]


def test_both_readings_of_a_device_have_to_suffice() -> None:
    candidates = (candidate("declares", 1), candidate("uses", 1), candidate("both", 3))
    readings = (limit("a", declares=8, both=8), limit("a", uses=8, both=8))
    assert victims(Problem(((("a",), 8),), readings, candidates)) == ["declares", "uses"]


def test_one_server_over_two_devices_goes_rather_than_one_on_each() -> None:
    candidates = (candidate("a", 2), candidate("b", 2), candidate("both", 3))
    held = (limit("a", a=5, both=5), limit("b", b=5, both=5))
    assert victims(Problem(((("a", "b"), 5), (("a", "b"), 5)), held, candidates)) == ["both"]
    assert victims(Problem(((("a", "b"), 5),), held, candidates)) == ["a"]


def test_needs_in_one_shared_memory_add_up() -> None:
    needs = ((("cpu",), 4), (("igpu",), 4))
    known = (limit("cpu", free=6), limit("igpu", free=6))
    pool = limit("cpu", "igpu", free=6, small=1, large=2)
    candidates = (candidate("small", 1), candidate("large", 2))
    assert victims(Problem(needs, known, candidates)) == []
    assert victims(Problem(needs, (*known, pool), candidates)) == ["large"]
    assert victims(Problem((*needs, (("cpu", "igpu"), 1)), (*known, pool), candidates)) is None


def test_a_crowded_shared_memory_is_passed_over() -> None:
    """However many ways there are to place two needs in it: they never fit both."""
    inside = tuple(f"i{number}" for number in range(6))
    known = tuple(limit(device, free=5) for device in (*inside, "own"))
    needs = (((*inside, "own"), 5),) * 2
    assert victims(Problem(needs, (*known, limit(*inside, free=6)))) == []
    assert victims(Problem(needs, (*known, limit(*inside, free=4)))) is None


def test_an_overdrawn_shared_memory_hinders_nobody_who_goes_elsewhere() -> None:
    known = (limit("cpu", free=5), limit("igpu", free=5), limit("own", free=5), limit("cpu", "igpu", free=-1))
    assert victims(Problem(((("igpu", "own"), 5),), known)) == []
    assert victims(Problem(((("igpu", "cpu"), 0),), known)) is None


def test_of_many_candidates_the_cheapest_are_searched_first() -> None:
    many = {f"m{number:03}": 1 for number in range(100)}
    candidates = tuple(candidate(name, 100 + number) for number, name in enumerate(many))
    held = limit("a", **many)
    assert victims(Problem(((("a",), 60),), (held,), candidates)) == list(many)[:60]


def test_where_the_cheapest_do_not_suffice_more_are_taken_and_the_needless_spared() -> None:
    many = {f"m{number:03}": 1 for number in range(80)} | {"m070": 50}
    candidates = tuple(candidate(name, 100 + number) for number, name in enumerate(many))
    problem = Problem(((("a",), 90),), (limit("a", **many),), candidates)
    found = victims(problem)
    assert found is not None
    assert "m070" in found
    assert len(found) == 41
    assert victims(Problem(((("a",), 999),), problem.limits, candidates)) is None


def test_servers_that_free_nothing_where_it_is_needed_do_not_count_as_candidates() -> None:
    elsewhere = {f"m{number}": 9 for number in range(70)}
    candidates = (*(candidate(name, 1) for name in elsewhere), candidate("here", 999))
    assert victims(Problem(((("a",), 5),), (limit("b", **elsewhere), limit("a", here=5)), candidates)) == ["here"]


@pytest.mark.parametrize("needs", [1, 2, 4, 8])
def test_sixty_four_servers_on_sixteen_devices_take_well_under_a_second(needs: int) -> None:
    some = random.Random(needs)  # noqa: S311 # examples, not secrets
    devices = [f"gpu{number:02}" for number in range(16)]
    frees: list[dict[str, dict[str, int]]] = [{device: {} for device in devices} for _ in range(2)]
    candidates = []
    for number in range(64):
        one = candidate(f"m{number}", (1 << 7 * some.randrange(3) + 40) + some.randint(1000, 60000))
        candidates.append(one)
        width = some.choice((1, 1, 1, 2, 4))
        first = some.randrange(16 // width) * width
        declared = some.choice((4000, 8000, 16000, 24000))
        for device in devices[first : first + width]:
            frees[0][device][one.server.id] = declared
            frees[1][device][one.server.id] = round(declared * some.uniform(0.9, 1.0))
    limits = [Limit(frozenset({device}), some.randint(0, 4000), freed[device]) for freed in frees for device in devices]
    problem = Problem(((tuple(devices), 20000),) * needs, tuple(limits), tuple(candidates))
    before = time.process_time()
    assert cheapest(problem)
    assert time.process_time() - before < 1
