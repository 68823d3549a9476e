"""Run as a program, with the standard library alone: import a module inside a running loop, and tell what that started.

The argument is JSON: path (for sys.path), module, file (where the module cannot be found by its name).
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import sys
import threading
from pathlib import Path

MARK = "imported:"


def load(module: str, file: str) -> None:
    """Import by name, or by place, as drop-in files are."""
    if module != "__main__" and importlib.util.find_spec(module) is not None:
        importlib.import_module(module)
        return
    spec = importlib.util.spec_from_file_location("dropped_in", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no module")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def sockets() -> int:
    """How many are open."""
    found = 0
    for link in Path("/proc/self/fd").glob("*"):
        try:
            found += str(link.readlink()).startswith("socket:")
        except OSError:  # the one that the directory was read with
            continue
    return found


def children() -> bool:
    """Whether there are processes below this one."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


async def main(path: list[str], module: str, file: str) -> list[str]:
    """What was started."""
    sys.path[:] = path
    open_before = sockets()
    try:
        load(module, file)
    except BaseException as error:  # noqa: BLE001 - told to whoever asked, sys.exit() as well
        return [f"{type(error).__name__}: {error}"]
    started = [f"the thread {thread.name}" for thread in threading.enumerate() if thread is not threading.main_thread()]
    started += ["a task" for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    started += ["a socket"] * (sockets() - open_before)
    started += ["a process"] * children()
    return started


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    told = asyncio.run(main(asked["path"], asked["module"], asked["file"]))
    sys.stdout.write(f"\n{MARK}{json.dumps(told)}\n")
    sys.stdout.flush()
    os._exit(0)  # whatever it started must not keep this program
