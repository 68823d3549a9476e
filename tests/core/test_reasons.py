"""What a variant lacks, who holds it, and what would help."""

from __future__ import annotations

import math

import msgspec
import pytest

from plugin_sdk import DeviceProcess
from sidecar.core.ledger import Ledger
from sidecar.core.manifest import Model
from sidecar.core.observed import Device, Measured, Server
from sidecar.core.placement import Inventory
from sidecar.core.reasons import Reasons, failed, listed_models, too_low
from sidecar.core.room import Room
from tests.core.build import (
    GPU1,
    NOW,
    STARTING,
    STOPPING,
    cpu,
    decide,
    declare,
    failure,
    gpu,
    model,
    server,
    variant,
    want,
)

M = model(400)


def reasons(*seen: Device | Server, models: dict[str, Model] | None = None) -> Reasons:
    devices = tuple(one for one in seen if isinstance(one, Device))
    inventory = Inventory(devices, {})
    servers = [one for one in seen if isinstance(one, Server)]
    return Reasons(inventory, Room(Ledger(devices, servers, {}, 0), inventory), models or {})


# --- what would help ------------------------------------------------------------------------------------------------


def test_nothing_need_be_done_for_a_variant_that_fits() -> None:
    assert reasons(gpu()).remedy(variant(500)) == ""


def test_what_is_lacking_is_to_be_freed_and_who_holds_it_is_named() -> None:
    foreign = DeviceProcess(4242, 700, "python")
    told = reasons(gpu(free=300, processes=[foreign])).remedy(variant(500))
    assert told == "free 200 MB on gpu:0; held by 700 MB used by others (pid 4242 python: 700 MB)"


def test_the_device_that_lacks_least_is_to_be_freed() -> None:
    assert reasons(gpu(free=100), gpu(GPU1, free=450)).remedy(variant(500)).startswith("free 50 MB on gpu:1; ")


def test_large_amounts_are_told_in_thousands() -> None:
    told = reasons(gpu(free=0, total=9000)).remedy(variant(2100))
    assert told == "free 2,100 MB on gpu:0; held by 9000 MB used by others"


def test_an_overdrawn_device_lacks_no_more_than_what_is_needed() -> None:
    seen = server("a", M), server("b", M), server("c", M)
    assert reasons(gpu(free=0), *seen).remedy(variant(500)).startswith("free 500 MB on gpu:0; held by 400 MB reserved")


def test_where_nobody_is_known_to_hold_it_nobody_is_named() -> None:
    busy = msgspec.structs.replace(gpu().status, free_mb=100, used_mb=0)
    assert reasons(msgspec.structs.replace(gpu(), status=busy)).remedy(variant(500)) == "free 400 MB on gpu:0"


def test_the_requirement_that_lacks_memory_is_the_one_that_is_told() -> None:
    told = reasons(gpu(), cpu(100)).remedy(variant(500, "gpu", "cpu"))
    assert told.startswith("free 400 MB on cpu")


def test_a_device_that_is_missing_is_to_be_brought_online() -> None:
    assert reasons(gpu()).remedy(variant(500, "tpu", "gpu", "tpu")) == "bring gpu, tpu online"


def test_a_variant_that_is_too_large_for_the_machine_is_to_ask_for_less() -> None:
    told = reasons(gpu(total=1000), gpu(GPU1, total=8000, free=8000)).remedy(variant(9000))
    assert told == "lower memory_mb (the largest device has 8,000 usable MB), or require another device"


def test_one_device_does_not_serve_two_needs() -> None:
    told = reasons(gpu(free=500), gpu(GPU1, free=100)).remedy(variant(400, "gpu", "gpu"))
    assert told.startswith("free 300 MB on gpu:1")


def test_one_memory_does_not_serve_two_needs() -> None:
    shares = gpu(index=0, shares="cpu", free=700)
    told = reasons(cpu(700), shares).remedy(variant(400, "gpu", "cpu"))
    assert told == "free 100 MB on cpu; held by 300 MB used by others"


def test_a_device_whose_reading_is_out_of_date_is_to_be_waited_for() -> None:
    assert reasons(gpu(stale=True)).remedy(variant(400)) == "wait until gpu has been read again"


def test_a_stop_under_way_is_no_lack() -> None:
    assert reasons(gpu(free=600), server("a", M, state=STOPPING, use=400)).remedy(variant(900)) == ""


# --- what it lacks --------------------------------------------------------------------------------------------------


def test_a_class_of_many_devices_is_not_told_one_by_one() -> None:
    told = reasons(*(gpu(f"GPU-{letter}", free=0) for letter in "abcdef")).shortage(variant(500))
    assert told.count("usable MB free") == 4
    assert told.endswith("; and 2 more")


def test_a_device_that_has_to_be_read_again_says_so() -> None:
    told = reasons(gpu(free=0), gpu(GPU1, stale=True)).shortage(variant(500))
    assert told.endswith("; gpu:1 has to be read again")


def test_a_device_whose_shared_memory_cannot_be_read_says_so() -> None:
    blind = msgspec.structs.replace(cpu(), status=msgspec.structs.replace(cpu().status, problem="it hangs"))
    shares = gpu(index=0, shares="cpu")
    assert reasons(blind, shares).shortage(variant(500)) == "variant v: gpu:0 cannot be read: it hangs"
    assert "gpu:0 cannot be read (it hangs)" in reasons(blind, shares, gpu(GPU1, free=0)).shortage(variant(500))


# --- whether waiting is of use --------------------------------------------------------------------------------------


def test_a_server_that_could_be_moved_gives_hope_and_a_pinned_one_does_not() -> None:
    seen = gpu(free=600), server("a", M, use=400)
    assert reasons(*seen, models={"a": M}).hopeless([variant(900)]) == ""
    assert reasons(*seen, models={"a": model(400, pinned=True)}).hopeless([variant(900)]) == "InsufficientMemory"


def test_what_loads_and_cannot_be_measured_gives_hope_until_it_is_ready() -> None:
    loads = server("a", M, state=STARTING)
    assert reasons(gpu(free=600), loads).hopeless([variant(900)]) == ""
    assert reasons(gpu(free=600), loads).hopeless([variant(1001)]) == "Unplaceable"
    assert reasons(gpu(free=600), gpu(GPU1), loads).hopeless([variant(900, "tpu")]) == "DeviceUnavailable"


def test_memory_that_has_to_be_read_again_is_waited_for_on_all_devices_that_share_it() -> None:
    stale = msgspec.structs.replace(cpu(), stale=True)
    found = reasons(stale, gpu(shares="cpu")).stale([variant(500)])
    assert found == stale
    assert reasons(stale, gpu()).stale([variant(500)]) is None


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mb", "seen", "reason", "retry_after_s"),
    [
        (1500, gpu(), "Unplaceable", None),
        (500, gpu(free=100), "InsufficientMemory", 30),
        (500, gpu(problem="it hangs"), "DeviceUnavailable", 30),
    ],
)
def test_a_refusal_tells_why_and_when_asking_again_may_be_worth_it(
    mb: int, seen: Device, reason: str, retry_after_s: float | None
) -> None:
    refusal = decide(declare(a=model(mb)), seen, want("a")).refusals["a"]
    assert (refusal.reason, refusal.retry_after_s) == (reason, retry_after_s)


# --- words ----------------------------------------------------------------------------------------------------------


def test_a_failure_is_told_with_the_time_of_the_next_try() -> None:
    assert failed(failure("a", NOW + 12, "LoadTimeout"), NOW) == "variant v failed (LoadTimeout), tried again in 12 s"
    assert failed(failure("a", math.inf), NOW) == "variant v failed (Exited), given up"


def test_models_are_listed_with_what_is_in_flight() -> None:
    assert listed_models([server("a", M, in_flight=2), server("b", M)]) == "a (2 in flight), b"


def test_what_a_variant_takes_is_told_where_it_is_more_than_declared() -> None:
    seen = Measured(model="a", variant="v", fingerprint="", declared_mb={"gpu": 500, "cpu": 500, "npu": 500})
    assert too_low(seen) == ""
    over = msgspec.structs.replace(seen, peak_mb={"gpu": 700, "cpu": 500})
    assert too_low(over).startswith("variant v declares 500 MB on gpu, has taken 700 MB")
    assert "cpu" not in too_low(over)
