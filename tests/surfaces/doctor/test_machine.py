"""Each check of the machine finds what is wrong with one, and nothing where all is well."""

from __future__ import annotations

import os
import resource
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from sidecar.surfaces.doctor import machine
from sidecar.surfaces.doctor.finding import Check, Level
from tests.support import model
from tests.surfaces.doctor.sick import patient, tree, worst

MB = 2**20
MEMINFO = "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB"


@pytest.mark.parametrize("check", [machine.kernel, machine.versions, machine.processes, machine.clock, machine.memory])
def test_this_machine_is_well(check: Check, tmp_path: Path) -> None:
    assert worst(check, patient(tmp_path)).level is Level.OK


def test_a_kernel_that_refuses_pidfds_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "pidfd_open", refuse)  # which only a seccomp profile, or an old kernel, would do
    found = worst(machine.kernel, patient(tmp_path))
    assert (found.level, "pidfd_open: Operation not permitted" in found.message) == (Level.FAIL, True)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert worst(machine.kernel, patient(tmp_path)).level is Level.FAIL


def test_a_package_that_is_missing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["httpx>=0.28,<0.29", "no-such-thing>=1", 'x; extra == "test"'])
    found = worst(machine.versions, patient(tmp_path))
    assert (found.level, found.message) == (Level.FAIL, "packages are missing: no-such-thing")


def test_processes_that_cannot_be_seen_are_told(tmp_path: Path) -> None:
    seen = {"proc/self/stat": 1, "proc/self/io": 1, "proc/1/stat": 1, "proc/sys/kernel/random/boot_id": "x"}
    for without, level in (("proc/self/io", Level.FAIL), ("proc/1/stat", Level.WARN), (list(seen)[-1], Level.FAIL)):
        places = tree(tmp_path / without, {name: text for name, text in seen.items() if name != without})
        found = worst(machine.processes, patient(tmp_path, places=places))
        assert found.level is level


def test_a_cgroup_that_is_too_small_for_a_model_is_told(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/box",
        "sys/fs/cgroup/box/memory.max": 64 * MB,
        "sys/fs/cgroup/box/memory.current": 10 * MB,
        "sys/fs/cgroup/box/memory.stat": "inactive_file 0",
    }
    places = tree(tmp_path, files)
    found = worst(machine.memory, patient(tmp_path, model("m"), places=places))
    assert found.level is Level.WARN
    assert found.message == "a cgroup limits RAM to 64 MB of the machine's 16,384 MB; a model declares 100 MB on cpu"
    small = model("m").replace("100", "50")
    assert worst(machine.memory, patient(tmp_path, small, places=places)).level is Level.OK


def test_a_limit_of_processes_is_told(tmp_path: Path) -> None:
    for limit, level in ((20, Level.WARN), (5000, Level.OK), ("max", Level.OK)):
        places = tree(tmp_path, {"sys/fs/cgroup/pids.max": limit})
        assert worst(machine.cgroups, patient(tmp_path, places=places)).level is level


def test_too_few_open_files_are_told(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    few, some = (patient(tmp_path, settings=f"max_connections = {number}") for number in (100_000, 1))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, before[1]))
        assert worst(machine.files, few).level is Level.WARN
        assert worst(machine.files, some).level is Level.OK
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
        found = worst(machine.files, few)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (found.level, "ulimit -n 200512" in found.remedy) == (Level.FAIL, True)


def test_too_few_watches_are_told(tmp_path: Path) -> None:
    folder = "proc/sys/fs/inotify"
    assert worst(machine.inotify, patient(tmp_path, places=tree(tmp_path / "none", {}))).level is Level.WARN
    for watches, level in ((8, Level.WARN), (100_000, Level.OK)):
        places = tree(tmp_path, {f"{folder}/max_user_watches": watches, f"{folder}/max_user_instances": 128})
        assert worst(machine.inotify, patient(tmp_path, places=places)).level is level


def test_a_clock_that_was_never_set_is_told() -> None:
    assert machine.judge_clock(0.0).level is Level.FAIL
    assert machine.judge_clock(time.time()).level is Level.OK


def test_a_disk_that_is_full_is_told(tmp_path: Path) -> None:
    assert machine.judge_disk("/x", 10, 1000).level is Level.FAIL
    assert machine.judge_disk("/x", 5000, 0).level is Level.FAIL
    assert machine.judge_disk("/x", 500, None).level is Level.WARN
    assert machine.judge_disk("/x", 5000, None).level is Level.OK
    assert worst(machine.disk, patient(tmp_path)).message.startswith(str(tmp_path))  # as far as there is a folder


def test_a_log_that_nobody_has_cut_is_told(tmp_path: Path) -> None:
    sick = patient(tmp_path, settings='server_log_limit = "64KiB"')
    log = sick.state_dir / "logs" / "m.err.log"
    log.parent.mkdir(parents=True)
    log.touch()
    os.truncate(log, 200 * 1024)
    assert "m.err.log" in worst(machine.disk, sick).message
