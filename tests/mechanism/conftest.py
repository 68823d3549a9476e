"""Fixtures of this floor."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from sidecar.mechanism.instance import Instance
from sidecar.mechanism.plugins import Loaded

Opened = Callable[[Loaded], Awaitable[Instance]]


def block_until(named: Callable[[], object]) -> None:
    """Hold up the loop until the watchdog has said so, which on a busy machine may take its time."""
    while not named():
        time.sleep(0.01)


@pytest.fixture
async def opened() -> AsyncIterator[Opened]:
    """`await opened(loaded)` makes and opens an instance, which is closed at the end."""
    instances: list[Instance] = []

    async def make(loaded: Loaded) -> Instance:
        instance = Instance(loaded.name, loaded)
        instances.append(instance)
        await instance.open()
        return instance

    yield make
    for instance in instances:
        await instance.close()


@pytest.fixture
def _own_imports() -> Iterator[None]:
    """What a test imports from its own folder is forgotten afterwards."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in sys.modules.keys() - modules:
        if not (getattr(sys.modules[name], "__file__", None) or "").startswith(sys.prefix):
            del sys.modules[name]
    importlib.invalidate_caches()
