"""The planner's laws, each tried on random machines. The reasons that it gives are in test_conditions."""

from __future__ import annotations

import itertools
import math
import random

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st

from sidecar.core.ledger import Ledger
from sidecar.core.manifest import Model, Variant
from sidecar.core.observed import LEAVING, Device, Observed, Server
from sidecar.core.placement import Inventory
from sidecar.core.plan import Drain, Plan, Start, Stop
from sidecar.core.planner import RETRY_AFTER_S, plan
from tests.core.build import (
    DRAINING,
    GPU0,
    GPU1,
    NOW,
    READY,
    STARTING,
    STOPPING,
    cpu,
    decide,
    declare,
    failure,
    gpu,
    laws,
    model,
    observe,
    ready,
    server,
    starts,
    stops,
    thorough,
    variant,
    want,
)
from tests.core.strategies import Scene, scenes
from tests.core.world import World, apply, elapse, finish_requests, settle

PUSHED = ("Evicted", "TurnOver")


def planned(scene: Scene) -> Plan:
    return plan(scene.declared, scene.observed, NOW)


def caps(scene: Scene) -> dict[str, int]:
    return Inventory(scene.observed.devices, scene.declared.devices).caps


# --- law 1: reservations --------------------------------------------------------------------------------------------


def pools(scene: Scene) -> dict[str, set[str]]:
    """The devices that use the same memory, by each of them."""
    readable = {one.id for one in scene.observed.devices if not one.unknown}
    shares = {one.id: one.status.shares if one.status.shares in readable else one.id for one in scene.observed.devices}
    return {key: {other for other, pool in shares.items() if pool == shares[key]} for key in shares}


def usable_mb(scene: Scene, device: Device) -> int:
    total = device.status.total_mb
    return min(total - scene.declared.settings.headroom_mb, caps(scene).get(device.id, total))


@laws
@given(scenes())
def test_nothing_is_started_beyond_what_is_usable(scene: Scene) -> None:
    """Neither of a device, nor of the memory that it shares with others."""
    started = starts(planned(scene)).values()
    for device in scene.observed.devices:
        own = {device.id} if device.status.shares else pools(scene)[device.id]
        mine = [start.reserved_mb[key] for start in started for key in own if key in start.reserved_mb]
        held = sum(one.charged_mb(key) for one in scene.observed.servers for key in own)
        assert not mine or held + sum(mine) <= usable_mb(scene, device)


@laws
@given(scenes())
def test_a_reservation_is_taken_whole_or_not_at_all(scene: Scene) -> None:
    for name, start in starts(planned(scene)).items():
        chosen = next(one for one in scene.declared.models[name].variants if one.name == start.variant)
        assert len(set(start.devices)) == len(start.devices)
        assert [start.reserved_mb[device] for device in start.devices] == [mb for _, mb in chosen.needs()]
        assert start.reserved_mb.keys() == set(start.devices)


@laws
@given(scenes(sound=True))
def test_live_memory_is_never_overcommitted(scene: Scene) -> None:
    """Servers load up to their reservation, also while they leave; nobody else comes or goes."""
    world = World.of(scene)
    for _ in range(6):
        world = apply(world.plan(NOW), world, NOW)
        assert world.overcommitted == []
        world = elapse(world, NOW)


def test_memory_that_a_leaving_server_may_still_load_is_not_given_away() -> None:
    """Told to leave while it loads, a server takes up to its reservation until it is really gone."""
    old = server("old", model(400), state=STARTING, use=0, fingerprint="stale")
    declared = declare(old=model(400), new=model(450))
    seen = observe(gpu(free=500), old, want("new"))
    world = World.seen(declared, seen)
    for _ in range(2):
        world = apply(world.plan(NOW), world, NOW)
        assert world.overcommitted == []
        world = elapse(world, NOW)


# --- law 2: who must not be touched ---------------------------------------------------------------------------------


@laws
@given(scenes())
def test_a_server_with_requests_in_flight_is_never_stopped(scene: Scene) -> None:
    servers = {one.id: one for one in scene.observed.servers}
    for action in planned(scene).actions:
        assert not isinstance(action, Stop) or servers[action.server].in_flight == 0


@laws
@given(scenes())
def test_pinned_servers_are_never_evicted_nor_stopped_for_being_idle(scene: Scene) -> None:
    decided = planned(scene)
    for name in pushed_out(decided) + stops(decided, "Idle"):
        assert not scene.declared.models[name].pinned


@laws
@given(scenes())
def test_only_servers_that_exist_are_touched_and_each_but_once(scene: Scene) -> None:
    """An external server is none that the sidecar could name."""
    touched = [action.server for action in planned(scene).actions if isinstance(action, Stop | Drain)]
    assert len(set(touched)) == len(touched)
    assert set(touched) <= {one.id for one in scene.observed.servers if one.state is not STOPPING}


@laws
@given(scenes())
def test_a_model_with_a_healthy_external_server_is_not_started(scene: Scene) -> None:
    healthy = {external.model for external in scene.observed.externals if external.healthy}
    assert not healthy & starts(planned(scene)).keys()


# --- law 3: evictions -----------------------------------------------------------------------------------------------


def room_without(scene: Scene, gone: list[Server]) -> dict[str, int]:
    """What is provably free on each device when `gone` are gone, worked out apart from the ledger.

    A server that loads and was not measured may have taken nothing yet: then its end frees nothing.
    """
    devices = {device.id: device for device in scene.observed.devices}
    dark = {device.id for device in scene.observed.devices if device.unknown or device.stale}
    room = {}
    for key, device in devices.items():
        if {key, device.status.shares} & dark:
            continue
        main = devices.get(device.status.shares, device)
        free = min(device.status.free_mb, main.status.free_mb) - scene.declared.settings.headroom_mb
        own = usable_mb(scene, device) - held_mb(scene, {key}, gone)
        pool = usable_mb(scene, main) - held_mb(scene, pools(scene)[main.id], gone)
        room[key] = min(own, pool, free + live_mb(scene, pools(scene)[main.id], gone))
    return room


def held_mb(scene: Scene, members: set[str], gone: list[Server]) -> int:
    return sum(one.charged_mb(key) for one in scene.observed.servers if one not in gone for key in members)


def live_mb(scene: Scene, members: set[str], gone: list[Server]) -> int:
    """What live memory gains by the end of `gone`, less what others have yet to allocate."""
    gained = 0
    for one, key in itertools.product(scene.observed.servers, members):
        reserved, loads = one.reserved_mb.get(key, 0), one.state is STARTING
        use = one.observed_mb.get(key, 0 if loads else reserved)
        gained += use if one in gone else -max(0, reserved - use) if loads else 0
    return gained


def has_place(scene: Scene, needed: Variant, room: dict[str, int]) -> bool:
    """By trying every assignment."""
    inventory = Inventory(scene.observed.devices, scene.declared.devices)
    options = [
        [device.id for device in inventory.candidates(name) if room.get(device.id, -1) >= mb]
        for name, mb in needed.needs()
    ]
    amounts = [mb for _, mb in needed.needs()]

    def holds(chosen: tuple[str, ...]) -> bool:
        together = {
            key: sum(mb for one, mb in zip(chosen, amounts, strict=True) if one in pools(scene)[key]) for key in chosen
        }
        main = {device.id: device.status.shares or device.id for device in scene.observed.devices}
        return len(set(chosen)) == len(chosen) and all(
            mb <= room.get(main[key], room[key]) for key, mb in together.items()
        )

    return any(map(holds, itertools.product(*options)))


def pushed_out(decided: Plan) -> list[str]:
    """The models whose servers are stopped, or drained, for another."""
    return [action.model for action in decided.actions if isinstance(action, Stop | Drain) and action.reason in PUSHED]


def managed(of: Model) -> list[Variant]:
    return [one for one in of.variants if not one.external]


@thorough
@given(scenes(crowded=True, wanted=1))
def test_evictions_make_room_for_the_newcomer_and_none_could_have_stayed(scene: Scene) -> None:
    decided = planned(scene)
    evicted = pushed_out(decided)
    if not evicted:
        return
    variants = managed(scene.declared.models[scene.observed.demands[0].model])
    touched = {action.server for action in decided.actions if isinstance(action, Stop | Drain)}
    gone = [one for one in scene.observed.servers if one.id in touched or one.state in LEAVING]
    newly = [one for one in gone if one.model in evicted]
    assert any(has_place(scene, one, room_without(scene, gone)) for one in variants)
    chosen = next(one for one in variants if has_place(scene, one, room_without(scene, gone)))
    for victim in newly:
        assert not has_place(scene, chosen, room_without(scene, [one for one in gone if one is not victim]))
    others = [one for one in gone if one not in newly]
    assert not any(has_place(scene, one, room_without(scene, others)) for one in variants)


@thorough
@given(scenes(sound=True, measured=True, crowded=True))
def test_whoever_is_evicted_for_comes_up_without_another_eviction(scene: Scene) -> None:
    """Undisturbed: nobody comes, and nobody's requests end but those of draining servers."""
    _, plans = settle(World.of(scene), NOW)
    waiting: set[str] = set()
    for decided in plans:
        waiting -= starts(decided).keys()
        newcomers = {
            action.message.removeprefix("makes room for ").partition(" ")[0]
            for action in decided.actions
            if isinstance(action, Stop | Drain) and action.reason in PUSHED
        }
        assert not newcomers & waiting
        waiting |= newcomers
    assert not waiting


def test_nobody_is_evicted_on_the_word_of_a_loading_server_that_was_not_measured() -> None:
    """550 MB of 1000 can become free for sure: 450 MB are held by others, and `loading` may have taken nothing yet."""
    loading = server("loading", model(400), state=STARTING, fingerprint="stale")
    idle = server("idle", model(50), use=50)
    declared = declare(idle=model(50), new=model(940))
    decided = decide(declared, gpu(free=500), loading, idle, want("new"))
    assert stops(decided, "Evicted") == []


def test_nobody_is_evicted_for_memory_that_a_restart_ahead_will_take() -> None:
    """`first` waits for the end of its own old server, whose room `second` cannot count on."""
    declared = declare(first=model(500, priority=1), second=model(900), idle=model(400))
    old = server("first", model(500), state=STOPPING, use=500)
    idle = server("idle", model(400), use=400)
    decided = decide(declared, gpu(free=100), old, idle, want("first"), want("second"))
    assert stops(decided, "Evicted") == []


def test_nobody_is_evicted_for_memory_that_a_restart_ahead_could_take_though_it_cannot_be_promised_yet() -> None:
    declared = declare(first=model(600, priority=1), second=model(500), idle=model(400), other=model(200))
    old = server("first", model(200), state=STOPPING, use=200)
    seen = server("idle", declared.models["idle"], use=400), server("other", declared.models["other"], use=200)
    decided = decide(declared, gpu(free=200), old, *seen, want("first"), want("second"))
    assert starts(decided) == {}
    assert (stops(decided, "Evicted"), ready(decided, "second").reason) == ([], "WaitingForMemory")


def test_room_made_by_an_eviction_is_not_taken_by_a_model_that_starts_by_itself() -> None:
    declared = declare(auto=model(600, auto_start=True, priority=9), new=model(700), idle=model(600))
    seen = observe(gpu(free=400), server("idle", declared.models["idle"], use=600), want("new"))
    _, plans = settle(World.seen(declared, seen), NOW)
    assert [name for one in plans for name in starts(one)] == ["new"]


def test_room_made_by_an_eviction_is_not_taken_by_one_who_was_to_wait_elsewhere() -> None:
    """`first` is to have GPU 0, which will have 1000 MB; `second` can only have GPU 1, and evicts for it."""
    declared = declare(first=model(500, priority=1), second=model(variant(600, GPU1)), idle=model(variant(600, GPU1)))
    leaving = server("gone", model(1000), GPU0, state=STOPPING, use=1000)
    idle = server("idle", declared.models["idle"], GPU1, use=600)
    seen = observe(gpu(GPU0, 0), gpu(GPU1, 0, total=600), leaving, idle, want("first"), want("second"))
    _, plans = settle(World.seen(declared, seen), NOW)
    started = {name: start.devices for decided in plans for name, start in starts(decided).items()}
    assert started == {"first": (GPU0,), "second": (GPU1,)}


def test_idle_server_is_evicted_before_a_pinned_one() -> None:
    declared = declare(pinned=model(500, pinned=True), idle=model(500), new=model(500))
    pinned, idle = (server(name, declared.models[name], idle_s=age) for name, age in (("pinned", 99), ("idle", 1)))
    decided = decide(declared, gpu(free=0), pinned, idle, want("new"))
    assert stops(decided) == ["idle"]
    assert ready(decided, "new").reason == "WaitingForMemory"


def test_lower_priority_is_evicted_before_longer_idle() -> None:
    declared = declare(dear=model(500, priority=1), cheap=model(500), new=model(500))
    dear, cheap = (server(name, declared.models[name], idle_s=age) for name, age in (("dear", 99), ("cheap", 1)))
    assert stops(decide(declared, gpu(free=0), dear, cheap, want("new"))) == ["cheap"]


def test_a_stop_under_way_spares_an_idle_server() -> None:
    declared = declare(idle=model(500), new=model(500))
    idle, leaving = server("idle", declared.models["idle"]), server("gone", model(500), state=STOPPING)
    decided = decide(declared, gpu(free=0), idle, leaving, want("new"))
    assert decided.actions == ()
    assert ready(decided, "new").message == "waits until gone has stopped"


def test_a_model_that_others_wait_for_is_not_evicted() -> None:
    declared = declare(up=model(500), new=model(600))
    decided = decide(declared, gpu(free=500), server("up", declared.models["up"]), want("up"), want("new"))
    assert decided.actions == ()


def test_a_model_that_starts_by_itself_pushes_nobody_out() -> None:
    declared = declare(idle=model(600), automatic=model(600, auto_start=True))
    decided = decide(declared, gpu(free=400), server("idle", declared.models["idle"]))
    assert decided.actions == ()
    assert ready(decided, "automatic").reason == "WaitingForMemory"


def test_a_later_variant_that_fits_is_preferred_to_an_eviction() -> None:
    declared = declare(idle=model(600), new=model(variant(600, name="gpu"), variant(600, "cpu", name="cpu")))
    decided = decide(declared, gpu(free=400), cpu(), server("idle", declared.models["idle"]), want("new"))
    assert starts(decided)["new"].variant == "cpu"
    assert stops(decided) == []


# --- law 4: devices that cannot be read -----------------------------------------------------------------------------


@laws
@given(scenes())
def test_a_device_that_cannot_be_read_gets_nothing_new(scene: Scene) -> None:
    readable = {device.id for device in scene.observed.devices if not (device.unknown or device.stale)}
    for start in starts(planned(scene)).values():
        assert set(start.devices) <= readable


@laws
@given(scenes())
def test_nobody_is_evicted_whose_memory_cannot_be_read(scene: Scene) -> None:
    readable = {device.id for device in scene.observed.devices if not (device.unknown or device.stale)}
    evicted = pushed_out(planned(scene))
    for one in scene.observed.servers:
        assert one.model not in evicted or readable & one.reserved_mb.keys()


@laws
@given(scenes(wanted=0))
def test_a_device_that_becomes_unreadable_stops_nobody(scene: Scene) -> None:
    blind = tuple(
        msgspec.structs.replace(device, status=msgspec.structs.replace(device.status, problem="it hangs"))
        for device in scene.observed.devices
    )
    blinded = msgspec.structs.replace(scene, observed=msgspec.structs.replace(scene.observed, devices=blind))
    seeing = [
        action
        for action in planned(scene).actions
        if not isinstance(action, Start) and action.reason != "BetterVariant"  # that one is for what can be seen
    ]
    assert list(planned(blinded).actions) == seeing


# --- law 5: one server a model --------------------------------------------------------------------------------------


@laws
@given(scenes())
def test_a_model_with_a_server_in_whatever_state_is_not_started(scene: Scene) -> None:
    started = [action.model for action in planned(scene).actions if isinstance(action, Start)]
    assert len(set(started)) == len(started)
    assert not set(started) & {one.model for one in scene.observed.servers}


# --- law 6: promises ------------------------------------------------------------------------------------------------


@laws
@given(scenes(sound=True, measured=True, crowded=True))
def test_memory_promised_to_a_waiting_model_is_still_there_when_the_stops_are_done(scene: Scene) -> None:
    decided = planned(scene)
    world = apply(decided, World.of(scene), NOW)
    while any(one.state in LEAVING for one in world.observed.servers):
        world = elapse(apply(_stops_under_way(world.plan(NOW)), world, NOW), NOW)
    for name in scene.declared.models:
        condition = ready(decided, name)
        if condition.reason == "WaitingForMemory" and condition.message.startswith("waits until"):
            alone = msgspec.structs.replace(
                world.observed, demands=(want(name),), auto_started=frozenset(scene.declared.models)
            )
            assert name in starts(plan(scene.declared, alone, NOW))


def _stops_under_way(decided: Plan) -> Plan:
    """What the stops under way come to, when nobody else is started and nobody else is stopped for it."""
    kept = [one for one in decided.actions if isinstance(one, Stop) and one.reason == "Drained"]
    return msgspec.structs.replace(decided, actions=tuple(kept))


def test_room_that_a_model_waits_for_is_not_given_to_the_next() -> None:
    declared = declare(first=model(800), second=model(300))
    leaving = server("gone", model(500), state=STOPPING, use=500)
    decided = decide(declared, gpu(free=500), leaving, want("first", since=NOW - 2), want("second", since=NOW - 1))
    assert starts(decided) == {}
    assert ready(decided, "first").message == "waits until gone has stopped"


def test_room_that_is_left_beside_a_promise_is_given_to_the_next() -> None:
    declared = declare(first=model(700), second=model(300))
    leaving = server("gone", model(500), state=STOPPING, use=500)
    decided = decide(declared, gpu(free=500), leaving, want("first", since=NOW - 2), want("second", since=NOW - 1))
    assert starts(decided).keys() == {"second"}


def test_a_restart_is_promised_the_room_of_its_own_old_server() -> None:
    """`first` waits for the end of its own old server; what it will need then is not for `second`."""
    declared = declare(first=model(800, priority=1), second=model(500))
    old = server("first", model(500), state=STOPPING, use=500)
    decided = decide(declared, gpu(free=500), old, want("first"), want("second"))
    assert starts(decided) == {}


# --- law 7: settling ------------------------------------------------------------------------------------------------


@laws
@given(scenes())
def test_the_same_input_gives_the_same_plan_and_is_left_as_it_was(scene: Scene) -> None:
    before = msgspec.json.encode(scene.observed)
    assert planned(scene) == planned(scene)
    assert msgspec.json.encode(scene.observed) == before


@laws
@given(scenes(), st.randoms(use_true_random=False))
def test_the_order_in_which_things_are_seen_does_not_matter(scene: Scene, shuffle: random.Random) -> None:
    def shuffled(observed: Observed) -> Observed:
        fields = {
            name: tuple(shuffle.sample(getattr(observed, name), len(getattr(observed, name))))
            for name in ("devices", "servers", "demands", "failures", "externals")
        }
        return msgspec.structs.replace(observed, **fields)

    def kernel(decided: Plan) -> tuple[object, ...]:
        """Without what is told to people."""
        acts = {
            repr(msgspec.structs.replace(action, message="", **({"passed_over": ()} if type(action) is Start else {})))
            for action in decided.actions
        }
        reasons = {name: [one.reason for one in found] for name, found in decided.conditions.items()}
        refused = {name: (one.reason, one.retry_after_s) for name, one in decided.refusals.items()}
        return acts, reasons, refused, decided.wake_at

    models = dict(shuffle.sample(list(scene.declared.models.items()), len(scene.declared.models)))
    declared = msgspec.structs.replace(scene.declared, models=models)
    assert kernel(plan(declared, shuffled(scene.observed), NOW)) == kernel(planned(scene))


@laws
@given(scenes())
def test_only_models_that_somebody_waits_for_are_refused_and_for_the_reason_of_their_condition(scene: Scene) -> None:
    decided = planned(scene)
    assert decided.refusals.keys() <= {one.model for one in scene.observed.demands}
    for name, refusal in decided.refusals.items():
        assert (refusal.reason, refusal.message) == (ready(decided, name).reason, ready(decided, name).message)
        assert name not in starts(decided)
        assert refusal.retry_after_s is None or refusal.retry_after_s > 0


@laws
@given(scenes(sound=True))
def test_a_plan_that_is_carried_out_leaves_nothing_to_do(scene: Scene) -> None:
    world, _ = settle(World.of(scene), NOW)
    assert world.plan(NOW).actions == ()


@laws
@given(scenes(sound=True))
def test_following_the_wake_ups_comes_to_rest(scene: Scene) -> None:
    world, now = World.of(scene), NOW
    for _ in range(20):
        world, plans = settle(world, now)
        if plans[-1].wake_at is None:
            return
        assert plans[-1].wake_at > now
        now = plans[-1].wake_at
        world = finish_requests(world, now)
    raise AssertionError("wakes up for ever")


@laws
@given(scenes(sound=True), st.floats(0, 1, exclude_max=True))
def test_nothing_is_missed_by_sleeping_until_the_wake_up(scene: Scene, part: float) -> None:
    world, plans = settle(World.of(scene), NOW)
    until = plans[-1].wake_at if plans[-1].wake_at is not None else NOW + 1e6
    between = NOW + (until - NOW) * part
    assume(between < until)
    assert world.plan(between).actions == ()


@thorough
@given(scenes(sound=True, crowded=True))
def test_a_model_that_is_refused_would_not_have_come_up_by_waiting(scene: Scene) -> None:
    """A hopeless reason refuses requests at once, so nothing that is under way may prove it wrong."""
    refused = {name for name in scene.declared.models if ready(planned(scene), name).reason in RETRY_AFTER_S}
    _, plans = settle(World.of(scene), NOW)
    for decided in plans:
        for name in refused:
            assert ready(decided, name).reason in RETRY_AFTER_S


def test_two_models_asked_for_at_once_take_turns() -> None:
    """The second is not refused for the memory that the first is about to take: it can have it later."""
    declared = declare(first=model(800), second=model(800))
    decided = decide(declared, gpu(), want("first", since=NOW - 2), want("second", since=NOW - 1))
    assert starts(decided).keys() == {"first"}
    assert ready(decided, "second").reason == "WaitingForMemory"


def test_two_models_that_wait_for_one_stop_take_turns() -> None:
    declared = declare(first=model(800), second=model(800))
    leaving = server("gone", model(800), state=STOPPING, use=800)
    decided = decide(declared, gpu(free=200), leaving, want("first", since=NOW - 2), want("second", since=NOW - 1))
    assert [ready(decided, name).reason for name in ("first", "second")] == ["WaitingForMemory"] * 2


@laws
@given(scenes())
def test_every_declared_model_has_exactly_one_condition(scene: Scene) -> None:
    decided = planned(scene)
    assert decided.conditions.keys() == scene.declared.models.keys()
    for name in scene.declared.models:
        assert ready(decided, name).type == "Ready"
        assert ready(decided, name).message


# --- turns, retries, idleness, changes ------------------------------------------------------------------------------


def test_higher_priority_is_started_first() -> None:
    declared = declare(low=model(800), high=model(800, priority=1))
    assert starts(decide(declared, gpu(), want("low", since=NOW - 2), want("high", since=NOW - 1))).keys() == {"high"}


def test_among_equals_whoever_waited_longest_is_started_first() -> None:
    declared = declare(late=model(800), early=model(800))
    assert starts(decide(declared, gpu(), want("late", since=NOW - 1), want("early", since=NOW - 2))).keys() == {
        "early"
    }


def test_demand_comes_before_a_model_that_starts_by_itself() -> None:
    declared = declare(automatic=model(800, auto_start=True), wanted=model(800))
    assert starts(decide(declared, gpu(), want("wanted"))).keys() == {"wanted"}


def test_a_model_that_starts_by_itself_does_so_once() -> None:
    declared = declare(automatic=model(auto_start=True))
    assert starts(decide(declared, gpu())).keys() == {"automatic"}
    again = plan(declared, observe(gpu(), auto_started=["automatic"]), NOW)
    assert again.actions == ()
    assert ready(again, "automatic").reason == "Stopped"


def test_demand_for_a_model_that_is_not_declared_does_nothing() -> None:
    assert decide(declare(), gpu(), want("nobody")) == Plan()


def test_a_failed_model_is_tried_again_when_its_time_has_come() -> None:
    declared = declare(a=model())
    waiting = decide(declared, gpu(), want("a"), failure("a", NOW + 5))
    assert waiting.actions == ()
    assert waiting.wake_at == NOW + 5
    assert starts(decide(declared, gpu(), want("a"), failure("a", NOW + 5), now=NOW + 5)).keys() == {"a"}


def test_a_model_that_was_given_up_is_not_waited_for() -> None:
    decided = decide(declare(a=model()), gpu(), want("a"), failure("a", math.inf))
    assert (decided.actions, decided.wake_at) == ((), None)


def test_an_idle_server_is_stopped_when_its_time_has_come() -> None:
    declared = declare(a=model(idle_timeout=60))
    idle = server("a", declared.models["a"], idle_s=50)
    early = decide(declared, gpu(), idle)
    assert early.actions == ()
    assert early.wake_at == NOW + 10
    late = decide(declared, gpu(), idle, now=NOW + 10)
    assert stops(late, "Idle") == ["a"]
    assert late.actions[0].message == "unused for 60 s"


def test_the_first_of_several_times_wakes() -> None:
    declared = declare(a=model(200, idle_timeout=60), b=model(200, idle_timeout=20))
    seen = [server(name, declared.models[name], idle_s=10) for name in "ab"]
    assert decide(declared, gpu(), *seen).wake_at == NOW + 10


def test_a_busy_or_pinned_or_wanted_server_is_not_stopped_for_being_idle() -> None:
    declared = declare(
        busy=model(idle_timeout=1), pinned=model(idle_timeout=1, pinned=True), wanted=model(idle_timeout=1)
    )
    seen = [
        server(name, declared.models[name], idle_s=99, in_flight=1 if name == "busy" else 0) for name in declared.models
    ]
    decided = decide(declared, gpu(), *seen, want("wanted"))
    assert decided.actions == ()
    assert decided.wake_at == NOW + 1  # the busy one may be through at once, and idle from then on


def test_a_changed_variant_drains_its_server_and_leaves_the_others() -> None:
    declared = declare(changed=model(300), same=model(300))
    changed = server("changed", declared.models["changed"], fingerprint="older", in_flight=1)
    decided = decide(declared, gpu(free=0), changed, server("same", declared.models["same"]))
    assert [action.message for action in decided.actions] == ["variant v was changed"]
    assert isinstance(decided.actions[0], Drain)


def test_a_removed_variant_or_model_drains_its_server() -> None:
    declared = declare(a=model(variant(300, name="new")))
    orphans = server("a", model(300)), server("b", model(300), state=STARTING)
    messages = [action.message for action in decide(declared, gpu(), *orphans).actions]
    assert messages == ["variant v is no longer declared", "the model is no longer declared"]


def test_a_drained_server_is_stopped_and_a_draining_one_is_not() -> None:
    declared = declare(done=model(300), busy=model(300))
    seen = [
        server(name, declared.models[name], state=DRAINING, in_flight=busy) for name, busy in (("done", 0), ("busy", 1))
    ]
    assert stops(decide(declared, gpu(), *seen), "Drained") == ["done"]


def test_a_start_names_its_devices_in_the_order_of_the_requirements() -> None:
    declared = declare(a=model(variant({"cpu": 100, "gpu": 900}, "gpu", "cpu")))
    start = starts(decide(declared, cpu(), gpu(), want("a")))["a"]
    assert start == Start(
        model="a",
        variant="v",
        devices=(GPU0, "cpu"),
        reserved_mb={GPU0: 900, "cpu": 100},
        message="variant v fits on gpu:0, cpu",
    )


def test_a_ready_server_and_no_demand_is_nothing_to_do() -> None:
    declared = declare(a=model())
    decided = decide(declared, gpu(free=500), server("a", declared.models["a"], state=READY))
    assert (decided.actions, decided.wake_at) == ((), None)


def test_two_models_that_do_not_fit_together_come_up_one_after_the_other() -> None:
    declared = declare(a=model(600), b=model(600))
    world, _ = settle(World.seen(declared, observe(gpu(), want("a", NOW - 2), want("b", NOW - 1))), NOW)
    assert [one.model for one in world.observed.servers] == ["a"]
    world, _ = settle(world, NOW + declared.models["a"].min_residency)
    assert Ledger(world.observed.devices, world.observed.servers, {}, 0).free() == {GPU0: 400}
    assert [one.model for one in world.observed.servers] == ["b"]
