"""The Amd plugin on written sysfs trees."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from plugin_sdk import DeviceProcess, DeviceStatus
from sidecar.builtin.amd import VANISHED, Amd, Settings
from sidecar.mechanism.plugins import BUILTIN

MB = 1 << 20


class Machine:
    """A sysfs with the cards that a test puts in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plugin = Amd(Settings(sys=str(root)))

    def card(self, number: int, **files: object) -> Path:
        """A card of 16,000 MB, 4,000 of them used, with whatever else `files` says; None = no such file."""
        pci = self.root / f"devices/pci0000:00/0000:0{number}:00.0"
        content: dict[str, object] = {
            "vendor": "0x1002",
            "device": "0x744c",
            "mem_info_vram_total": 16_000 * MB,
            "mem_info_vram_used": 4_000 * MB,
            "unique_id": f"ab{number}cdef012345",
            "gpu_busy_percent": 37,
            "hwmon/hwmon3/temp1_input": 45_000,
            "hwmon/hwmon3/power1_average": 120_500_000,
            **files,
        }
        for name, value in content.items():
            if value is not None:
                write(pci / name, value)
        (pci / "drm" / f"renderD{128 + number}").mkdir(parents=True)
        card = self.root / f"class/drm/card{number}"
        card.mkdir(parents=True)
        (card / "device").symlink_to(pci)
        (self.root / f"class/drm/card{number}-DP-1").mkdir()  # a connector
        return card

    def node(self, number: int, gpu_id: int, minor: int = 0) -> None:
        """A node of the compute driver; processors have gpu_id 0."""
        node = self.root / f"class/kfd/kfd/topology/nodes/{number}"
        write(node / "gpu_id", gpu_id)
        write(node / "properties", f"cpu_cores_count 0\nsimd_count 96\ndrm_render_minor {minor}")

    def only(self) -> DeviceStatus:
        [device] = self.plugin.probe()
        return device


def write(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{value}\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_without_a_driver_there_is_no_device(machine: Machine) -> None:
    assert machine.plugin.probe() == []


def test_this_machine_can_be_asked() -> None:
    assert isinstance(Amd().probe(), list)


def test_cards_of_other_vendors_and_drivers_are_none_of_its_own(machine: Machine) -> None:
    machine.card(0, vendor="0x10de")
    machine.card(1, mem_info_vram_total=None)  # the old radeon driver
    assert machine.plugin.probe() == []


def test_a_card_tells_its_memory_load_and_warmth(machine: Machine) -> None:
    machine.card(0)
    assert machine.only() == DeviceStatus(
        id="GPU-000ab0cdef012345",
        name="AMD GPU 0x744c",
        total_mb=16_000,
        free_mb=12_000,
        used_mb=4_000,
        utilisation_pct=37,
        temperature_c=45,
        power_w=120.5,
    )


def test_a_card_may_have_a_name_and_newer_files(machine: Machine) -> None:
    machine.card(0, product_name="Instinct MI210", **{"hwmon/hwmon3/power1_average": None})
    write(machine.root / "class/drm/card0/device/hwmon/hwmon3/power1_input", 90_000_000)
    device = machine.only()
    assert (device.name, device.power_w) == ("Instinct MI210", 90)


def test_what_is_not_memory_may_be_missing(machine: Machine) -> None:
    sensors = ("gpu_busy_percent", "hwmon/hwmon3/temp1_input", "hwmon/hwmon3/power1_average")
    machine.card(0, **dict.fromkeys(sensors))
    device = machine.only()
    assert (device.utilisation_pct, device.temperature_c, device.power_w, device.problem) == (None, None, None, "")


def test_rocms_numbers_count_rather_than_the_cards(machine: Machine) -> None:
    machine.card(0)
    machine.card(1)
    machine.node(0, 0)
    machine.node(1, 111, minor=129)
    machine.node(2, 222, minor=128)
    assert [(device.id, device.index) for device in machine.plugin.probe()] == [
        ("GPU-000ab0cdef012345", 1),
        ("GPU-000ab1cdef012345", 0),
    ]


def test_a_card_without_a_uuid_goes_by_rocms_index_or_else_by_its_address(machine: Machine) -> None:
    machine.card(0, unique_id=None)
    machine.card(1, unique_id="0")
    machine.node(0, 0)
    machine.node(1, 222, minor=129)
    assert [device.id for device in machine.plugin.probe()] == ["0000:00:00.0", "0"]


def test_ids_are_what_the_variable_takes() -> None:
    assert Amd.visibility_env == "ROCR_VISIBLE_DEVICES"
    assert BUILTIN["amd"] == "sidecar.builtin.amd:Amd"


def test_processes_are_told_with_their_share(machine: Machine) -> None:
    machine.card(0)
    machine.node(1, 111, minor=128)
    write(machine.root / "class/kfd/kfd/proc/4711/vram_111", 3_000 * MB)
    write(machine.root / "class/kfd/kfd/proc/4712/vram_111", 0)
    write(machine.root / "class/kfd/kfd/proc/4713/vram_222", 500 * MB)
    assert machine.only().processes == (DeviceProcess(4711, 3_000),)


@pytest.mark.parametrize("name", ["mem_info_vram_total", "mem_info_vram_used"])
@pytest.mark.parametrize("content", ["", "many", None])
def test_a_card_whose_memory_cannot_be_read_is_unknown_with_its_last_figures(
    machine: Machine, name: str, content: str | None
) -> None:
    file = machine.card(0) / "device" / name
    before = machine.only()
    file.unlink()
    if content is not None:
        write(file, content)
    device = machine.only()
    assert (device.id, device.total_mb, device.free_mb) == (before.id, 16_000, 12_000)
    assert "card0/device" in device.problem
    write(file, 8_000 * MB)
    assert machine.only().problem == ""


def test_a_card_that_was_never_readable_is_there_with_its_reason(machine: Machine) -> None:
    machine.card(3, mem_info_vram_used=None)
    device = machine.only()
    assert (device.id, device.total_mb) == ("0000:03:00.0", 0)
    assert device.problem.endswith("No such file or directory")


def test_a_card_that_has_gone_is_still_told_of(machine: Machine) -> None:
    card = machine.card(0)
    machine.card(1)
    assert len(machine.plugin.probe()) == 2
    shutil.rmtree(card)
    staying, gone = machine.plugin.probe()
    assert (staying.id, staying.problem) == ("GPU-000ab1cdef012345", "")
    assert (gone.id, gone.problem) == ("GPU-000ab0cdef012345", VANISHED)


def test_a_card_that_comes_back_under_another_number_is_one_card(machine: Machine) -> None:
    card = machine.card(0)
    uuid = machine.only().id
    shutil.rmtree(card)
    machine.card(2, unique_id="ab0cdef012345")
    device = machine.only()
    assert (device.id, device.problem) == (uuid, "")


def test_used_and_free_never_exceed_the_total(machine: Machine) -> None:
    machine.card(0, mem_info_vram_used=16_000 * MB + 1)
    device = machine.only()
    assert (device.total_mb, device.free_mb) == (16_000, 0)
