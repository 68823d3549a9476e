"""NVML in the sidecar's terms: each function is one reading of one GPU, in MB (2^20), per cent, degrees and watts.

Keeps no state and no handle: a handle is valid only as long as NVML's session and its GPU are. Every function may
block for as long as the driver likes. Source: NVML API Reference, https://docs.nvidia.com/deploy/nvml-api/.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec
import pynvml

from plugin_sdk import DeviceProcess

T = TypeVar("T")
Handle: TypeAlias = Any  # an opaque pointer

MB = 1 << 20
UNIFIED = (
    "NVML does not tell how much memory this GPU has (nvmlDeviceGetMemoryInfo: Not Supported): "
    "it shares the machine's, as GB10 and Jetson do"
)

NvmlError = pynvml.NVMLError
NO_DRIVER = (pynvml.NVMLError_DriverNotLoaded, pynvml.NVMLError_LibraryNotFound)
NOT_OURS = pynvml.NVMLError_NoPermission  # a GPU that the system has, but this container was not given
SESSION_OVER = (pynvml.NVMLError_Uninitialized, pynvml.NVMLError_DriverNotLoaded)

_ABSENT = {
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_NOT_FOUND,
}
_BROKEN = {
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED,
}
_OLDER_CALL_MAY_DO = (
    pynvml.NVMLError_FunctionNotFound,
    pynvml.NVMLError_NotSupported,
    pynvml.NVMLError_ArgumentVersionMismatch,
)

_log = logging.getLogger(__name__)


class Memory(msgspec.Struct, frozen=True):
    """Memory of a GPU or a MIG instance, in MB.

    used_mb: what processes hold; total - free - used is the driver's own reserve, which nobody can have. None where
    the driver cannot tell the two apart. problem: why there are no figures.
    """

    total_mb: int = 0
    free_mb: int = 0
    used_mb: int | None = None
    problem: str = ""


class Sensors(msgspec.Struct, frozen=True):
    """Readings that are nice to have: None where the hardware or the driver has none."""

    utilisation_pct: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


def init() -> None:
    """Start a session, loading the library if need be. No GPU is woken by it."""
    pynvml.nvmlInit()


def shutdown() -> None:
    """End a session. Sessions are counted: others in this process live on."""
    pynvml.nvmlShutdown()


def count() -> int:
    """How many GPUs the system has, those that `handle` refuses included."""
    return int(pynvml.nvmlDeviceGetCount())


def handle(index: int) -> Handle:
    """The GPU at NVML's `index`, which follows the PCI bus, as nvidia-smi's does."""
    return pynvml.nvmlDeviceGetHandleByIndex(index)


def uuid(device: Handle) -> str:
    """`GPU-...`, or `MIG-...` of a MIG instance."""
    return str(pynvml.nvmlDeviceGetUUID(device))


def name(device: Handle) -> str:
    """Such as `NVIDIA H200`, or `NVIDIA H200 MIG 1g.18gb` of a MIG instance; "" where there is none."""
    return str(_reading(pynvml.nvmlDeviceGetName, device) or "")


def instances(gpu: Handle) -> list[Handle] | None:
    """The MIG instances of a GPU, or None where MIG mode is off. Slots without an instance answer NOT_FOUND."""
    mode = _unless_absent(pynvml.nvmlDeviceGetMigMode, gpu)
    if mode is None or mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        return None
    slots = range(pynvml.nvmlDeviceGetMaxMigDeviceCount(gpu))
    found = [_unless_absent(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, slot) for slot in slots]
    return [instance for instance in found if instance is not None]


def memory(device: Handle) -> Memory:
    """Memory now. `free` is the same in both versions of the call and is what a new process can still get.

    Version 1 counts the driver's reserve as used, as if some process held it; version 2 (driver 510) keeps it apart.
    """
    try:
        told = _newest(device, _memory_v2, pynvml.nvmlDeviceGetMemoryInfo)
    except pynvml.NVMLError_NotSupported:
        return Memory(problem=UNIFIED)
    if not told.total:  # how some drivers for unified memory say the same
        return Memory(problem=UNIFIED)
    used_mb = told.used // MB if hasattr(told, "reserved") else None
    return Memory(told.total // MB, told.free // MB, used_mb)


def sensors(gpu: Handle) -> Sensors:
    """Utilisation, temperature and power. Of a whole GPU: MIG instances have none of their own."""
    rates = _reading(pynvml.nvmlDeviceGetUtilizationRates, gpu)
    celsius = _reading(pynvml.nvmlDeviceGetTemperature, gpu, pynvml.NVML_TEMPERATURE_GPU)
    milliwatts = _reading(pynvml.nvmlDeviceGetPowerUsage, gpu)
    return Sensors(
        utilisation_pct=None if rates is None else float(rates.gpu),
        temperature_c=None if celsius is None else float(celsius),
        power_w=None if milliwatts is None else milliwatts / 1000,
    )


def processes(device: Handle) -> tuple[DeviceProcess, ...]:
    """Who holds memory, by pid. A process that both computes and draws stands in two lists with the same figure."""
    held: dict[int, int | None] = {}
    for calls in _LISTINGS:
        for process in _reading(_newest, device, *calls) or []:
            used_mb = None if process.usedGpuMemory is None else int(process.usedGpuMemory) // MB
            known = [mb for mb in (held.get(process.pid), used_mb) if mb is not None]
            held[process.pid] = max(known, default=None)
    return tuple(DeviceProcess(pid, held[pid], _command(pid)) for pid in sorted(held))


def _memory_v2(device: Handle) -> Any:
    return pynvml.nvmlDeviceGetMemoryInfo(device, version=pynvml.nvmlMemory_v2)


# Versions by name, not pynvml's unversioned ones, which turn an older driver into an exception of another family.
_LISTINGS = (
    (pynvml.nvmlDeviceGetComputeRunningProcesses_v3, pynvml.nvmlDeviceGetComputeRunningProcesses_v2),
    (pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2),
    (pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3, pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v2),
)


def _newest(device: Handle, call: Callable[[Handle], Any], *older: Callable[[Handle], Any]) -> Any:
    """What the first call answers that the driver has."""
    try:
        return call(device)
    except _OLDER_CALL_MAY_DO:
        if not older:
            raise
        return _newest(device, *older)


def _unless_absent(call: Callable[..., T], *arguments: Any) -> T | None:
    """What the call answers, or None where there is no such thing; every other error is raised."""
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        if error.value in _ABSENT:
            return None
        raise


def _reading(call: Callable[..., T], *arguments: Any) -> T | None:
    """What the call answers, or None if it cannot: a power sensor that errs is no reason to give up the GPU.

    Errors which say that the GPU or the session is gone are raised.
    """
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        if error.value in _BROKEN:
            raise
        if error.value not in _ABSENT:
            _log.debug("%s: %s", getattr(call, "__name__", call), error)
        return None


def _command(pid: int) -> str:
    """The process's short name (proc(5), comm); "" where it has ended or is of another pid namespace."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""
