"""GPUs that are not there: builds the fake NVML library (`nvml.c`) and writes the file that it plays from.

A process that is started with `FakeGpus.env(library)` sees them through the unmodified pynvml, and sees every later
change at its next call. The file's format stands at the head of `nvml.c`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

SOURCE = Path(__file__).with_name("nvml.c")
LIBRARY = "libnvidia-ml.so.1"

UNINITIALIZED, NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED = 1, 3, 4, 9
FUNCTION_NOT_FOUND, GPU_IS_LOST, LIBRARY_MISMATCH, UNKNOWN = 13, 15, 18, 999


def build(directory: Path) -> Path:
    """Compile the library into `directory`, unless it is there already; the directory is for LD_LIBRARY_PATH."""
    library = directory / LIBRARY
    if not library.exists():
        directory.mkdir(parents=True, exist_ok=True)
        unfinished = directory / f"{LIBRARY}.unfinished"
        flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]
        subprocess.run(["cc", *flags, "-o", unfinished, SOURCE, "-pthread"], check=True)
        unfinished.rename(library)
    return directory


class FakeProcess(msgspec.Struct, frozen=True):
    """A process on a GPU. used_mb: None where the driver cannot tell."""

    pid: int
    used_mb: int | None = None
    kind: Literal["compute", "graphics", "mps"] = "compute"


class Fault(msgspec.Struct, frozen=True):
    """What a call does: return `code`, after `hang_ms`. call: a name from `call_names` in nvml.c, or "*" for all."""

    call: str = "*"
    code: int = 0
    hang_ms: int = 0


class FakeGpu(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU or a MIG instance. None = not supported.

    used_mb: what processes hold, their sum when left out. instances: None = MIG mode is off.
    """

    uuid: str
    name: str = "NVIDIA H200"
    total_mb: int | None = 143771
    reserved_mb: int = 600
    used_mb: int | None = None
    utilisation_pct: int | None = 0
    temperature_c: int | None = 30
    power_mw: int | None = 70_000
    processes: tuple[FakeProcess, ...] = ()
    faults: tuple[Fault, ...] = ()
    instances: tuple[FakeGpu, ...] | None = None


class FakeGpus:
    """The machine's GPUs, in NVML's order. Every method writes the file, whole and at once."""

    def __init__(
        self, file: Path, *gpus: FakeGpu, init_code: int = 0, generation: int = 0, latch: bool = False
    ) -> None:
        self.file = file
        self.gpus = list(gpus)
        self.init_code = init_code
        self.generation = generation
        self.latch = latch
        self.write()

    def env(self, library: Path) -> dict[str, str]:
        """What a process needs in its environment to see these GPUs. library: what `build` returned."""
        return {"LD_LIBRARY_PATH": str(library), "FAKE_NVML_STATE": str(self.file)}

    def set(self, *gpus: FakeGpu) -> None:
        """Have these GPUs instead."""
        self.gpus = list(gpus)
        self.write()

    def update(self, index: int, **changes: Any) -> None:
        """Change fields of one GPU."""
        self.gpus[index] = msgspec.structs.replace(self.gpus[index], **changes)
        self.write()

    def lose(self, index: int) -> None:
        """Let a GPU fall off the bus: every call of it fails."""
        self.update(index, faults=(Fault(code=GPU_IS_LOST),))

    def restore(self, index: int) -> None:
        """Let a GPU answer again."""
        self.update(index, faults=())

    def reload_driver(self) -> None:
        """End every session that is open."""
        self.generation += 1
        self.write()

    def set_init_code(self, code: int) -> None:
        """What the next nvmlInit returns."""
        self.init_code = code
        self.write()

    def write(self) -> None:
        """Write the file, by rename, so that no reader sees half of it."""
        unfinished = self.file.with_suffix(".unfinished")
        unfinished.write_text("".join(f"{line}\n" for line in self._lines()))
        unfinished.replace(self.file)

    def _lines(self) -> Iterator[str]:
        yield f"init {self.init_code}"
        yield f"generation {self.generation}"
        if self.latch:
            yield "latch"
        for gpu in self.gpus:
            yield f"gpu {gpu.uuid}"
            yield from _details(gpu)
            for instance in gpu.instances or ():
                yield f"instance {instance.uuid}"
                yield from _details(instance)


def _details(gpu: FakeGpu) -> Iterator[str]:
    yield f"name {gpu.name}"
    if gpu.total_mb is not None:
        used_mb = sum(process.used_mb or 0 for process in gpu.processes) if gpu.used_mb is None else gpu.used_mb
        yield f"memory {gpu.total_mb} {gpu.reserved_mb} {used_mb}"
    if gpu.instances is not None:
        yield "mig"
    sensors = {"utilisation": gpu.utilisation_pct, "temperature": gpu.temperature_c, "power": gpu.power_mw}
    yield from (f"{name} {value}" for name, value in sensors.items() if value is not None)
    for process in gpu.processes:
        yield f"{process.kind} {process.pid} {'-' if process.used_mb is None else process.used_mb}"
    for fault in gpu.faults:
        if fault.code:
            yield f"fail {fault.call} {fault.code}"
        if fault.hang_ms:
            yield f"hang {fault.call} {fault.hang_ms}"
