"""What would come of other manifests, on devices and servers that stand still."""

from __future__ import annotations

from typing import Any
from unittest import mock

import msgspec
from hypothesis import given, settings

from sidecar.core import whatif
from sidecar.core.ledger import Ledger
from sidecar.core.manifest import Declaration
from sidecar.core.observed import LEAVING, Observed, ServerState
from sidecar.core.planner import plan
from sidecar.core.whatif import as_declared, asked, at_ease, carry_over, settle
from tests.core.build import GPU0, NOW, cpu, declare, gpu, laws, model, observe, server, variant, want
from tests.core.strategies import Scene, scenes


def merged(before: Declaration, after: Declaration, observed: Observed) -> whatif.Settled:
    """How things are once `after` has come into force where `before` was at rest."""
    return settle(after, carry_over(settle(before, observed, NOW).observed, before, after), NOW)


def told(settled: whatif.Settled) -> list[str]:
    return [f"{type(action).__name__} {action.model}" for action in settled.actions]


def up(settled: whatif.Settled) -> dict[str, dict[str, int]]:
    return {one.model: one.reserved_mb for one in settled.observed.servers}


def test_what_starts_by_itself_comes_up_and_takes_its_memory() -> None:
    settled = settle(declare(a=model(600, auto_start=True), b=model(600, auto_start=True)), observe(gpu()), NOW)
    assert (told(settled), up(settled), settled.at_rest) == (["Start a"], {"a": {GPU0: 600}}, True)
    assert settled.observed.devices[0].status.free_mb == 400
    assert settled.conditions["b"][0].reason == "WaitingForMemory"


def test_a_changed_model_restarts_and_one_that_no_longer_fits_does_not_come_back() -> None:
    a, b = model(400), model(500)
    seen = observe(gpu(free=100), server("a", a, use=400), server("b", b, use=500))
    before = declare(a=a, b=b)
    assert told(merged(before, before, seen)) == []
    larger = merged(before, declare(a=model(500), b=b), seen)
    assert (told(larger), up(larger)) == (["Drain a", "Start a"], {"b": {GPU0: 500}, "a": {GPU0: 500}})
    too_large = merged(before, declare(a=model(600), b=b), seen)
    assert (told(too_large), up(too_large)) == (["Drain a"], {"b": {GPU0: 500}})
    assert too_large.observed.devices[0].status.free_mb == 500


def test_a_renamed_model_keeps_its_server_and_a_removed_one_loses_it() -> None:
    a, b = model(400), model(500)
    seen = observe(gpu(free=100), server("a", a, use=400), server("b", b, use=500))
    settled = merged(declare(a=a, b=b), declare(new=a), seen)
    assert (told(settled), up(settled)) == (["Drain b"], {"new": {GPU0: 400}})


def test_memory_that_two_devices_share_is_freed_and_taken_on_both() -> None:
    a = model(variant(400, "gpu"), auto_start=True)
    seen = observe(gpu(shares="cpu"), cpu())
    settled = settle(declare(a=a), seen, NOW)
    assert [device.status.free_mb for device in settled.observed.devices] == [600, 600]
    gone = merged(declare(a=a), declare(), seen)
    assert [device.status.free_mb for device in gone.observed.devices] == [1000, 1000]


def test_servers_of_another_machine_count_by_name_and_by_what_they_reserve() -> None:
    a, b = model(400), model(500)
    elsewhere = [server("a", a, fingerprint="there"), server("b", b, fingerprint="there"), server("c", a)]
    same = as_declared(elsewhere, declare(a=a, b=model(501)))
    assert [one.fingerprint for one in same] == [a.variants[0].fingerprint(), "", ""]


def test_the_moment_passes() -> None:
    a, b = model(400), model(500)
    seen = observe(
        gpu(free=100, stale=True),
        server("a", a, use=400, in_flight=3, ready_s=1, state=ServerState.STARTING),
        server("b", b, use=500, state=LEAVING[0]),
        want("b"),
    )
    calm = at_ease(seen, NOW)
    (left,) = calm.servers
    assert (left.model, left.state, left.in_flight) == ("a", ServerState.READY, 0)
    assert (calm.devices[0].status.free_mb, calm.devices[0].stale, calm.demands) == (600, False, ())


def test_whoever_asks_is_told_what_comes_of_it() -> None:
    a = model(600)
    declared = declare(a=a, b=model(600), c=model(300), d=model(2000))
    seen = at_ease(observe(gpu(free=400), server("a", a, use=600)), NOW)

    def verdict(name: str, **more: Any) -> tuple[str, str, tuple[str, ...]]:
        found = asked(declared, msgspec.structs.replace(seen, **more), name, NOW)
        return found.verdict, found.variant, found.victims

    assert verdict("a") == ("serves", "", ())
    assert verdict("b") == ("evicts", "", ("a",))
    assert verdict("c") == ("starts", "v", ())
    assert verdict("d") == ("refused", "", ())
    assert verdict("b", pinned=frozenset("a")) == ("refused", "", ())
    assert asked(declared, seen, "d", NOW).differs(asked(declared, seen, "c", NOW))
    assert not asked(declared, seen, "d", NOW).differs(whatif.Outcome(verdict="refused", why="told otherwise"))


@settings(laws, max_examples=100)
@given(scenes())
def test_models_that_nobody_uses_make_no_difference_to_who_asks(scene: Scene) -> None:
    told = {name: asked(scene.declared, scene.observed, name, NOW) for name in scene.declared.models}
    with mock.patch.object(whatif, "concerned", lambda declared, _: declared):
        assert {name: asked(scene.declared, scene.observed, name, NOW) for name in scene.declared.models} == told


def test_of_many_models_those_alone_are_looked_at_that_matter() -> None:
    a = model(600)
    declared = declare(a=a, b=a, c=a, d=model(600, auto_start=True), e=a)
    seen = msgspec.structs.replace(observe(gpu(), server("a", a), want("b")), moving=frozenset("c"))
    assert set(whatif.concerned(declared, seen).models) == set("abcd")


@settings(laws, max_examples=40)
@given(scenes(measured=True, sound=True), scenes(sound=True))
def test_whatever_comes_into_force_things_come_to_rest_and_fit(scene: Scene, other: Scene) -> None:
    after = msgspec.structs.replace(scene.declared, models=other.declared.models)
    for declared in (scene.declared, after):
        settled = merged(scene.declared, declared, at_ease(scene.observed, NOW))
        assert settled.at_rest
        assert plan(declared, settled.observed, NOW).actions == ()
        assert all(one.model in declared.models for one in settled.observed.servers)
        before = {one.id for one in scene.observed.servers}
        room = Ledger(settled.observed.devices, settled.observed.servers, {}, 0)
        for device in settled.observed.devices:
            started = [one for one in settled.observed.servers if one.id not in before]
            assert (
                device.unknown
                or not started
                or sum(one.reserved_mb.get(device.id, 0) for one in settled.observed.servers)
                <= max(room.usable[device.id], 0)
            )
