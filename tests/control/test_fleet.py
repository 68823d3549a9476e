"""What the fleet remembers of servers that went wrong, and how it lets them change state."""

from __future__ import annotations

import math

import pytest

from sidecar.control.clock import Clock
from sidecar.control.events import Events
from sidecar.control.fleet import Fleet, Memories
from sidecar.control.leases import RefusedError
from sidecar.control.live import LiveServer
from sidecar.control.measurements import Measurements
from sidecar.core.backoff import ATTEMPTS
from sidecar.core.lifecycle import Cause, TransitionError
from sidecar.core.manifest import Variant
from sidecar.core.observed import ServerState
from sidecar.core.plan import Start

EXIT = "the server exited with code 1 while it was serving"
TOLD = f"{EXIT}; the last lines of its output:\nboom"


@pytest.fixture
async def fleet() -> Fleet:
    clock = Clock()
    memories = Memories(events=Events(clock), measurements=Measurements(None), random=lambda: 0.5)
    return Fleet(clock, memories)


def started(fleet: Fleet, variant: str = "default") -> LiveServer:
    """A server that has just been placed."""
    start = Start(model="m", variant=variant, devices=("cpu",), reserved_mb={"cpu": 1})
    server = LiveServer(f"m-{fleet.events.last}", start, Variant(name=variant), fleet.clock)
    fleet.add(server, "it fits")
    return server


def crash(fleet: Fleet, variant: str = "default") -> LiveServer:
    """A server that got ready and died at once."""
    server = started(fleet, variant)
    fleet.move(server, Cause.BECAME_READY)
    fleet.failed(server, "Exited", EXIT)
    fleet.force_stop(server, "Exited", cause=Cause.EXITED)
    fleet.gone(server)
    return server


def recorded(fleet: Fleet) -> list[str]:
    return [event.type for event in fleet.events.since(0)]


async def test_the_first_crash_is_forgiven_and_the_next_ones_cost_more_each_time(fleet: Fleet) -> None:
    delays = []
    for _ in range(5):
        crash(fleet)
        failure = fleet.failures["m", "default"]
        delays.append(round(failure.retry_at - failure.at))
    assert delays == [0, 2, 4, 8, 16]


async def test_a_crash_loop_ends_and_goes_on_saying_so_when_its_last_words_are_known(fleet: Fleet) -> None:
    for _ in range(ATTEMPTS):
        server = crash(fleet)
    fleet.explain(server, TOLD)
    failure = fleet.failures["m", "default"]
    assert failure.retry_at == math.inf
    assert (
        failure.message
        == f"given up after {ATTEMPTS} attempts, until its manifest changes or somebody starts it: {TOLD}"
    )
    assert fleet.state_of("m") is ServerState.FAILED
    assert recorded(fleet)[-1] == "Failed"
    with pytest.raises(TransitionError):
        started(fleet)
    fleet.forgive("m")
    assert recorded(fleet)[-1] == "Reset"
    assert started(fleet).state is ServerState.STARTING


async def test_the_failures_of_one_variant_say_nothing_of_another(fleet: Fleet) -> None:
    for _ in range(3):
        crash(fleet, "one")
    crash(fleet, "two")
    assert [failure.count for failure in fleet.failures.values()] == [3, 1]
    fleet.forgive("m", "one")
    assert [failure.variant for failure in fleet.failures.values()] == ["two"]


async def test_a_variant_that_was_given_up_does_not_keep_another_from_being_started(fleet: Fleet) -> None:
    for _ in range(ATTEMPTS):
        crash(fleet, "one")
    assert started(fleet, "two").state is ServerState.STARTING


async def test_last_words_are_not_put_to_the_failure_of_another_attempt(fleet: Fleet) -> None:
    first, second = crash(fleet), crash(fleet)
    fleet.explain(first, TOLD)
    assert fleet.failures["m", "default"].message == EXIT
    assert first.told.is_set()
    fleet.explain(second, TOLD)
    assert fleet.failures["m", "default"].message == TOLD


async def test_how_a_server_ends_that_was_told_to_go_is_held_against_nobody(fleet: Fleet) -> None:
    server = started(fleet)
    fleet.drain(server, "ManifestChanged")
    fleet.failed(server, "LoadTimeout", "too late")
    assert fleet.failures == {}


async def test_trouble_of_the_machine_never_ends_a_model_for_good(fleet: Fleet) -> None:
    for _ in range(2 * ATTEMPTS):
        server = started(fleet)
        fleet.failed(server, "StateUnwritable", "no space left on device")
        fleet.force_stop(server, "Failed", cause=Cause.FAILED)
        fleet.gone(server)
    assert fleet.state_of("m") is ServerState.BACKOFF


async def test_a_changed_server_that_was_up_is_wanted_again_for_a_while(fleet: Fleet) -> None:
    server = started(fleet)
    fleet.move(server, Cause.BECAME_READY)
    fleet.drain(server, "ManifestChanged", "variant default was changed")
    fleet.force_stop(server, "Drained")
    fleet.gone(server)
    assert fleet.observed(()).moving == {"m"}
    fleet.moving["m"] = 0.0
    assert fleet.observed(()).moving == frozenset()


async def test_whoever_comes_back_in_time_goes_on_waiting(fleet: Fleet) -> None:
    """A client with a short timeout of its own gets its turn, too."""
    first = fleet.wait("m", patience_s=60)
    since = fleet.waiting["m"].since
    fleet.give_up("m", first)
    assert "m" not in fleet.waiting
    fleet.wait("m", patience_s=60)
    assert fleet.waiting["m"].since == since
    fleet.refuse("m", RefusedError("stopped", "no", None))
    fleet.wait("m", patience_s=60)
    assert fleet.waiting["m"].since > since  # who was answered begins anew


async def test_a_life_is_recorded_step_by_step(fleet: Fleet) -> None:
    server = started(fleet)
    fleet.move(server, Cause.BECAME_READY)
    fleet.drain(server, "ManifestChanged", "variant default was changed")
    fleet.drain(server, "ManifestChanged", "variant default was changed")  # twice is once
    assert fleet.try_stop(server, "Drained")
    fleet.gone(server)
    assert recorded(fleet) == ["Started", "BecameReady", "Draining", "Stopping", "Stopped"]
    assert fleet.events.since(0)[2].message == "variant default was changed"
    assert fleet.server_of("m") is None
    assert fleet.state_of("m") is ServerState.STOPPED


async def test_an_eviction_is_told_as_one(fleet: Fleet) -> None:
    server = started(fleet)
    fleet.move(server, Cause.BECAME_READY)
    assert fleet.try_stop(server, "Evicted", "makes room for other")
    assert recorded(fleet)[-1] == "Evicted"


async def test_a_server_with_a_request_in_flight_is_not_stopped(fleet: Fleet) -> None:
    server = started(fleet)
    fleet.move(server, Cause.BECAME_READY)
    lease = fleet.admit(server, cold=False)
    assert not fleet.try_stop(server, "Idle")
    assert server.state is ServerState.READY
    lease.release()
    lease.release()  # twice is once
    assert fleet.try_stop(server, "Idle")


async def test_no_more_than_max_queue_wait(fleet: Fleet) -> None:
    futures = [fleet.wait("m", 2) for _ in range(2)]
    with pytest.raises(RefusedError) as refused:
        fleet.wait("m", 2)
    assert refused.value.code == "queue_full"
    fleet.give_up("m", futures[0])
    assert not fleet.wait("m", 2).done()
    with pytest.raises(RefusedError):
        fleet.wait("other", 0)
    assert "other" not in fleet.waiting  # nobody waits for it, so it is not wanted


async def test_a_renamed_model_keeps_its_server(fleet: Fleet) -> None:
    server = started(fleet)
    fleet.rename(server, "n")
    assert fleet.server_of("m") is None
    assert fleet.server_of("n") is server
    assert server.record().model == "n"
