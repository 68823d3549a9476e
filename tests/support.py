"""What tests of several floors share: waiting with a deadline, manifests on disk, small servers as processes."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from plugin_sdk import Duration, Plugin
from plugin_sdk.config import convert
from plugin_sdk.kinds import settings_of
from sidecar.core.manifest import PluginDeclaration
from sidecar.mechanism import plugins
from sidecar.mechanism.loader import Loaded, load
from sidecar.mechanism.plugins import Catalog
from sidecar.mechanism.source import read

PATIENCE_S = 10.0

T = TypeVar("T")


async def until(condition: Callable[[], T], what: str, patience_s: float = PATIENCE_S) -> T:
    """Wait until the condition holds, looking often, and return what it gave; fail by name if it never does."""
    try:
        async with asyncio.timeout(patience_s):
            while not (found := condition()):  # noqa: ASYNC110 - what is waited for happens in other processes
                await asyncio.sleep(0.005)
            return found
    except TimeoutError:
        raise AssertionError(f"never happened: {what}") from None


@contextmanager
def no_garbage() -> Iterator[None]:
    """Fail if what is done leaves anything to the garbage collector, whose cycles may hold whole requests."""
    gc.collect()
    gc.disable()
    try:
        yield
        left = gc.collect()
    finally:
        gc.enable()
    assert left == 0, f"{left} objects are left"


def write(root: Path, files: Mapping[str, str]) -> Path:
    """Write files below `root`, and return it."""
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def declare(root: Path, files: Mapping[str, str], environment: Mapping[str, str] | None = None) -> Loaded:
    """Write manifests and load them."""
    return load(read(write(root, files)), environment or {})


def model(name: str, lines: str = "", variant: str = "") -> str:
    """A model that is right in every way, with further lines of its own and of its variant."""
    return f"""
[models.{name}]
mode = "chat"
{lines}
[[models.{name}.variants]]
required_devices = ["cpu"]
memory_mb = 100
command = ["serve", "{{port}}"]
{variant}
"""


def plugin(cls: type[Plugin[Any]], name: str = "it", *, deadline_s: float = 5.0, **config: Any) -> plugins.Loaded:
    """A plugin class as the catalog has it."""
    path = f"{cls.__module__}:{cls.__name__}"
    declaration = PluginDeclaration(import_path=path, config=config, deadline=Duration(deadline_s))
    return plugins.Loaded(name, cls, declaration, convert(config, settings_of(cls)))


def catalog(*loaded: plugins.Loaded, faults: Mapping[str, str] | None = None) -> Catalog:
    """A catalog of plugins, and of reasons why others are not in it."""
    return Catalog(
        {one.name: one for one in loaded},
        {name: [plugins.PluginFault(why)] for name, why in (faults or {}).items()},
    )


class Program:
    """A small server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.children: list[int] = []
        self.port = 0
        for line in process.stdout or ():
            kind, _, number = line.partition(" ")
            if kind == "child":
                self.children.append(int(number))
            elif kind == "listening":
                self.port = int(number)
                break

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(script: str, *flags: str) -> Iterator[Program]:
    """One of `tests.servers`, listening; killed at the end."""
    with subprocess.Popen(
        [sys.executable, script, *flags], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUTF8": "1"}
    ) as process:
        try:
            program = Program(process)
            assert program.port, f"{script} {flags} ended before it listened"
            yield program
        finally:
            process.kill()


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
