"""Fixtures: the end-to-end tests' own, and manifests whose two models do not fit at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.world import Manifests, marked
from tests.e2e.conftest import free_block, run
from tests.e2e.harness import llama, settings, stub

__all__ = ["rivals", "run"]

SMALL = """
[devices.small]
match = { class = "cpu" }
memory_mb = 500
"""

Rivals = Callable[[str], Manifests]


@pytest.fixture
def rivals(tmp_path: Path) -> Rivals:
    """`rivals("stub")` or `rivals("llama")`: models a and b, of which the one has to go for the other."""

    def manifests(engine: str) -> Manifests:
        model = llama if engine == "llama" else stub
        base = settings(tmp_path / "state", free_block()) + SMALL
        files = {f"{name}.toml": model(name, memory_mb=300, model='min_residency = "0s"') for name in "ab"}
        return {"sidecar.toml": base, **files}

    return manifests


@pytest.fixture(autouse=True)
def _no_orphans(tmp_path: Path) -> Iterator[None]:
    """A test that fails leaves no server behind, either: frozen ones would hold their memory for ever."""
    yield
    for pids in marked(tmp_path).values():
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
