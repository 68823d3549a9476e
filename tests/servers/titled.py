"""A program that overwrites its environment, as those do that set their title, and then forks as it is told to.

Flags: `child` forks a child, `daemon` one that leaves the session. Each forks a child of its own on SIGUSR1. Prints
`child PID` for each process that comes to be, and `ready` when it waits.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys


def overwrite_environment() -> None:
    """What /proc/PID/environ shows is memory of the process: proc(5), env_start and env_end in /proc/PID/stat."""
    with open("/proc/self/stat", encoding="utf-8") as file:  # noqa: PTH123 - as little as can be is imported here
        fields = file.read().rpartition(")")[2].split()
    begin, end = int(fields[47]), int(fields[48])
    ctypes.memset(begin, 0, end - begin)


def fork(*, own_session: bool = False) -> None:
    """A child that waits as its parent does."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        if own_session:
            os.setsid()
        os.close(reader)
        os.close(writer)
        wait()
    os.close(writer)
    os.read(reader, 1)  # ends when the child has left the session
    os.close(reader)
    print("child", pid, flush=True)


def wait() -> None:
    """For ever."""
    while True:
        signal.pause()


def main() -> None:
    """Do as the flags say, then wait."""
    overwrite_environment()
    signal.signal(signal.SIGUSR1, lambda *_: fork())
    for flag in sys.argv[1:]:
        fork(own_session=flag == "daemon")
    print("ready", flush=True)
    wait()


if __name__ == "__main__":
    main()
