"""Drivers of GPUs: whether they answer, to us as well, and what they say about the hardware that is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sidecar.builtin import nvml
from sidecar.surfaces.doctor.finding import Finding, Patient, fail, ok, warn

NVIDIA, AMD = "0x10de", "0x1002"  # PCI vendors
_DISPLAY, _ACCELERATOR = "0x03", "0x12"  # how PCI classes begin


def nvidia(patient: Patient) -> Iterator[Finding]:
    """NVML, the device files, MIG."""
    cards = _cards(patient.places.sys, NVIDIA)
    nodes = sorted(patient.places.dev.glob("nvidia[0-9]*"))
    yield from _closed([*nodes, *patient.places.dev.glob("nvidiactl")], "the sidecar's user")
    try:
        nvml.init()
    except nvml.NvmlError as error:
        yield _no_nvml(error, cards, nodes, wanted=_wanted(patient, "nvidia"))
        return
    try:
        yield from _gpus()
    finally:
        nvml.shutdown()


def amd(patient: Patient) -> Iterator[Finding]:
    """The amdgpu driver, and ROCm's device file."""
    cards = _cards(patient.places.sys, AMD)
    driven = [card for card in cards if (card / "mem_info_vram_total").exists()]
    if not cards:
        wanted = _wanted(patient, "amd")
        told = "there is no AMD GPU"
        yield (
            fail(f"{told}, and models require one", "give the container the device, or change it")
            if wanted
            else ok(told)
        )
        return
    if not driven:
        yield fail(
            f"{len(cards)} AMD GPUs, without the amdgpu driver", "load it: modprobe amdgpu (package amdgpu-dkms)"
        )
        return
    kfd = patient.places.dev / "kfd"
    if not kfd.exists():
        yield warn(
            f"{kfd} is missing: ROCm cannot compute", "give it to the container: --device /dev/kfd --device /dev/dri"
        )
        return
    yield from _closed([kfd], "the group render (usermod -aG render USER)")
    yield ok(f"{len(driven)} AMD GPUs")


def _no_nvml(error: nvml.NvmlError, cards: list[Path], nodes: list[Path], *, wanted: bool) -> Finding:
    if isinstance(error, nvml.NO_DRIVER) and not cards and not nodes:
        told = "there is no NVIDIA GPU"
        if not wanted:
            return ok(told)
        return fail(f"{told}, and models require one", "in a container: --gpus all (nvidia-container-toolkit)")
    seen = f"{len(cards) or len(nodes) or 'some'} NVIDIA GPUs are there, but NVML says: {error}"
    if "mismatch" in str(error).lower():
        return fail(seen, "the driver was updated under a running kernel module: reboot, or reload the nvidia modules")
    return fail(seen, "install the driver (nvidia-smi must work); in a container use nvidia-container-toolkit")


def _gpus() -> Iterator[Finding]:
    count, refused = nvml.count(), 0
    for index in range(count):
        try:
            gpu = nvml.handle(index)
            parts = nvml.instances(gpu)
        except nvml.NOT_OURS:
            refused += 1
            continue
        except nvml.NvmlError as error:
            yield fail(f"nvidia:{index}: {error}", "look at dmesg for Xid errors; the GPU may need a reset")
            continue
        if parts is not None and not parts:
            yield warn(
                f"nvidia:{index} is in MIG mode without an instance",
                "create one (nvidia-smi mig -cgi ... -C), or turn it off",
            )
        mig = f", {len(parts)} MIG instances" if parts else ""
        yield ok(f"nvidia:{index} {nvml.name(gpu)}{mig}")
    if count == 0 or refused == count:
        yield warn(f"NVML sees {count} GPUs, of which {refused} are not ours", "give the container some: --gpus all")


def _closed(nodes: list[Path], who: str) -> Iterator[Finding]:
    closed = [str(node) for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if closed:
        yield fail(f"may not be opened by this user: {', '.join(closed)}", f"give read and write access to {who}")


def _wanted(patient: Patient, device_class: str) -> bool:
    """Whether a model has nothing but variants that require such a device."""
    for model in patient.declaration.models.values():
        managed = [variant for variant in model.variants if not variant.external]
        if (
            managed
            and len(managed) == len(model.variants)
            and all(
                any(name.partition(":")[0] == device_class for name in variant.required_devices) for variant in managed
            )
        ):
            return True
    return False


def _cards(sys: Path, vendor: str) -> list[Path]:
    """PCI devices of a vendor that are displays or accelerators."""
    return [
        device
        for device in sorted((sys / "bus" / "pci" / "devices").glob("*"))
        if _text(device / "vendor") == vendor and _text(device / "class").startswith((_DISPLAY, _ACCELERATOR))
    ]


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
