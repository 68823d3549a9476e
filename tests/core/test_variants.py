"""Variants in their order: those that fail make way for the next, and idle servers go back to better ones."""

from __future__ import annotations

import math

import msgspec
from hypothesis import given

from plugin_sdk import Duration
from sidecar.core.manifest import Model
from sidecar.core.observed import Device, ExternalServer, Failure, Measured, Server, Status
from sidecar.core.plan import Stop
from sidecar.core.planner import QUIET_S, plan
from sidecar.core.turns import resident_until
from tests.core.build import (
    GPU0,
    GPU1,
    NOW,
    STARTING,
    cpu,
    decide,
    declare,
    external,
    failure,
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
from tests.core.world import World, finish_requests, settle

TWO = model(variant(500, name="gpu"), variant(500, "cpu", name="cpu"))


# --- variants that fail ---------------------------------------------------------------------------------------------


@laws
@given(scenes())
def test_a_variant_that_has_failed_is_not_started_before_its_time_and_an_earlier_one_is_passed_over_for_a_reason(
    scene: Scene,
) -> None:
    early = {(one.model, one.variant) for one in scene.observed.failures if one.retry_at > NOW}
    for name, start in starts(plan(scene.declared, scene.observed, NOW)).items():
        assert (name, start.variant) not in early
        managed = [one.name for one in scene.declared.models[name].variants if not one.external]
        earlier = managed[: managed.index(start.variant)]
        assert len(start.passed_over) == len(earlier)
        for variant_name, why in zip(earlier, start.passed_over, strict=True):
            assert f"variant {variant_name}" in why
            assert (" failed " in why) == ((name, variant_name) in early)


def test_a_variant_in_backoff_makes_way_for_the_next() -> None:
    declared = declare(a=TWO)
    decided = decide(declared, gpu(), cpu(), want("a"), failure("a", NOW + 12, variant="gpu"))
    start = starts(decided)["a"]
    assert start.variant == "cpu"
    assert start.passed_over == ("variant gpu failed (Exited), tried again in 12 s",)
    assert start.message == f"variant cpu fits on cpu; passed over: {start.passed_over[0]}"
    assert decided.wake_at == NOW + 12


def test_a_variant_that_was_given_up_makes_way_for_the_next() -> None:
    decided = decide(declare(a=TWO), gpu(), cpu(), want("a"), failure("a", math.inf, variant="gpu"))
    assert starts(decided)["a"].passed_over == ("variant gpu failed (Exited), given up",)


def test_a_variant_that_does_not_fit_is_passed_over_and_says_why() -> None:
    start = starts(decide(declare(a=TWO), gpu(free=100), cpu(), want("a")))["a"]
    assert start.passed_over == (
        "variant gpu needs 500 MB on gpu: gpu:0 has 100 of 1000 usable MB free, 400 MB too little "
        "(900 MB used by others)",
    )


def test_a_model_all_of_whose_variants_fail_is_refused_until_the_first_may_be_tried_again() -> None:
    failures = failure("a", NOW + 12, "LoadTimeout", "gpu"), failure("a", NOW + 5, "Exited", "cpu")
    later = msgspec.structs.replace(failures[0], at=NOW)
    decided = decide(declare(a=TWO), gpu(), cpu(), want("a"), later, failures[1])
    assert decided.actions == ()
    assert decided.refusals["a"].reason == "LoadTimeout"
    assert decided.refusals["a"].retry_after_s == 5
    assert decided.wake_at == NOW + 5


def test_a_model_all_of_whose_variants_were_given_up_is_refused_for_good() -> None:
    seen: list[Device | Failure] = [gpu(), cpu(), *(failure("a", math.inf, variant=name) for name in ("gpu", "cpu"))]
    decided = decide(declare(a=TWO), *seen, want("a"))
    assert decided.refusals["a"].retry_after_s is None


def test_a_variant_in_backoff_evicts_nobody() -> None:
    declared = declare(a=model(variant(1000, name="gpu"), variant(500, "cpu", name="cpu")), idle=model(500))
    idle = server("idle", declared.models["idle"])
    decided = decide(declared, gpu(free=500), cpu(0), idle, want("a"), failure("a", NOW + 9, variant="gpu"))
    assert stops(decided) == []


def test_what_is_left_of_a_server_that_failed_tells_how() -> None:
    seen = server("a", TWO, state=STARTING)
    failed = msgspec.structs.replace(failure("a", NOW + 9, "LoadTimeout", "gpu"), server=seen.id)
    assert ready(decide(declare(a=TWO), gpu(free=500), cpu(), seen, failed), "a").reason == "LoadTimeout"


def test_the_last_failure_does_not_hide_a_server_of_another_variant() -> None:
    seen = server("a", TWO, "cpu", variant=1)
    failed = failure("a", NOW + 9, "LoadTimeout", "gpu")
    assert ready(decide(declare(a=TWO), gpu(), cpu(500), seen, failed), "a").status is Status.TRUE


# --- law 10: better variants ----------------------------------------------------------------------------------------


def improved(actions: tuple[object, ...]) -> list[Stop]:
    return [one for one in actions if isinstance(one, Stop) and one.reason == "BetterVariant"]


@laws
@given(scenes(wanted=0))
def test_a_server_moves_only_when_it_is_idle_past_its_residency_and_nobody_waits(scene: Scene) -> None:
    decided = plan(scene.declared, scene.observed, NOW)
    servers = {one.id: one for one in scene.observed.servers}
    moves = improved(decided.actions)
    assert not moves or not any(ready(decided, name).reason.startswith("Waiting") for name in scene.declared.models)
    for move in moves:
        moved = servers[move.server]
        assert moved.in_flight == 0
        assert moved.last_used <= NOW - QUIET_S
        assert resident_until(moved, scene.declared.models) <= NOW


@laws
@given(scenes())
def test_nobody_moves_while_somebody_waits(scene: Scene) -> None:
    waits = {one.model for one in scene.observed.demands} & scene.declared.models.keys()
    assert not waits or not improved(plan(scene.declared, scene.observed, NOW).actions)


@laws
@given(scenes(sound=True, measured=True, wanted=0))
def test_a_server_that_moves_comes_up_again_better_and_none_moves_back_and_forth(scene: Scene) -> None:
    world, now = World.of(scene), NOW
    moves: dict[str, int] = {}
    for _ in range(12):
        before = {one.model: one.variant for one in world.observed.servers}
        world, plans = settle(finish_requests(world, now), now)
        after = {one.model: one.variant for one in world.observed.servers}
        for move in (one for decided in plans for one in improved(decided.actions)):
            names = [one.name for one in scene.declared.models[move.model].variants]
            assert names.index(after[move.model]) < names.index(before[move.model])
            moves[move.model] = moves.get(move.model, 0) + 1
        now = plans[-1].wake_at or now + 100
    assert all(count < len(scene.declared.models[name].variants) for name, count in moves.items())


def on_cpu(of: Model = TWO, **more: float) -> Server:
    """Its second variant has been up for long, and nobody has used it for as long."""
    return server("a", of, "cpu", variant=1, use=500, **({"idle_s": 99} | more))  # type: ignore[arg-type] # numbers all


def test_an_idle_server_goes_back_to_a_better_variant_that_has_room() -> None:
    declared = declare(a=TWO)
    world = World.seen(declared, observe(gpu(), cpu(500), on_cpu()))
    decided = world.plan(NOW)
    assert [one.message for one in improved(decided.actions)] == ["moves to variant gpu, which has room now"]
    world, _ = settle(world, NOW)
    assert [(one.model, one.variant) for one in world.observed.servers] == [("a", "gpu")]
    assert world.observed.moving == frozenset()


def test_a_server_in_use_or_used_lately_or_just_up_stays_where_it_is_and_the_plan_wakes_when_it_may_move() -> None:
    declared = declare(a=msgspec.structs.replace(TWO, min_residency=Duration(60)))
    of = declared.models["a"]
    busy = decide(declared, gpu(), cpu(500), on_cpu(of, in_flight=1))
    lately = decide(declared, gpu(), cpu(500), on_cpu(of, idle_s=10))
    young = decide(declared, gpu(), cpu(500), on_cpu(of, ready_s=25))
    assert [one.actions for one in (busy, lately, young)] == [()] * 3
    assert [one.wake_at for one in (busy, lately, young)] == [None, NOW + 20, NOW + 35]


def test_a_server_of_the_best_variant_wakes_nobody() -> None:
    assert decide(declare(a=TWO), gpu(free=500), cpu(), server("a", TWO, idle_s=1)).wake_at is None


def test_a_better_variant_without_room_moves_nobody() -> None:
    assert decide(declare(a=TWO), gpu(free=100), cpu(500), on_cpu()).actions == ()


def test_a_better_variant_that_has_failed_moves_nobody() -> None:
    """Its time has come, but the server that is up would be lost for the try."""
    assert decide(declare(a=TWO), gpu(), cpu(500), on_cpu(), failure("a", NOW - 9, variant="gpu")).actions == ()


def test_an_external_variant_is_nothing_to_move_to() -> None:
    of = model(external("url"), variant(500, "cpu", name="cpu"))
    assert decide(declare(a=of), cpu(500), server("a", of, "cpu", variant=1, idle_s=99)).actions == ()


def test_a_server_beside_a_healthy_external_one_does_not_move() -> None:
    """It would not be started again."""
    of = model(*TWO.variants, external("url"))
    healthy = ExternalServer(model="a", variant="url", healthy=True)
    assert decide(declare(a=of), gpu(), cpu(500), on_cpu(of), healthy).actions == ()


def test_nobody_moves_beside_an_engine_that_sizes_itself() -> None:
    declared = declare(a=TWO, engine=model(variant(100, "cpu", exclusive_start=True)))
    loads = server("engine", declared.models["engine"], "cpu", state=STARTING, use=0)
    assert decide(declared, gpu(), cpu(500), on_cpu(), loads).actions == ()


def test_a_moving_model_is_started_where_it_fits_if_the_better_place_was_lost() -> None:
    seen = msgspec.structs.replace(observe(gpu(free=0), cpu()), moving=frozenset({"a", "removed"}))
    assert starts(plan(declare(a=TWO), seen, NOW))["a"].variant == "cpu"


def test_a_moving_model_pushes_nobody_out() -> None:
    declared = declare(a=model(variant(500, GPU0, name="gpu")), idle=model(variant(600, GPU0)))
    idle = server("idle", declared.models["idle"], GPU0)
    seen = msgspec.structs.replace(observe(gpu(free=400), gpu(GPU1, 0), idle), moving=frozenset({"a"}))
    assert plan(declared, seen, NOW).actions == ()


# --- what was measured ----------------------------------------------------------------------------------------------


def measured(peak_mb: int, model_name: str = "a") -> Measured:
    return Measured(model=model_name, variant="gpu", fingerprint="", declared_mb={"gpu": 500}, peak_mb={"gpu": peak_mb})


def test_a_variant_that_took_more_than_it_declares_has_a_condition_that_says_so() -> None:
    seen = msgspec.structs.replace(observe(gpu(), cpu()), measured=(measured(700), measured(700, "removed")))
    first, second = plan(msgspec.structs.replace(declare(a=TWO), revision="r1"), seen, NOW).conditions["a"]
    assert (second.type, second.status, second.reason) == ("MemoryAsDeclared", Status.FALSE, "DeclaredTooLow")
    assert "declares 500 MB on gpu, has taken 700 MB" in second.message
    assert first.revision == second.revision == "r1"


def test_a_variant_that_took_no_more_than_it_declares_has_no_such_condition() -> None:
    seen = msgspec.structs.replace(observe(gpu(), cpu()), measured=(measured(500),))
    assert len(plan(declare(a=TWO), seen, NOW).conditions["a"]) == 1
