"""Which devices a requirement may mean, and which assignment is chosen."""

from __future__ import annotations

import itertools

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.manifest import Variant
from sidecar.core.placement import Inventory, Placement, missing, place
from tests.core.build import GPU0, GPU1, GPU2, cpu, gpu, laws, named, variant

IDS = (GPU0, GPU1, GPU2, "cpu")
INVENTORY = Inventory((gpu(GPU0), gpu(GPU1), gpu(GPU2), cpu()), {"mine": named(uuid=GPU2)})
REQUIREMENTS = st.sampled_from(("gpu", "gpu:0", "gpu:1", GPU1, "mine", "cpu", "tpu"))
NEEDS = st.lists(st.tuples(REQUIREMENTS, st.integers(1, 6)), min_size=1, max_size=4, unique_by=lambda need: need[0])
FREE = st.dictionaries(st.sampled_from(IDS), st.integers(-1, 6))


def of(needs: list[tuple[str, int]]) -> Variant:
    return variant(dict(needs), *(name for name, _ in needs))


def possible(needs: list[tuple[str, int]], free: dict[str, int]) -> bool:
    """Whether any assignment works, by trying them all."""
    allowed = [{device.id for device in INVENTORY.candidates(name)} for name, _ in needs]
    return any(
        all(
            device in names and free.get(device, -1) >= mb
            for device, names, (_, mb) in zip(chosen, allowed, needs, strict=True)
        )
        for chosen in itertools.permutations(IDS, len(needs))
    )


@laws
@given(NEEDS, FREE)
def test_an_assignment_is_found_whenever_there_is_one(needs: list[tuple[str, int]], free: dict[str, int]) -> None:
    assert (place(of(needs), INVENTORY, free) is not None) == possible(needs, free)


@laws
@given(st.integers(1, 4), st.integers(1, 6), FREE)
def test_the_same_class_several_times_means_as_many_devices(count: int, mb: int, free: dict[str, int]) -> None:
    found = place(variant(mb, *["gpu"] * count), INVENTORY, free)
    assert (found is not None) == possible([("gpu", mb)] * count, free)


@laws
@given(NEEDS, FREE)
def test_no_device_is_shared_nor_holds_more_than_is_free(needs: list[tuple[str, int]], free: dict[str, int]) -> None:
    found = place(of(needs), INVENTORY, free)
    if found is None:
        return
    assert len(set(found.devices)) == len(needs)
    assert [found.reserved_mb[device] for device in found.devices] == [mb for _, mb in needs]
    assert all(free[device] >= mb for device, mb in found.reserved_mb.items())
    for device, (name, _) in zip(found.devices, needs, strict=True):
        assert device in {one.id for one in INVENTORY.candidates(name)}


def test_the_fullest_device_that_holds_it_is_taken_so_that_big_holes_stay_big() -> None:
    free = {GPU0: 900, GPU1: 600, GPU2: 400}
    assert place(variant(500), INVENTORY, free) == Placement((GPU1,), {GPU1: 500})


def test_the_largest_need_chooses_first() -> None:
    two = variant({"gpu": 300, "gpu:0": 800}, "gpu", "gpu:0")
    assert place(two, INVENTORY, {GPU0: 850, GPU1: 900}) == Placement((GPU1, GPU0), {GPU0: 800, GPU1: 300})


def test_a_choice_is_revised_when_a_later_need_has_no_other_place() -> None:
    two = variant({"gpu": 500, "gpu:0": 400}, "gpu", "gpu:0")
    assert place(two, INVENTORY, {GPU0: 500, GPU1: 900}) == Placement((GPU1, GPU0), {GPU1: 500, GPU0: 400})


def test_equal_devices_are_taken_in_the_order_of_their_ids() -> None:
    assert place(variant(500), INVENTORY, {GPU1: 600, GPU0: 600}) == Placement((GPU0,), {GPU0: 500})


def test_one_device_under_two_names_is_still_one() -> None:
    assert place(variant(100, "gpu:2", "mine"), INVENTORY, dict.fromkeys(IDS, 1000)) is None


# --- one memory for several devices ---------------------------------------------------------------------------------

IGPU = "GPU-i"
UNIFIED = Inventory((gpu(GPU0), gpu(IGPU, index=1, shares="cpu"), cpu()), {})
SHARED_NEEDS = st.lists(
    st.tuples(st.sampled_from(("gpu", "cpu", IGPU)), st.integers(1, 6)),
    min_size=1,
    max_size=3,
    unique_by=lambda need: need[0],
)


@laws
@given(SHARED_NEEDS, st.integers(1, 6), st.tuples(*[st.integers(0, 9)] * 3))
def test_an_assignment_that_the_shared_memory_holds_is_found_whenever_there_is_one(
    needs: list[tuple[str, int]], gpus: int, room: tuple[int, int, int]
) -> None:
    free = {GPU0: room[0], "cpu": room[1], IGPU: min(room[1], room[2])}
    names = [name for name, _ in needs] + ["gpu"] * (gpus == 1)
    amounts = dict(needs) | {"gpu": dict(needs).get("gpu", gpus)}
    needed = variant(amounts, *names)

    def holds(chosen: tuple[str, ...]) -> bool:
        allowed = (
            device in {one.id for one in UNIFIED.candidates(name)} for device, name in zip(chosen, names, strict=True)
        )
        each = [(device, amounts[name]) for device, name in zip(chosen, names, strict=True)]
        return (
            all(allowed)
            and all(mb <= free[device] for device, mb in each)
            and sum(mb for device, mb in each if device != GPU0) <= free["cpu"]
        )

    found = place(needed, UNIFIED, free)
    assert (found is not None) == any(map(holds, itertools.permutations(free, len(names))))
    assert found is None or holds(found.devices)


def test_a_memory_is_not_placed_on_twice() -> None:
    both = variant(600, "gpu", "cpu")
    assert place(both, UNIFIED, {IGPU: 1000, "cpu": 1000}) is None
    assert place(both, UNIFIED, {GPU0: 2000, IGPU: 1000, "cpu": 1000}) == Placement(
        (GPU0, "cpu"), {GPU0: 600, "cpu": 600}
    )


def test_a_device_whose_shared_memory_cannot_be_read_is_missing() -> None:
    blind = cpu()
    blind = msgspec.structs.replace(blind, status=msgspec.structs.replace(blind.status, problem="it hangs"))
    inventory = Inventory((gpu(IGPU, index=1, shares="cpu"), blind), {})
    assert missing(variant(1), inventory) == "gpu:1 cannot be read: it hangs"


# --- names ----------------------------------------------------------------------------------------------------------


def meant(inventory: Inventory, requirement: str) -> list[str]:
    return [device.id for device in inventory.candidates(requirement)]


def test_a_requirement_is_a_class_an_index_an_id_or_a_declared_name() -> None:
    assert meant(INVENTORY, "gpu") == [GPU0, GPU1, GPU2]
    assert meant(INVENTORY, "gpu:1") == [GPU1]
    assert meant(INVENTORY, GPU1) == [GPU1]
    assert meant(INVENTORY, "mine") == [GPU2]
    assert meant(INVENTORY, "cpu") == ["cpu"]
    assert meant(INVENTORY, "tpu") == []


def test_slices_that_share_an_index_are_all_meant_by_it() -> None:
    slices = Inventory((gpu("MIG-a", index=0), gpu("MIG-b", index=0), gpu(GPU1)), {})
    assert meant(slices, "gpu:0") == ["MIG-a", "MIG-b"]


def test_devices_are_matched_by_all_that_is_given() -> None:
    devices = (gpu(GPU0, name="NVIDIA H200"), gpu(GPU1, name="NVIDIA H200"), gpu(GPU2, name="NVIDIA L4"), cpu())
    declared = {
        "second": named(name="*H200*", index=1),
        "small": named(name="*l4", device_class="gpu"),
        "little": named(name="*L4", device_class="gpu"),
        "host": named(device_class="cpu"),
    }
    assert Inventory(devices, declared).named == {"second": GPU1, "little": GPU2, "host": "cpu"}


def test_a_name_that_fits_several_devices_or_none_stands_for_none() -> None:
    inventory = Inventory((gpu(GPU0), gpu(GPU1)), {"any": named(device_class="gpu"), "lost": named(uuid="GPU-x")})
    assert inventory.named == {}
    assert meant(inventory, "any") == meant(inventory, "lost") == []


def test_a_name_that_fits_no_device_does_not_fall_back_to_the_class_of_that_name() -> None:
    inventory = Inventory((gpu(GPU0),), {"gpu": named(uuid="GPU-that-was-taken-out")})
    assert meant(inventory, "gpu") == []


def test_the_lowest_cap_of_a_device_holds() -> None:
    declared = {"one": named(700, uuid=GPU0), "two": named(400, index=0), "free": named(uuid=GPU1)}
    assert Inventory((gpu(GPU0), gpu(GPU1)), declared).caps == {GPU0: 400}


def test_a_device_that_is_gone_is_called_by_its_id() -> None:
    assert INVENTORY.label(GPU1) == "gpu:1"
    assert INVENTORY.label("cpu") == "cpu"
    assert INVENTORY.label("GPU-gone") == "GPU-gone"


# --- what is missing ------------------------------------------------------------------------------------------------


def test_nothing_is_missing_where_every_requirement_has_devices() -> None:
    assert missing(variant(10**6, "gpu", "gpu", "cpu"), INVENTORY) == ""


def test_the_first_requirement_that_cannot_be_met_is_named() -> None:
    assert missing(variant(1, "cpu", "tpu", "npu"), INVENTORY) == 'no device "tpu" is online'
    assert missing(variant(1, *["gpu"] * 4), INVENTORY) == "4 gpu devices are needed"


def test_devices_that_cannot_be_read_are_missing() -> None:
    blind = Inventory((gpu(GPU0, problem="it hangs"), gpu(GPU1, problem="it hangs")), {})
    assert missing(variant(1), blind) == "gpu:0 cannot be read: it hangs"
    half = Inventory((gpu(GPU0), gpu(GPU1, problem="it hangs")), {})
    assert missing(variant(1), half) == ""
    assert missing(variant(1, "gpu", "gpu"), half) == "2 gpu devices are needed"
