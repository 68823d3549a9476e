"""What is wrong with drivers is found: by the real NVML binding on a library that plays GPUs, and in written trees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sidecar.surfaces.doctor import gpu
from sidecar.surfaces.doctor.finding import Level
from tests.fakes.nvml import GPU_IS_LOST, LIBRARY_MISMATCH, FakeGpu, FakeGpus, Fault, build
from tests.support import model
from tests.surfaces.doctor.sick import patient, tree, worst

H200 = FakeGpu(uuid="GPU-1")
CARD = "sys/bus/pci/devices/0000:01:00.0"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


def doctor(library: Path, gpus: FakeGpus, folder: Path) -> list[tuple[str, str]]:
    """What `sidecar doctor` says of NVIDIA's driver in a process that sees these GPUs."""
    command = [sys.executable, "-m", "sidecar", "doctor", str(folder), "--only", "nvidia", "--json", "--timeout", "5"]
    url = ["--url", "http://127.0.0.1:1"]
    answer = subprocess.run(
        [*command, *url], env={**os.environ, **gpus.env(library)}, stdout=subprocess.PIPE, text=True, check=False
    )
    findings: list[dict[str, Any]] = json.loads(answer.stdout)["findings"]
    return [(found["level"], found["message"]) for found in findings]


def test_gpus_are_found_and_one_that_is_lost_is_told_and_a_driver_that_does_not_match(
    library: Path, tmp_path: Path
) -> None:
    (tmp_path / "m.toml").write_text("")
    sick = FakeGpu(uuid="GPU-2", instances=())
    gpus = FakeGpus(tmp_path / "gpus", H200, sick)
    found = doctor(library, gpus, tmp_path)
    assert found[0] == ("ok", "nvidia:0 NVIDIA H200")
    assert ("warn", "nvidia:1 is in MIG mode without an instance") in found
    gpus.set(H200, FakeGpu(uuid="GPU-3", faults=(Fault("DeviceGetHandleByIndex", GPU_IS_LOST),)))
    gpus.set_init_code(LIBRARY_MISMATCH)
    ((level, message),) = doctor(library, gpus, tmp_path)
    assert (level, "but NVML says" in message) == ("fail", True)


def test_a_card_without_a_driver_is_told(tmp_path: Path) -> None:
    nvidia = tree(tmp_path / "nvidia", {f"{CARD}/vendor": "0x10de", f"{CARD}/class": "0x030200"})
    found = worst(gpu.nvidia, patient(tmp_path, places=nvidia))
    assert (found.level, "1 NVIDIA GPUs are there, but NVML says" in found.message) == (Level.FAIL, True)
    amd = tree(tmp_path / "amd", {f"{CARD}/vendor": "0x1002", f"{CARD}/class": "0x030000"})
    assert worst(gpu.amd, patient(tmp_path, places=amd)).level is Level.FAIL


def test_models_that_need_a_gpu_where_there_is_none_are_told(tmp_path: Path) -> None:
    nothing = tree(tmp_path / "machine", {})
    for check, name in ((gpu.nvidia, "nvidia"), (gpu.amd, "amd")):
        needs = model("m").replace('"cpu"', f'"{name}"')
        assert worst(check, patient(tmp_path, needs, places=nothing)).level is Level.FAIL
        assert worst(check, patient(tmp_path, model("m"), places=nothing)).level is Level.OK


def test_device_files_that_are_closed_to_us_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = {f"{CARD}/vendor": "0x1002", f"{CARD}/class": "0x030000", f"{CARD}/mem_info_vram_total": 1}
    without = tree(tmp_path / "without", card)
    assert "kfd is missing" in worst(gpu.amd, patient(tmp_path, places=without)).message
    places = tree(tmp_path / "with", {**card, "dev/kfd": "", "dev/nvidia0": ""})
    assert worst(gpu.amd, patient(tmp_path, places=places)).level is Level.OK
    monkeypatch.setattr(os, "access", lambda *_: False)  # root, as whom tests may run, has access to everything
    for check in (gpu.amd, gpu.nvidia):
        found = worst(check, patient(tmp_path, places=places))
        assert (found.level, "may not be opened" in found.message or check is gpu.nvidia) == (Level.FAIL, True)
