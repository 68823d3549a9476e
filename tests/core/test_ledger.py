"""What is free, by the lower of two readings, and who holds the rest."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from plugin_sdk import DeviceProcess
from sidecar.core.ledger import Ledger, less, lower
from sidecar.core.observed import Device, Server, ServerState
from tests.core.build import DRAINING, GPU0, GPU1, STARTING, STOPPING, cpu, gpu, model, server, variant

M = model(400)


def ledger(*seen: Device | Server, caps: Mapping[str, int] | None = None, headroom_mb: int = 0) -> Ledger:
    devices = [one for one in seen if isinstance(one, Device)]
    return Ledger(devices, [one for one in seen if isinstance(one, Server)], caps or {}, headroom_mb)


def test_an_empty_device_is_free_but_for_the_headroom() -> None:
    assert ledger(gpu(), cpu(600), headroom_mb=50).free() == {GPU0: 950, "cpu": 550}


def test_a_device_that_cannot_be_read_has_no_entry() -> None:
    assert ledger(gpu(), gpu(GPU1, problem="it hangs")).free() == {GPU0: 1000}


def test_a_device_whose_reading_is_out_of_date_has_none_free_but_is_known() -> None:
    book = ledger(gpu(), gpu(GPU1, stale=True))
    assert book.free() == {GPU0: 1000}
    assert book.usable == {GPU0: 1000, GPU1: 1000}


def test_live_memory_is_the_lower_reading_where_others_hold_some() -> None:
    assert ledger(gpu(free=300), headroom_mb=50).free() == {GPU0: 250}


def test_the_reservation_is_the_lower_reading_where_a_server_takes_less_than_declared() -> None:
    assert ledger(gpu(free=900), server("a", M, use=100)).free() == {GPU0: 600}


def test_use_above_the_declaration_is_charged() -> None:
    assert ledger(gpu(free=1000), server("a", M, use=700)).free() == {GPU0: 300}


def test_use_on_a_device_that_was_not_reserved_is_charged() -> None:
    assert ledger(gpu(), gpu(GPU1), server("a", M, use={GPU0: 400, GPU1: 50})).free() == {GPU0: 600, GPU1: 950}


def test_a_cap_narrows_what_is_placed_not_what_others_use() -> None:
    assert ledger(gpu(free=700), caps={GPU0: 500}, headroom_mb=100).free() == {GPU0: 500}
    assert ledger(gpu(free=550), caps={GPU0: 500}, headroom_mb=100).free() == {GPU0: 450}


def test_a_cap_above_the_device_does_not_widen_it() -> None:
    assert ledger(gpu(), caps={GPU0: 5000}, headroom_mb=100).free() == {GPU0: 900}


def test_what_a_starting_server_has_yet_to_allocate_is_not_free() -> None:
    foreign = 300
    starting = server("a", M, state=STARTING, use=100)
    assert ledger(gpu(free=1000 - foreign - 100), starting).free() == {GPU0: 1000 - foreign - 400}


def test_a_starting_server_that_took_more_than_declared_has_nothing_left_to_allocate() -> None:
    assert ledger(gpu(free=500), server("a", M, state=STARTING, use=500)).free() == {GPU0: 500}


@pytest.mark.parametrize("state", list(ServerState))
def test_a_server_holds_its_reservation_in_every_state(state: ServerState) -> None:
    assert ledger(gpu(), server("a", M, state=state, use=400)).free() == {GPU0: 600}


@pytest.mark.parametrize("state", list(ServerState))
def test_a_measured_server_gives_back_what_it_takes_when_it_is_gone(state: ServerState) -> None:
    foreign, seen = 500, server("a", M, state=state, use=250)
    book = ledger(gpu(free=1000 - foreign - 250), seen)
    assert book.free([seen]) == {GPU0: 1000 - foreign}


def test_a_ready_server_that_cannot_be_measured_gives_back_what_it_declared() -> None:
    foreign, seen = 500, server("a", M)
    assert ledger(gpu(free=1000 - foreign - 400), seen).free([seen]) == {GPU0: 1000 - foreign}


def test_a_loading_server_that_was_not_measured_is_not_known_to_give_anything_back() -> None:
    """It may have taken nothing yet: counted on, its memory would be counted twice."""
    foreign, seen = 500, server("a", M, state=STARTING)
    assert ledger(gpu(free=1000 - foreign), seen).free([seen]) == {GPU0: 1000 - foreign}


def test_a_device_smaller_than_the_headroom_has_nothing_usable() -> None:
    assert ledger(gpu(total=100, free=100), headroom_mb=256).usable == {GPU0: 0}


def test_claims_and_lower_readings() -> None:
    assert less({"a": 5, "b": 5}, {"a": 2, "c": 9}, {"a": 1}) == {"a": 2, "b": 5}
    assert lower({"a": 5, "b": 1, "c": 1}, {"a": 3, "b": 2}) == {"a": 3, "b": 1}


# --- who holds it ---------------------------------------------------------------------------------------------------


def test_nobody_holds_an_empty_device() -> None:
    assert ledger(gpu()).holders(GPU0) == ""


def test_our_servers_are_named_by_model_and_state() -> None:
    seen = server("a", M, use=400), server("b", M, state=DRAINING, use=450)
    told = ledger(gpu(free=150), *seen).holders(GPU0)
    assert told == "400 MB reserved by a (ready), 450 MB reserved by b (draining)"


def test_others_are_named_by_pid_and_at_most_five_of_them() -> None:
    crowd = [DeviceProcess(pid, 10 * pid, "") for pid in range(1, 8)]
    told = ledger(gpu(free=700, processes=crowd)).holders(GPU0)
    assert told == "300 MB used by others (pid 7: 70 MB, pid 6: 60 MB, pid 5: 50 MB, pid 4: 40 MB, pid 3: 30 MB)"


def test_processes_whose_use_is_not_told_are_named_last() -> None:
    crowd = [DeviceProcess(1, None, "python"), DeviceProcess(2, 10, "blender")]
    told = ledger(gpu(free=700, processes=crowd)).holders(GPU0)
    assert told == "300 MB used by others (pid 2 blender: 10 MB, pid 1 python)"


def test_processes_of_our_servers_are_not_others() -> None:
    crowd = [DeviceProcess(1, 300, "ours"), DeviceProcess(2, 10, "blender")]
    ours = msgspec.structs.replace(server("a", M, use=300), pids=frozenset({1}))
    told = ledger(gpu(free=690, processes=crowd), ours).holders(GPU0)
    assert told == "400 MB reserved by a (ready), 10 MB used by others (pid 2 blender: 10 MB)"


# --- one memory for several devices ---------------------------------------------------------------------------------

IGPU = "GPU-i"
M_CPU, M_IGPU = model(variant(400, "cpu")), model(variant(400, IGPU))


def igpu(free: int = 1000, *, total: int = 1000, shares: str = "cpu", problem: str = "", stale: bool = False) -> Device:
    """An integrated GPU that uses the machine's RAM."""
    made = gpu(IGPU, free, total=total, index=0, problem=problem, stale=stale)
    return msgspec.structs.replace(made, status=msgspec.structs.replace(made.status, shares=shares))


def test_what_is_reserved_on_one_device_is_not_free_on_another_that_shares_its_memory() -> None:
    assert ledger(cpu(), igpu(), server("a", M_CPU, "cpu")).free() == {"cpu": 600, IGPU: 600}
    assert ledger(cpu(), igpu(), server("a", M_IGPU, IGPU)).free() == {"cpu": 600, IGPU: 600}


def test_a_server_that_goes_frees_its_memory_for_all_who_share_it() -> None:
    seen = server("a", M_IGPU, IGPU, use=400)
    assert ledger(cpu(600), igpu(600), seen).free([seen]) == {"cpu": 1000, IGPU: 1000}


def test_what_is_yet_to_be_allocated_is_taken_from_all_who_share_the_memory() -> None:
    assert ledger(cpu(700), igpu(700), server("a", M_IGPU, IGPU, state=STARTING)).free() == {"cpu": 300, IGPU: 300}


def test_a_device_may_have_less_than_the_memory_that_it_shares() -> None:
    assert ledger(cpu(), igpu(300, total=300), server("a", M_CPU, "cpu")).free() == {"cpu": 600, IGPU: 300}


def test_who_holds_a_shared_memory_is_told_for_all_who_share_it() -> None:
    book = ledger(cpu(600), igpu(600), server("a", M_CPU, "cpu", use=400))
    assert book.holders(IGPU) == book.holders("cpu") == "400 MB reserved by a (ready)"


def test_a_device_whose_shared_memory_is_not_known_has_none_free() -> None:
    unreadable = msgspec.structs.replace(cpu(), status=msgspec.structs.replace(cpu().status, problem="it hangs"))
    assert ledger(unreadable, igpu()).free() == {}
    assert ledger(msgspec.structs.replace(cpu(), stale=True), igpu()).free() == {}


def test_what_is_reserved_on_a_device_that_cannot_be_read_is_taken_from_the_memory_that_it_shares() -> None:
    assert ledger(cpu(), igpu(problem="it hangs"), server("a", M_IGPU, IGPU)).free() == {"cpu": 600}


def test_a_device_that_shares_with_one_that_is_not_there_has_its_own_memory() -> None:
    assert ledger(igpu(shares="nowhere")).free() == {IGPU: 1000}


def test_others_are_told_apart_from_ours_by_what_ours_take() -> None:
    told = ledger(gpu(free=300), server("a", M, state=STOPPING, use=300)).holders(GPU0)
    assert told == "400 MB reserved by a (stopping), 400 MB used by others"


def test_what_is_not_measured_is_not_blamed_on_others() -> None:
    assert ledger(gpu(free=300), server("a", M)).holders(GPU0) == "400 MB reserved by a (ready)"


def test_use_of_ours_on_a_device_that_was_not_reserved_is_not_blamed_on_others() -> None:
    told = ledger(gpu(), gpu(GPU1, free=950), server("a", M, use={GPU0: 400, GPU1: 50})).holders(GPU1)
    assert "others" not in told


def test_used_memory_is_taken_from_the_device_where_it_tells() -> None:
    """Total - free may count what the driver keeps for itself."""
    status = gpu(free=300).status
    device = Device(device_class="gpu", status=type(status)(id=GPU0, total_mb=1000, free_mb=300, used_mb=650))
    assert ledger(device).holders(GPU0) == "650 MB used by others"


def test_one_that_leaves_before_it_was_ever_ready_may_take_what_it_reserved_until_it_is_gone() -> None:
    """A server that ignores SIGTERM loads on; nobody measures what a former sidecar has left."""
    loading = msgspec.structs.replace(server("a", model(400), state=STOPPING), never_ready=True)
    loaded = server("a", model(400), state=STOPPING)
    assert Ledger((gpu(free=1000),), (loading,), {}, 0).free() == {GPU0: 600}
    assert Ledger((gpu(free=600),), (loaded,), {}, 0).free() == {GPU0: 600}
    assert Ledger((gpu(free=600),), (loading,), {}, 0).free() == {GPU0: 200}  # it may not be what takes the 400
    assert Ledger((gpu(free=600),), (loading,), {}, 0).free([loading]) == {GPU0: 600}
