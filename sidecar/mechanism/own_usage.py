"""What this process takes of the machine, from /proc/self (proc(5))."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import msgspec

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SELF = Path("/proc/self")

# Fields of /proc/self/stat, counted from the one after the name.
_THREADS, _STARTED, _VIRTUAL, _RESIDENT = 17, 19, 20, 21


class OwnUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Memory in bytes; most_files: None = no limit; started_unix: to a hundredth of a second."""

    cpu_s: float
    resident: int
    virtual: int
    files: int
    most_files: int | None
    threads: int
    started_unix: float


def own_usage() -> OwnUsage:
    """As it is now. Reads files of the kernel's, which do not block. Raises OSError without /proc."""
    fields = (_SELF / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    times = os.times()
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return OwnUsage(
        cpu_s=times.user + times.system,
        resident=int(fields[_RESIDENT]) * _PAGE,
        virtual=int(fields[_VIRTUAL]),
        files=len(list((_SELF / "fd").iterdir())) - 1,  # the one with which they are listed
        most_files=None if soft == resource.RLIM_INFINITY else soft,
        threads=int(fields[_THREADS]),
        started_unix=round(_booted_unix() + int(fields[_STARTED]) / _TICKS, 2),
    )


def _booted_unix() -> float:
    for line in Path("/proc/stat").read_text(encoding="utf-8").splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    raise OSError("/proc/stat does not say when the machine was booted")
