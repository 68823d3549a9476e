"""`python -m tests.chaos.killed STEP TRACE ARGUMENTS...`: the sidecar, killed by SIGKILL at a side of an fsync.

Whatever is written down is brought to disk by fsync (the file, then its folder), so just before and just after each of
them are all the moments at which what is on disk differs from what is going on. STEP: which
of these moments, counted from 1. TRACE: a file that gets a line for each.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path

from sidecar.surfaces.cli import main


def install(fatal: int, trace: Path) -> None:
    """Count the steps from here on, and end this process at the fatal one."""
    really, steps = os.fsync, itertools.count(1)

    def step(side: str, name: str) -> None:
        number = next(steps)
        with trace.open("a", encoding="utf-8") as file:
            file.write(f"{number} {side} {name}\n")
        if number == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        step("before", name)
        really(descriptor)
        step("after", name)

    os.fsync = fsync  # type: ignore[assignment] # the real one also takes objects that have a descriptor


if __name__ == "__main__":
    install(int(sys.argv[1]), Path(sys.argv[2]))
    sys.argv[1:] = sys.argv[3:]
    main()
