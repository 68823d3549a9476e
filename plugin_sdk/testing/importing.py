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
DROPPED_IN = "dropped_in"


def load(module: str, file: str) -> None:
    """Import by name, or by place, as drop-in files are. What lies beside it can be imported, as the sidecar has it."""
    place, below = outermost(Path(file))
    sys.path.append(str(place.parent))
    if is_known(module):
        importlib.import_module(module)
        return
    spec = importlib.util.spec_from_file_location(DROPPED_IN, place / "__init__.py" if below else place)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no module")
    sys.modules[DROPPED_IN] = found = importlib.util.module_from_spec(spec)  # where dataclasses look for their module
    spec.loader.exec_module(found)
    if below and below != ["__init__"]:
        importlib.import_module(".".join((DROPPED_IN, *below)))


def outermost(file: Path) -> tuple[Path, list[str]]:
    """The file itself; or the outermost package that it is in, and the names that lead from there to it."""
    place, below = file, list[str]()
    while (place.parent / "__init__.py").is_file():
        below.insert(0, place.stem)
        place = place.parent
    return place, below


def is_known(module: str) -> bool:
    """Whether the module can be imported by its name."""
    try:
        return module != "__main__" and importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package above it is not there
        return False


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
