"""What a plan in the making has to give away, and engines that size themselves by what is free."""

from __future__ import annotations

from hypothesis import given

from sidecar.core.ledger import Ledger
from sidecar.core.manifest import Model, Variant
from sidecar.core.observed import Device, Server
from sidecar.core.placement import Inventory
from sidecar.core.plan import Start, Stop
from sidecar.core.planner import plan
from sidecar.core.room import Room
from tests.core.build import (
    DRAINING,
    GPU0,
    GPU1,
    NOW,
    STARTING,
    STOPPING,
    cpu,
    decide,
    declare,
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
from tests.core.world import World, settle

M = model(400)
ALONE = variant(400, exclusive_start=True)


def room(*seen: Device | Server) -> Room:
    devices = tuple(one for one in seen if isinstance(one, Device))
    servers = [one for one in seen if isinstance(one, Server)]
    return Room(Ledger(devices, servers, {}, 0), Inventory(devices, {}))


def where(found: object) -> tuple[str, ...] | None:
    return getattr(found, "devices", None)


# --- now, and soon --------------------------------------------------------------------------------------------------


def test_what_a_start_claims_is_free_neither_now_nor_soon() -> None:
    space = room(gpu())
    placement = space.place_now(variant(600))
    assert placement is not None
    space.claim(variant(600), placement)
    assert space.soon() == {GPU0: 400}
    assert space.place_now(variant(500)) is None
    assert space.place_soon(variant(500)) is None


def test_what_is_promised_stays_free_for_whom_it_was_promised() -> None:
    leaving = server("a", M, state=STOPPING, use=400)
    space = room(gpu(free=600), leaving)
    placement = space.place_soon(variant(900))
    assert placement is not None
    assert space.place_now(variant(900)) is None
    space.promise(variant(900), placement)
    assert space.soon() == {GPU0: 100}
    assert where(space.place_now(variant(100))) == (GPU0,)
    assert space.place_now(variant(101)) is None


def test_a_server_that_the_plan_has_go_makes_room_soon_and_but_once() -> None:
    seen = server("a", M, use=400)
    space = room(gpu(free=600), seen)
    assert not space.leaves(seen)
    space.leave(seen)
    space.stop(seen)
    assert space.leaves(seen)
    assert space.leaving == [seen]
    assert space.soon() == {GPU0: 1000}
    assert space.place_now(variant(900)) is None


def test_a_server_is_on_a_variants_devices_when_it_holds_some_that_the_variant_could_have() -> None:
    seen = server("a", M), server("b", M, GPU1), server("c", M, GPU0)
    space = room(gpu(), gpu(GPU1), *seen)
    assert space.on(variant(1, GPU0), seen) == ["a", "c"]
    assert space.on(variant(1), seen) == ["a", "b", "c"]
    assert space.on(variant(1, "cpu"), seen) == []


# --- law 9: exclusive starts ----------------------------------------------------------------------------------------


def shared(scene: Scene, device: str) -> set[str]:
    """The devices that use the memory of this one."""
    pools = Inventory(scene.observed.devices, scene.declared.devices).pools
    return {key for key, pool in pools.items() if pool == pools.get(device)} | {device}


def chosen(scene: Scene, start: Start) -> Variant:
    return next(one for one in scene.declared.models[start.model].variants if one.name == start.variant)


@laws
@given(scenes())
def test_nothing_comes_or_goes_beside_an_engine_that_sizes_itself(scene: Scene) -> None:
    servers = {one.id: one for one in scene.observed.servers}
    actions = plan(scene.declared, scene.observed, NOW).actions
    begun = [one for one in actions if isinstance(one, Start)]
    moves = [(one.model, set(one.devices)) for one in begun]
    moves += [(one.model, set(servers[one.server].reserved_mb)) for one in actions if isinstance(one, Stop)]
    under_way = [(one.model, set(one.reserved_mb)) for one in servers.values() if one.state in (STARTING, STOPPING)]
    quiet = [(one.model, set(one.devices), moves + under_way) for one in begun if chosen(scene, one).exclusive_start]
    quiet += [
        (one.model, set(one.reserved_mb), moves) for one in servers.values() if one.exclusive and one.state is STARTING
    ]
    for name, devices, others in quiet:
        beside = {member for device in devices for member in shared(scene, device)}
        assert [other for other, on in others if other != name and on & beside] == []


def test_an_engine_that_sizes_itself_waits_for_who_loads_beside_it_and_not_elsewhere() -> None:
    loads = server("a", M, state=STARTING, use=100)
    assert where(room(gpu(), loads).place_now(ALONE)) is None
    assert where(room(gpu(), gpu(GPU1), loads).place_now(ALONE)) == (GPU1,)
    assert where(room(gpu(), loads).place_soon(ALONE)) == (GPU0,)


def test_an_engine_that_sizes_itself_waits_for_who_goes_beside_it() -> None:
    assert room(gpu(), server("a", M, state=STOPPING, use=400)).place_now(ALONE) is None
    seen = server("a", M, use=400)
    space = room(gpu(), seen)
    assert space.place_now(ALONE) is not None
    space.stop(seen)
    assert space.place_now(ALONE) is None


def test_a_server_that_only_drains_may_stay_beside_an_engine_that_sizes_itself() -> None:
    """It is not stopped before the engine is ready."""
    declared = declare(old=M, new=model(ALONE))
    drained = server("old", M, state=DRAINING, use=400)
    loads = server("new", declared.models["new"], state=STARTING, use=100)
    assert stops(decide(declared, gpu(free=500), drained, loads)) == []
    ready_now = server("new", declared.models["new"], use=400)
    assert stops(decide(declared, gpu(free=200), drained, ready_now), "Drained") == ["old"]


def test_nobody_starts_or_is_evicted_or_stopped_for_idleness_while_an_engine_sizes_itself() -> None:
    declared = declare(engine=model(ALONE), idle=model(300, idle_timeout=1), small=model(100), large=model(600))
    loads = server("engine", declared.models["engine"], state=STARTING, use=0)
    idle = server("idle", declared.models["idle"], idle_s=9, use=300)
    decided = decide(declared, gpu(free=700), loads, idle, want("small"), want("large"))
    assert decided.actions == ()
    assert ready(decided, "small").message == "waits until engine has loaded: exclusive_start"
    assert ready(decided, "small").reason == "WaitingForStart"


def test_several_that_load_are_all_named() -> None:
    declared = declare(a=model(100), b=model(100), engine=model(ALONE))
    seen = [server(name, declared.models[name], state=STARTING, use=0) for name in "ab"]
    condition = ready(decide(declared, gpu(), *seen, want("engine")), "engine")
    assert condition.message == "waits until a, b have loaded: exclusive_start"


def test_one_engine_that_sizes_itself_starts_after_the_other() -> None:
    declared = declare(a=model(ALONE), b=model(ALONE))
    decided = decide(declared, gpu(), want("a", NOW - 2), want("b", NOW - 1))
    assert starts(decided).keys() == {"a"}
    assert ready(decided, "b").message == "waits until another model has loaded: exclusive_start"
    _, plans = settle(World.seen(declared, observe(gpu(), want("a", NOW - 2), want("b", NOW - 1))), NOW)
    assert [name for one in plans for name in starts(one)] == ["a", "b"]


def test_starts_that_come_one_after_the_other_do_not_keep_an_engine_waiting() -> None:
    """Its devices are closed for whoever comes later."""
    declared = declare(loads=model(100), engine=model(ALONE, priority=1), small=model(100))
    loads = server("loads", declared.models["loads"], state=STARTING, use=0)
    decided = decide(declared, gpu(), loads, want("engine"), want("small"))
    assert decided.actions == ()


# --- one memory for several devices ---------------------------------------------------------------------------------

IGPU = "GPU-i"
UNIFIED = cpu(), gpu(IGPU, index=0, shares="cpu")


def on(device: str, mb: int = 400) -> Model:
    return model(variant(mb, device))


def test_a_claim_on_one_device_is_a_claim_on_all_that_share_its_memory() -> None:
    declared = declare(a=on("cpu", 600), b=on(IGPU, 600), c=on(IGPU, 400))
    decided = decide(declared, *UNIFIED, want("a", NOW - 3), want("b", NOW - 2), want("c", NOW - 1))
    assert starts(decided).keys() == {"a", "c"}


def test_a_promise_on_one_device_is_kept_on_all_that_share_its_memory() -> None:
    declared = declare(old=on("cpu", 500), a=on("cpu", 900), b=on(IGPU, 200))
    leaving = server("old", declared.models["old"], "cpu", state=STOPPING, use=500)
    seen = cpu(500), gpu(IGPU, 500, index=0, shares="cpu"), leaving
    assert starts(decide(declared, *seen, want("a", NOW - 2), want("b", NOW - 1))) == {}


def test_who_holds_shared_memory_through_another_device_is_evicted() -> None:
    declared = declare(old=on(IGPU, 600), new=on("cpu", 600))
    seen = cpu(400), gpu(IGPU, 400, index=0, shares="cpu"), server("old", declared.models["old"], IGPU, use=600)
    assert stops(decide(declared, *seen, want("new")), "Evicted") == ["old"]


def test_an_engine_that_sizes_itself_is_undisturbed_on_all_devices_that_share_its_memory() -> None:
    declared = declare(engine=model(variant(400, IGPU, exclusive_start=True)), new=on("cpu", 100))
    loads = server("engine", declared.models["engine"], IGPU, state=STARTING, use=0)
    decided = decide(declared, *UNIFIED, loads, want("new"))
    assert decided.actions == ()
    assert ready(decided, "new").message == "waits until engine has loaded: exclusive_start"
