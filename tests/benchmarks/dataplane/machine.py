"""The machine: which core does what, how much CPU time and memory processes take, and what to tell about it."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

_LIBC = ctypes.CDLL(None, use_errno=True)
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Of the columns in proc_stat(5): idle, iowait; irq and softirq, which may be the work of our own packets; and guest
# times, which are in user's. Steal counts: it is the host's, or another machine's on it.
_NOT_BUSY = (3, 4, 5, 6, 8, 9)


class Cores(msgspec.Struct, frozen=True):
    """The proxy's core, and that of the load, the stub and this program. None = not pinned."""

    proxy: int | None
    load: int | None

    @classmethod
    def available(cls) -> Cores:
        """The first two that there are; with one alone nothing can be pinned."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[0], cores[1]) if len(cores) > 1 else cls(None, None)


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """What is started meanwhile runs on this core alone, from its first instruction on."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def allow_many_files() -> None:
    """Raise the limit of open files as far as it goes: 2,000 streams take 4,000 in a proxy."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def cpu_s(pid: int) -> float:
    """CPU time of a process and all its threads so far, to the microsecond. Raises ProcessLookupError."""
    clock = ctypes.c_int()
    if code := _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise ProcessLookupError(code, os.strerror(code))
    return time.clock_gettime(clock.value)


def rss_mb(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(f"process {pid} has ended")


def busy_s(cores: Cores) -> float:
    """How long these cores (all, if nothing is pinned) have worked, for anybody, this machine or its host."""
    names = {f"cpu{core}" for core in (cores.proxy, cores.load) if core is not None} or {"cpu"}
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *counts = line.split()
        if name in names:
            ticks += sum(int(count) for at, count in enumerate(counts) if at not in _NOT_BUSY)
    return ticks / _TICKS_PER_S


class Window:
    """What happened between now and `close`: seconds, CPU time of each process, and what others took of the cores."""

    def __init__(self, cores: Cores, pids: Iterable[int]) -> None:
        self._cores = cores
        self._pids = (os.getpid(), *pids)
        self._began = time.monotonic()
        self._busy = busy_s(cores)
        self._cpu = {pid: cpu_s(pid) for pid in self._pids}
        self.seconds = self.others = 0.0
        self.cpu: dict[int, float] = {}

    def close(self) -> None:
        """It ends now."""
        self.seconds = time.monotonic() - self._began
        self.cpu = {pid: cpu_s(pid) - self._cpu[pid] for pid in self._pids}
        self.others = max(0.0, (busy_s(self._cores) - self._busy - sum(self.cpu.values())) / self.seconds)


def facts() -> dict[str, str]:
    """What a reader of the figures wants to know about the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
