"""The Cpu plugin on written /proc and /sys/fs/cgroup trees, and on this machine's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugin_sdk import DeviceStatus, PluginError
from sidecar.builtin.cpu import Cpu, Settings

MB = 1 << 20
UNLIMITED_V1 = 0x7FFFFFFFFFFFF000  # PAGE_COUNTER_MAX in bytes


class Machine:
    """16,000 MB of RAM, 12,000 available, and the cgroups that a test writes."""

    def __init__(self, root: Path) -> None:
        self.proc, self.cgroup = root / "proc", root / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.cgroup.mkdir()
        self.meminfo(f"MemTotal: {16_000 * 1024} kB\nMemFree: 1024 kB\nMemAvailable: {12_000 * 1024} kB\n")

    def meminfo(self, text: str) -> None:
        (self.proc / "meminfo").write_text(text)

    def belongs_to(self, *lines: str) -> None:
        (self.proc / "self" / "cgroup").write_text("".join(f"{line}\n" for line in lines))

    def v2(self, path: str, limit_mb: int | None, used_mb: int, cache_mb: int = 0, high_mb: int | None = None) -> None:
        files = {
            "memory.max": _bytes(limit_mb),
            "memory.high": _bytes(high_mb),
            "memory.current": used_mb * MB,
            "memory.stat": f"anon 1\ninactive_file {cache_mb * MB}\nactive_file {77 * MB}\n",
        }
        self._write(self.cgroup / path, files)

    def v1(self, path: str, limit_mb: int | None, used_mb: int, cache_mb: int = 0) -> None:
        files = {
            "memory.limit_in_bytes": UNLIMITED_V1 if limit_mb is None else limit_mb * MB,
            "memory.usage_in_bytes": used_mb * MB,
            "memory.stat": f"inactive_file 1\ntotal_inactive_file {cache_mb * MB}\n",
        }
        self._write(self.cgroup / "memory" / path, files)

    def probe(self) -> DeviceStatus:
        return Cpu(Settings(proc=str(self.proc), cgroup=str(self.cgroup))).probe()

    def memory(self) -> tuple[int, int]:
        """(total_mb, free_mb) as the plugin sees them."""
        status = self.probe()
        return status.total_mb, status.free_mb

    def _write(self, directory: Path, files: dict[str, object]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name).write_text(f"{content}".rstrip("\n") + "\n")


def _bytes(size_mb: int | None) -> object:
    return "max" if size_mb is None else size_mb * MB


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_this_machine_has_memory() -> None:
    status = Cpu().probe()
    assert (status.id, status.problem) == ("cpu", "")
    assert 0 < status.free_mb <= status.total_mb


def test_without_cgroups_it_is_the_machines_ram(machine: Machine) -> None:
    assert machine.memory() == (16_000, 12_000)


def test_an_unlimited_cgroup_changes_nothing(machine: Machine) -> None:
    machine.belongs_to("0::/a")
    machine.v2("a", None, used_mb=15_000)
    assert machine.memory() == (16_000, 12_000)


def test_a_cgroup_limit_is_the_total_and_its_cache_is_free(machine: Machine) -> None:
    machine.belongs_to("0::/a")
    machine.v2("a", 4000, used_mb=3000, cache_mb=500)
    assert machine.memory() == (4000, 1500)


def test_free_is_never_more_than_the_machine_has(machine: Machine) -> None:
    machine.belongs_to("0::/a")
    machine.v2("a", 15_000, used_mb=100)
    assert machine.memory() == (15_000, 12_000)


def test_a_limit_above_the_machines_ram_is_no_limit(machine: Machine) -> None:
    machine.belongs_to("0::/a")
    machine.v2("a", 64_000, used_mb=0)
    assert machine.memory() == (16_000, 12_000)


def test_the_lowest_limit_on_the_path_counts(machine: Machine) -> None:
    machine.belongs_to("0::/system.slice/sidecar.service")
    machine.v2("system.slice/sidecar.service", 8000, used_mb=100)
    machine.v2("system.slice", 6000, used_mb=200)
    assert machine.memory() == (6000, 5800)


def test_siblings_may_leave_less_than_the_own_limit_does(machine: Machine) -> None:
    machine.belongs_to("0::/slice/own")
    machine.v2("slice/own", 4000, used_mb=0)
    machine.v2("slice", 8000, used_mb=7000)
    assert machine.memory() == (4000, 1000)


def test_a_throttling_limit_counts_as_a_limit(machine: Machine) -> None:
    machine.belongs_to("0::/a")
    machine.v2("a", 8000, used_mb=1000, high_mb=5000)
    assert machine.memory() == (5000, 4000)


def test_a_cgroup_over_its_limit_has_nothing_free(machine: Machine) -> None:
    machine.belongs_to("0::/a")
    machine.v2("a", 1000, used_mb=1001)
    assert machine.memory() == (1000, 0)


def test_version_1_is_read_as_well(machine: Machine) -> None:
    machine.belongs_to("5:cpu,cpuacct:/other", "4:memory:/docker/x", "1:name=systemd:/")
    machine.v1("docker/x", 4000, used_mb=3000, cache_mb=500)
    machine.v1("docker", None, used_mb=9000)
    assert machine.memory() == (4000, 1500)


def test_version_1_with_other_controllers_on_the_same_line(machine: Machine) -> None:
    machine.belongs_to("4:cpuset,memory:/a")
    machine.v1("a", 4000, used_mb=3000)
    assert machine.memory() == (4000, 1000)


def test_in_the_hybrid_layout_both_versions_count(machine: Machine) -> None:
    machine.belongs_to("4:memory:/a", "0::/a")
    machine.v1("a", None, used_mb=0)
    machine.v2("unified/a", 5000, used_mb=1000)
    assert machine.memory() == (5000, 4000)


def test_a_container_that_sees_the_hosts_path_reads_its_own_root(machine: Machine) -> None:
    machine.belongs_to("4:memory:/docker/0123abcd")
    machine.v1("", 4000, used_mb=1000)
    assert machine.memory() == (4000, 3000)


def test_a_path_outside_of_the_namespace_does_not_lead_out_of_the_mount(machine: Machine) -> None:
    machine.belongs_to("0::/../outside")
    machine.v2("../outside", 1000, used_mb=0)
    machine.v2("", 4000, used_mb=1000)
    assert machine.memory() == (4000, 3000)


def test_a_kernel_that_does_not_tell_is_an_error_that_says_what_is_missing(machine: Machine) -> None:
    machine.meminfo("MemTotal: 1024 kB\n")
    with pytest.raises(PluginError, match="has no MemAvailable"):
        machine.probe()
