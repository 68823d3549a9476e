"""Why a model is, or is not, ready: each reason of its condition, and what the message tells."""

from __future__ import annotations

import pytest

from plugin_sdk import DeviceProcess
from sidecar.core.observed import Device, ExternalServer, Failure, Status
from sidecar.core.planner import RETRY_AFTER_S
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
    external,
    failure,
    gpu,
    model,
    named,
    ready,
    server,
    variant,
    want,
)

A = declare(a=model(500))


# --- at rest --------------------------------------------------------------------------------------------------------


def test_a_cold_model_that_fits_is_stopped_and_says_so() -> None:
    condition = ready(decide(A, gpu()), "a")
    assert (condition.status, condition.reason, condition.message) == (Status.FALSE, "Stopped", "starts on demand")


def test_a_cold_model_that_fits_an_empty_machine_is_stopped_though_it_is_full_now() -> None:
    assert ready(decide(A, gpu(free=0)), "a").reason == "Stopped"


def test_a_cold_model_that_never_fits_says_so_before_anybody_asks() -> None:
    condition = ready(decide(declare(a=model(1500)), gpu()), "a")
    assert condition.reason == "Unplaceable"
    assert (
        condition.message == "variant v needs 1500 MB on gpu: gpu:0 has 1000 of 1000 usable MB free, 500 MB too little"
    )


def test_a_cold_model_without_its_device_says_so_before_anybody_asks() -> None:
    condition = ready(decide(A, cpu()), "a")
    assert (condition.reason, condition.message) == ("DeviceUnavailable", 'variant v: no device "gpu" is online')


# --- with a server --------------------------------------------------------------------------------------------------


def test_a_ready_server_is_serving() -> None:
    condition = ready(decide(A, gpu(free=500), server("a", A.models["a"])), "a")
    assert (condition.status, condition.reason) == (Status.TRUE, "Serving")
    assert condition.message == "variant v on gpu:0"


def test_a_server_on_a_device_that_is_gone_is_named_by_its_id() -> None:
    condition = ready(decide(A, server("a", A.models["a"])), "a")
    assert (condition.reason, condition.message) == ("Serving", f"variant v on {GPU0}")


@pytest.mark.parametrize(("state", "reason"), [(STARTING, "Starting"), (DRAINING, "Draining"), (STOPPING, "Stopping")])
def test_a_server_that_is_not_ready_tells_its_state(state: object, reason: str) -> None:
    seen = server("a", A.models["a"], state=state, in_flight=1 if state is DRAINING else 0)  # type: ignore[arg-type] # parametrize hides the type
    condition = ready(decide(A, gpu(free=500), seen), "a")
    assert (condition.status, condition.reason) == (Status.FALSE, reason)


def test_a_model_that_is_being_started_by_this_plan_is_starting() -> None:
    condition = ready(decide(A, gpu(), want("a")), "a")
    assert (condition.reason, condition.message) == ("Starting", "starting variant v on gpu:0")


def test_a_variant_without_devices_starts_on_no_device() -> None:
    """No manifest passes with one; a plan explains it all the same."""
    nowhere = variant(100).__class__(name="v", command=("serve",))
    assert ready(decide(declare(a=model(nowhere)), want("a")), "a").message == "starting variant v on no device"


def test_a_server_that_this_plan_stops_is_stopping() -> None:
    declared = declare(a=model(500, idle_timeout=10))
    assert (
        ready(decide(declared, gpu(free=500), server("a", declared.models["a"], idle_s=10)), "a").reason == "Stopping"
    )


@pytest.mark.parametrize("state", [STARTING, None])
def test_a_server_that_this_plan_drains_is_draining(state: object) -> None:
    """The reason does not go from Serving over Stopping to Draining and back to Stopping."""
    more = {"state": state} if state else {"in_flight": 1}
    seen = server("a", A.models["a"], fingerprint="older", **more)
    assert ready(decide(A, gpu(free=500), seen), "a").reason == "Draining"


# --- waiting for memory ---------------------------------------------------------------------------------------------


def test_a_model_waits_for_the_stop_that_makes_room() -> None:
    declared = declare(a=model(800), b=model(500))
    condition = ready(
        decide(declared, gpu(free=500), server("b", declared.models["b"], state=STOPPING), want("a")), "a"
    )
    assert (condition.reason, condition.message) == ("WaitingForMemory", "waits until b has stopped")


def test_a_model_waits_for_the_one_that_it_evicts() -> None:
    declared = declare(a=model(800), b=model(500))
    decided = decide(declared, gpu(free=500), server("b", declared.models["b"]), want("a"))
    assert ready(decided, "a").reason == "WaitingForMemory"
    assert ready(decided, "b").reason == "Stopping"


def test_a_model_waits_for_busy_servers_and_names_them() -> None:
    declared = declare(a=model(800), b=model(500))
    condition = ready(decide(declared, gpu(free=500), server("b", declared.models["b"], in_flight=2), want("a")), "a")
    assert condition.reason == "WaitingForMemory"
    assert condition.message == (
        "waits for b (2 in flight), its turn comes in about 30 s; variant v needs 800 MB on gpu: "
        "gpu:0 has 500 of 1000 usable MB free, 300 MB too little (500 MB reserved by b (ready))"
    )


def test_a_model_waits_for_one_that_others_are_waiting_for() -> None:
    declared = declare(a=model(800), b=model(500))
    starting = server("b", declared.models["b"], state=STARTING)
    condition = ready(decide(declared, gpu(), starting, want("a"), want("b")), "a")
    assert condition.message.startswith("waits for b, its turn comes in about 30 s; ")


def test_a_model_waits_for_one_that_nobody_asked_for_while_it_loads() -> None:
    declared = declare(a=model(800), b=model(500))
    condition = ready(decide(declared, gpu(), server("b", declared.models["b"], state=STARTING), want("a")), "a")
    assert condition.reason == "WaitingForMemory"
    assert condition.message.startswith("waits for b, ")


def test_a_model_waits_for_the_one_that_this_plan_starts_before_it() -> None:
    declared = declare(a=model(800), b=model(500, priority=1))
    condition = ready(decide(declared, gpu(), want("a"), want("b")), "a")
    assert condition.message.startswith("waits for its turn, its turn comes in about 30 s; ")


def test_a_model_that_starts_by_itself_has_no_turn() -> None:
    declared = declare(a=model(800, auto_start=True), b=model(500))
    condition = ready(decide(declared, gpu(free=500), server("b", declared.models["b"])), "a")
    assert condition.message.startswith("waits for b; ")


def test_an_overdue_model_does_not_tell_when_its_turn_comes() -> None:
    declared = declare(a=model(800), b=model(500))
    loading = server("b", declared.models["b"], state=STARTING)
    assert ready(decide(declared, gpu(), loading, want("a", since=NOW - 30)), "a").message.startswith("waits for b; ")


def test_a_server_that_leaves_elsewhere_is_not_waited_for() -> None:
    declared = declare(a=model(variant(800, GPU0)), b=model(500), c=model(variant(500, GPU1)))
    leaving = (
        server("b", declared.models["b"], state=STOPPING),
        server("c", declared.models["c"], GPU1, state=STOPPING),
    )
    condition = ready(decide(declared, gpu(free=500), gpu(GPU1, free=0, total=500), *leaving, want("a")), "a")
    assert condition.message == "waits until b has stopped"


# --- hopeless -------------------------------------------------------------------------------------------------------


def test_a_model_larger_than_the_machine_is_unplaceable() -> None:
    condition = ready(decide(declare(a=model(1500)), gpu(), want("a")), "a")
    assert condition.reason == "Unplaceable"


def test_headroom_and_caps_count_against_what_is_usable() -> None:
    declared = declare(headroom_mb=100, a=model(950))
    assert ready(decide(declared, gpu(), want("a")), "a").reason == "Unplaceable"
    capped = declare(devices={"mine": named(400, uuid=GPU0)}, a=model(500))
    condition = ready(decide(capped, gpu(), want("a")), "a")
    assert (condition.reason, condition.message[-54:]) == (
        "Unplaceable",
        "gpu:0 has 400 of 400 usable MB free, 100 MB too little",
    )


def test_memory_held_by_others_is_named_by_pid() -> None:
    foreign = DeviceProcess(4711, 900, "blender")
    condition = ready(decide(A, gpu(free=100, processes=[foreign]), want("a")), "a")
    assert condition.reason == "InsufficientMemory"
    assert condition.message == (
        "variant v needs 500 MB on gpu: gpu:0 has 100 of 1000 usable MB free, 400 MB too little "
        "(900 MB used by others (pid 4711 blender: 900 MB))"
    )


def test_memory_held_by_a_pinned_server_is_not_to_be_waited_for() -> None:
    declared = declare(a=model(800), b=model(500, pinned=True))
    condition = ready(decide(declared, gpu(free=500), server("b", declared.models["b"], in_flight=1), want("a")), "a")
    assert condition.reason == "InsufficientMemory"
    assert "500 MB reserved by b (ready)" in condition.message


def test_a_full_device_never_has_less_than_nothing_free() -> None:
    declared = declare(headroom_mb=200, a=model(500))
    assert "gpu:0 has 0 of 800 usable MB free" in ready(decide(declared, gpu(free=100), want("a")), "a").message


def test_a_device_that_cannot_be_read_makes_its_model_unavailable() -> None:
    condition = ready(decide(A, gpu(problem="driver not loaded"), want("a")), "a")
    assert condition.reason == "DeviceUnavailable"
    assert condition.message == "variant v: gpu:0 cannot be read: driver not loaded"


def test_a_device_whose_reading_is_out_of_date_is_waited_for() -> None:
    decided = decide(A, gpu(stale=True), want("a"))
    condition = ready(decided, "a")
    assert (condition.reason, condition.message) == ("WaitingForReading", "waits until gpu:0 has been read again")
    assert decided.actions == ()


def test_too_few_devices_make_a_model_unavailable() -> None:
    declared = declare(a=model(variant(500, "gpu", "gpu")))
    condition = ready(decide(declared, gpu(), want("a")), "a")
    assert (condition.reason, condition.message) == ("DeviceUnavailable", "variant v: 2 gpu devices are needed")


def test_a_device_that_cannot_be_read_is_named_beside_those_that_are_full() -> None:
    decided = decide(A, gpu(free=100), gpu(GPU1, problem="it hangs"), want("a"))
    condition = ready(decided, "a")
    assert condition.reason == "InsufficientMemory"
    assert (
        "gpu:0 has 100 of 1000 usable MB free, 400 MB too little (900 MB used by others); "
        "gpu:1 cannot be read (it hangs)" in condition.message
    )


def test_the_most_hopeful_variant_gives_the_reason_and_all_are_explained() -> None:
    declared = declare(a=model(variant(500, "tpu", name="tpu"), variant(500, name="gpu")))
    condition = ready(decide(declared, gpu(free=0), want("a")), "a")
    assert condition.reason == "InsufficientMemory"
    assert 'variant tpu: no device "tpu" is online; variant gpu needs 500 MB on gpu' in condition.message


# --- external servers -----------------------------------------------------------------------------------------------


def probe(healthy: bool, message: str = "") -> ExternalServer:
    return ExternalServer(model="a", variant="url", healthy=healthy, message=message)


def test_a_healthy_external_server_is_serving() -> None:
    condition = ready(decide(declare(a=model(external("url"))), probe(True)), "a")
    assert (condition.status, condition.reason) == (Status.TRUE, "Serving")


def test_an_unhealthy_external_server_tells_why() -> None:
    condition = ready(decide(declare(a=model(external("url"))), probe(False, "connection refused"), want("a")), "a")
    assert (condition.reason, condition.message) == ("ExternalUnhealthy", "url: connection refused")


def test_an_external_server_that_was_not_probed_yet_is_not_ready() -> None:
    condition = ready(decide(declare(a=model(external("url"))), want("a")), "a")
    assert (condition.reason, condition.message) == ("NotProbed", "not probed yet")


def test_a_managed_variant_stands_in_for_an_unhealthy_external_one() -> None:
    declared = declare(a=model(external("url"), variant(500)))
    assert ready(decide(declared, gpu(), probe(False), want("a")), "a").reason == "Starting"
    assert ready(decide(declared, gpu(), probe(False)), "a").reason == "Stopped"
    assert ready(decide(declared, gpu(), probe(True), want("a")), "a").reason == "Serving"


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [(want("a"),), ()])
def test_a_model_in_backoff_tells_its_failure(seen: tuple[Device | Failure, ...]) -> None:
    condition = ready(decide(A, gpu(), failure("a", NOW + 5, "LoadTimeout"), *seen), "a")
    assert (condition.status, condition.reason, condition.message) == (Status.FALSE, "LoadTimeout", "exit code 1")


def test_a_failure_is_told_until_somebody_asks_again() -> None:
    past = failure("a", NOW - 5)
    assert ready(decide(A, gpu(), past), "a").reason == "Exited"
    assert ready(decide(A, gpu(), past, want("a")), "a").reason == "Starting"


def test_a_failure_that_may_be_retried_does_not_hide_a_lack_of_memory() -> None:
    assert ready(decide(A, gpu(free=0), failure("a", NOW), want("a")), "a").reason == "InsufficientMemory"


def test_only_reasons_that_waiting_does_not_cure_are_hopeless() -> None:
    assert frozenset({"Unplaceable", "InsufficientMemory", "DeviceUnavailable", "ExternalUnhealthy"}) == frozenset(
        RETRY_AFTER_S
    )
