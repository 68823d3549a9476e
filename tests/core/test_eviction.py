"""Who may be evicted, what that costs, and what it frees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin_sdk import DeviceStatus
from sidecar.core.cover import Limit, Problem, cheapest
from sidecar.core.eviction import limits, priced
from sidecar.core.ledger import Ledger, less
from sidecar.core.observed import Device, Server
from tests.core.build import GPU0, GPU1, NOW, cpu, gpu, laws, model, server
from tests.core.strategies import Scene, scenes

M = model(500)


# --- what a set costs ------------------------------------------------------------------------------------------------

MODELS = {"low": model(1), "other": model(1), "mid": model(1, priority=5), "top": model(1, priority=9), "big": model(9)}


def cost(chosen: Iterable[Server], servers: Sequence[Server], load_s: Mapping[str, float] | None = None) -> int:
    ids = {one.id for one in chosen}
    return sum(one.cost for one in priced(servers, MODELS, NOW, load_s or {}) if one.server.id in ids)


def some(name: str, count: int, idle_s: float = 0, in_flight: int = 0) -> list[Server]:
    found = [server(name, MODELS.get(name, M), idle_s=idle_s, in_flight=in_flight) for _ in range(count)]
    return [msgspec.structs.replace(one, id=f"{name}-{idle_s}-{number}") for number, one in enumerate(found)]


@pytest.mark.parametrize(
    ("cheaper", "dearer"),
    [
        (some("mid", 60), some("top", 1, idle_s=999)),
        (some("low", 60), some("mid", 1, idle_s=999)),
        (some("gone", 60), some("low", 1, idle_s=999)),
        (some("top", 1) + some("low", 40), some("top", 1) + some("mid", 1)),
        (some("other", 2, idle_s=999), some("low", 1)),
        (some("low", 2, idle_s=66), some("other", 1, idle_s=66) + some("other", 1, idle_s=65)),  # 2**16 ms lie between
        (some("low", 1, idle_s=525), some("other", 1, idle_s=524)),
        (some("low", 1, idle_s=35), some("big", 1, idle_s=59)),
        (some("low", 1, idle_s=300), some("low", 1, idle_s=900, in_flight=1)),
        (some("low", 1, idle_s=0.4), some("low", 1, idle_s=0.01)),
        (some("low", 1, idle_s=270), some("big", 1, idle_s=520)),
    ],
)
def test_sets_are_compared_by_priority_then_idleness_then_memory(cheaper: list[Server], dearer: list[Server]) -> None:
    servers = list({one.id: one for one in cheaper + dearer}.values())
    assert cost(cheaper, servers) < cost(dearer, servers)


def test_what_loads_fast_goes_before_what_is_small_among_those_idle_for_about_as_long() -> None:
    fast, slow = some("big", 1, idle_s=70), some("low", 1, idle_s=110)
    load_s = {fast[0].id: 2.0, slow[0].id: 2.5}
    assert cost(fast, fast + slow, load_s) < cost(slow, fast + slow, load_s)
    recent = some("other", 1, idle_s=50)
    assert cost(slow, recent + slow, load_s) < cost(recent, recent + slow, load_s)


def test_a_clock_that_went_back_makes_nobody_idle() -> None:
    assert cost(some("low", 1, idle_s=-500), some("low", 1, idle_s=-500)) > 0


def test_digits_do_not_carry_however_many_candidates_there_are() -> None:
    many, one = some("low", 500), some("mid", 1)
    assert cost(many, many + one) < cost(one, many + one)


def test_nothing_is_priced_at_nothing() -> None:
    assert priced([], MODELS, NOW, {}) == ()
    assert all(one.cost > 0 for one in priced(some("gone", 2, idle_s=10**6), {}, NOW, {}))


# --- what it frees ---------------------------------------------------------------------------------------------------


def held(found: Iterable[Limit], device: str, gone: Iterable[Server]) -> int | None:
    """What is free on a device by its limits."""
    ids = [one.id for one in gone]
    return min(
        (one.free_mb + sum(one.frees_mb.get(key, 0) for key in ids) for one in found if device in one.devices),
        default=None,
    )


@laws
@given(scenes(), st.sampled_from(("", "GPU-a", "cpu")), st.integers(0, 31))
def test_limits_say_what_the_ledger_says(scene: Scene, shared: str, picked: int) -> None:
    devices = [
        msgspec.structs.replace(one, status=msgspec.structs.replace(one.status, shares=shared))
        for one in scene.observed.devices
    ]
    ledger = Ledger(devices, scene.observed.servers, {GPU1: 300}, 50)
    leaving, staying = ledger.servers[:1], ledger.servers[1:]
    gone = [one for place, one in enumerate(staying) if picked >> place & 1]
    taken = dict.fromkeys(ledger.devices, 70)
    found = limits(ledger, staying, leaving, taken)
    free = less(ledger.free([*leaving, *gone]), taken)
    assert {device.id: held(found, device.id, gone) for device in devices if device.id in free} == free
    assert {device for one in found for device in one.devices} == free.keys()


def test_two_needs_in_one_memory_count_what_goes_from_either_device() -> None:
    lent = Device(device_class="igpu", status=DeviceStatus(id="igpu", total_mb=1000, free_mb=200, shares="cpu"))
    old, older = server("old", model(400), "igpu", use=400, idle_s=99), server("older", model(400), "cpu", use=400)
    ledger = Ledger([cpu(200), lent], [old, older], {}, 0)
    models = {"old": model(400), "older": model(400, priority=1)}

    def go(*needs: tuple[str, int]) -> tuple[Server, ...] | None:
        wanted = tuple(((device,), mb) for device, mb in needs)
        return cheapest(Problem(wanted, limits(ledger, [old, older]), priced([old, older], models, NOW, {})))

    assert go(("cpu", 200)) == ()
    assert go(("cpu", 600)) == (old,)
    assert go(("cpu", 300), ("igpu", 300)) == (old,)
    assert go(("cpu", 500), ("igpu", 500)) == (old, older)
    assert go(("cpu", 500), ("igpu", 501)) is None


def test_a_stale_device_has_no_limits() -> None:
    ledger = Ledger([gpu(GPU0, stale=True), gpu(GPU1)], [], {}, 0)
    assert {device for one in limits(ledger, []) for device in one.devices} == {GPU1}


def test_claims_of_others_and_those_who_leave_anyhow_are_counted() -> None:
    leaves = server("leaves", model(300), use=300)
    ledger = Ledger([gpu(GPU0, 700)], [leaves], {}, 0)
    assert held(limits(ledger, [], [leaves], {GPU0: 100}), GPU0, []) == 900
