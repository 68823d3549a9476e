"""Whose turn it is and who has to go for it, and what comes of that under traffic that never ends."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import assume, given

from plugin_sdk import Duration
from sidecar.core.manifest import Model
from sidecar.core.observed import Demand, Server, ServerState
from sidecar.core.plan import Drain, Plan, Stop
from sidecar.core.planner import plan
from sidecar.core.turns import in_turn, is_pinned, may_go, overdue_at, resident_until
from tests.core.build import (
    DRAINING,
    GPU0,
    GPU1,
    NOW,
    READY,
    STARTING,
    STOPPING,
    decide,
    declare,
    external,
    gpu,
    laws,
    model,
    observe,
    ready,
    server,
    starts,
    stops,
    variant,
    want,
)
from tests.core.strategies import Scene, scenes
from tests.core.world import World, apply, busy, elapse, finish_requests

STEP_S = 5.0  # between two looks at a world in time: a load, a stop and a drain take one each


def patient(mb: int = 500, wait_s: float = 30, stay_s: float = 10, **more: Any) -> Model:
    return model(mb, max_wait=Duration(wait_s), min_residency=Duration(stay_s), **more)


def turned_out(decided: Plan) -> list[str]:
    """The models whose servers are drained for another."""
    return [one.model for one in decided.actions if isinstance(one, Drain) and one.reason == "TurnOver"]


# --- the order ------------------------------------------------------------------------------------------------------


def order(models: dict[str, Model], **waiting_s: float) -> list[str]:
    demands = {name: Demand(name, NOW - age) for name, age in waiting_s.items()}
    return in_turn(models, models, demands, NOW)


def test_priority_comes_before_age() -> None:
    assert order({"low": patient(), "high": patient(priority=1)}, low=20, high=1) == ["high", "low"]


def test_among_equals_the_longest_waiting_comes_first_and_one_that_nobody_waits_for_last_of_all() -> None:
    assert order({"auto": patient(priority=9), "late": patient(), "early": patient()}, late=1, early=2) == [
        "early",
        "late",
        "auto",
    ]


def test_an_overdue_model_comes_before_a_higher_priority() -> None:
    assert order({"low": patient(), "high": patient(priority=9)}, low=30, high=29) == ["low", "high"]


def test_overdue_models_come_by_when_their_turn_came() -> None:
    """Not by age: whoever becomes overdue must not take the room that was made for one who was so before."""
    models = {"calm": patient(wait_s=60, priority=9), "hasty": patient(wait_s=0)}
    assert order(models, calm=61, hasty=40) == ["hasty", "calm"]


def test_names_decide_between_equals() -> None:
    assert order({"b": patient(), "a": patient()}, a=1, b=1) == ["a", "b"]


def test_a_model_is_overdue_when_it_has_waited_for_its_max_wait() -> None:
    assert overdue_at(want("a"), {"a": patient(wait_s=7)}) == NOW + 7


# --- who may go -----------------------------------------------------------------------------------------------------


def test_a_ready_server_is_resident_for_its_min_residency_and_an_undeclared_one_is_not() -> None:
    models = {"a": patient(stay_s=60)}
    seen = server("a", models["a"], ready_s=20)
    assert resident_until(seen, models) == NOW + 40
    assert resident_until(seen, {}) == -math.inf


def test_only_declared_models_are_pinned() -> None:
    pinned = patient(pinned=True)
    seen = server("a", pinned)
    assert is_pinned(seen, {"a": pinned})
    assert not is_pinned(seen, {"a": patient()})
    assert not is_pinned(seen, {})


def goes(seen: Server, of: Model, *wanted: str, overdue: bool = False) -> bool:
    return may_go(seen, {"a": of}, wanted, NOW, overdue=overdue)


def test_an_idle_server_past_its_residency_may_go() -> None:
    assert goes(server("a", patient(), ready_s=10), patient())
    assert not goes(server("a", patient(), ready_s=9), patient(), overdue=True)


def test_a_server_in_use_may_go_for_an_overdue_model_only() -> None:
    seen = server("a", patient(), in_flight=1)
    assert not goes(seen, patient())
    assert goes(seen, patient(), overdue=True)


def test_a_pinned_or_wanted_server_never_goes() -> None:
    seen = server("a", patient())
    assert not goes(seen, patient(pinned=True), overdue=True)
    assert not goes(seen, patient(), "a", overdue=True)


@pytest.mark.parametrize("state", [state for state in ServerState if state is not READY])
def test_a_server_that_is_not_ready_is_not_told_to_go(state: ServerState) -> None:
    assert not goes(server("a", patient(), state=state), patient(), overdue=True)


# --- law 8: drains and residency ------------------------------------------------------------------------------------


def newcomer(action: Stop | Drain) -> str:
    return action.message.removeprefix("makes room for ").partition(" ")[0]


@laws
@given(scenes(crowded=True))
def test_servers_in_use_are_drained_for_overdue_models_only_and_nobody_within_its_residency(scene: Scene) -> None:
    models, servers = scene.declared.models, {one.id: one for one in scene.observed.servers}
    waiting = {one.model: one for one in scene.observed.demands}
    for action in plan(scene.declared, scene.observed, NOW).actions:
        if not isinstance(action, Stop | Drain) or action.reason not in ("Evicted", "TurnOver"):
            continue
        victim = servers[action.server]
        assert resident_until(victim, models) <= NOW
        assert victim.model not in waiting
        assert (victim.in_flight > 0) == isinstance(action, Drain)
        assert victim.in_flight == 0 or overdue_at(waiting[newcomer(action)], models) <= NOW


def test_a_busy_server_is_drained_when_the_turn_of_the_other_has_come() -> None:
    declared = declare(old=patient(600), new=patient(600))
    old = server("old", declared.models["old"], in_flight=1)
    early = decide(declared, gpu(free=400), old, want("new"))
    assert early.actions == ()
    assert early.wake_at == NOW + 30
    late = decide(declared, gpu(free=400), old, want("new"), now=NOW + 30)
    assert turned_out(late) == ["old"]
    assert ready(late, "new").message == "waits until old has stopped"


def test_an_overdue_model_drains_nobody_where_an_idle_server_is_enough() -> None:
    declared = declare(busy=patient(500), idle=patient(500, priority=5), new=patient(500))
    seen = server("busy", declared.models["busy"], in_flight=1), server("idle", declared.models["idle"])
    decided = decide(declared, gpu(free=0), *seen, want("new", since=NOW - 30))
    assert (stops(decided, "Evicted"), turned_out(decided)) == (["idle"], [])


def test_an_overdue_model_stops_the_idle_and_drains_the_busy_where_it_needs_both() -> None:
    declared = declare(busy=patient(500), idle=patient(500), new=patient(1000))
    seen = server("busy", declared.models["busy"], in_flight=1), server("idle", declared.models["idle"])
    decided = decide(declared, gpu(free=0), *seen, want("new", since=NOW - 30))
    assert (stops(decided, "Evicted"), turned_out(decided)) == (["idle"], ["busy"])


def test_an_idle_server_is_left_alone_for_its_residency_and_the_plan_wakes_at_its_end() -> None:
    declared = declare(old=patient(600), new=patient(600))
    decided = decide(declared, gpu(free=400), server("old", declared.models["old"], ready_s=4), want("new"))
    assert decided.actions == ()
    assert decided.wake_at == NOW + 6


def test_nobody_moves_into_the_room_of_an_overdue_model_that_waits_for_the_end_of_a_residency() -> None:
    """Or small models that come and go would keep a large one out for ever."""
    declared = declare(old=patient(600), large=patient(1000), small=patient(300, priority=9))
    old = server("old", declared.models["old"], ready_s=5)
    seen = gpu(free=400), old, want("small")
    assert starts(decide(declared, *seen, want("large", since=NOW - 29))).keys() == {"small"}
    late = decide(declared, *seen, want("large", since=NOW - 30))
    assert late.actions == ()
    assert late.wake_at == NOW + 5


def test_the_room_that_will_be_there_first_is_kept_free_and_no_other() -> None:
    declared = declare(
        first=patient(800), later=model(variant(800, GPU1)), large=patient(1000), small=patient(200), tiny=patient(100)
    )
    seen = (
        gpu(GPU0, free=200),
        gpu(GPU1, free=200),
        server("first", declared.models["first"], ready_s=8),
        server("later", declared.models["later"], GPU1, ready_s=2),
    )
    decided = decide(declared, *seen, want("small"), want("large", since=NOW - 30))
    assert starts(decided)["small"].devices == (GPU1,)


def test_a_loading_server_is_the_last_that_an_overdue_model_counts_on() -> None:
    declared = declare(loads=patient(800), stays=model(variant(800, GPU1)), large=patient(1000), small=patient(200))
    seen = (
        gpu(GPU0, free=200),
        gpu(GPU1, free=200),
        server("loads", declared.models["loads"], state=STARTING, use=800),
        server("stays", declared.models["stays"], GPU1, ready_s=2),
    )
    decided = decide(declared, *seen, want("small"), want("large", since=NOW - 30))
    assert starts(decided)["small"].devices == (GPU0,)


def test_nothing_is_kept_free_for_a_model_that_cannot_come() -> None:
    declared = declare(pinned=patient(600, pinned=True), large=patient(1000), small=patient(300))
    seen = gpu(free=400), server("pinned", declared.models["pinned"])
    decided = decide(declared, *seen, want("large", since=NOW - 30), want("small"))
    assert starts(decided).keys() == {"small"}
    assert decided.refusals["large"].reason == "InsufficientMemory"


# --- promise 9: under traffic that never ends -----------------------------------------------------------------------


@laws
@given(scenes(sound=True, measured=True, crowded=True, wanted=1))
def test_a_model_that_waits_gets_its_turn_though_all_others_are_in_constant_use(scene: Scene) -> None:
    """Within its max_wait, the longest residency, and the time that loads, drains and stops take."""
    name = scene.observed.demands[0].model
    models = scene.declared.models
    incumbents = {one.model for one in scene.observed.servers} & models.keys() - {name}
    patience_s = models[name].max_wait + max(one.min_residency for one in models.values())
    world, now = World.of(scene), NOW
    while now <= NOW + patience_s + 6 * STEP_S:
        world = busy(world, incumbents, now)
        decided = world.plan(now)
        assume(name not in decided.refusals)  # known at once, or when a device has been read again
        if name in starts(decided):
            return
        now += STEP_S
        world = elapse(apply(decided, world, now), now)
    raise AssertionError(f"{name} was kept out: {ready(decided, name).message}")


def swaps(wait_s: float, stay_s: float, *, pauses: bool) -> list[float]:
    """When, in ten minutes, one of two models became ready that both are wanted and do not fit together.

    pauses: requests are so short that none is in flight when the plan is made.
    """
    declared = declare(a=patient(600, wait_s, stay_s), b=patient(600, wait_s, stay_s))
    world, found, now = World.seen(declared, observe(gpu())), [], NOW
    while now < NOW + 600:
        world = busy(world, declared.models, now)
        if pauses:
            world = finish_requests(world, now)
        decided = world.plan(now)
        now += 1
        world = elapse(apply(decided, world, now), now)
        found += [now] if starts(decided) else []
    return found


@pytest.mark.parametrize(("wait_s", "stay_s"), [(30, 10), (5, 60), (0, 20), (20, 0)])
@pytest.mark.parametrize("pauses", [False, True])
def test_two_models_in_constant_demand_do_not_thrash(wait_s: float, stay_s: float, pauses: bool) -> None:
    least_s = stay_s if pauses else max(wait_s, stay_s)
    ups = swaps(wait_s, stay_s, pauses=pauses)
    assert all(later - earlier >= least_s for earlier, later in itertools.pairwise(ups))
    assert len(ups) >= 600 / (least_s + 10)  # each gets its turn, all the same


def test_draining_and_stopping_servers_have_no_turn_to_lose() -> None:
    declared = declare(a=patient(300), b=patient(300), new=patient(1000))
    seen = (
        server("a", declared.models["a"], state=DRAINING, in_flight=1),
        server("b", declared.models["b"], state=STOPPING),
    )
    decided = decide(declared, gpu(free=400), *seen, want("new", since=NOW - 99))
    assert decided.actions == ()
    assert ready(decided, "new").message == "waits until a, b have stopped"


def test_a_model_with_an_external_server_only_has_no_turn() -> None:
    declared = declare(a=model(external("url")), old=patient(1000))
    decided = decide(declared, gpu(free=0), server("old", declared.models["old"]), want("a", since=NOW - 99))
    assert decided.actions == ()
