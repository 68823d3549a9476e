"""Fixtures: sidecars that run on a test's own manifests, each with ports and state of its own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.harness import Sidecar, running, settings

Run = Callable[..., Sidecar]

_BLOCK = itertools.count()


def free_block() -> str:
    """A port range that no other test of this process uses, and that differs between processes."""
    first = 20000 + (os.getpid() % 400) * 50 + next(_BLOCK) % 2 * 25
    return f"{first}-{first + 24}"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """`run(models, settings=..., files=..., env=...)` starts a sidecar and returns it."""
    with ExitStack() as stack:

        def start(
            *models: str,
            extra: str = "",
            files: Mapping[str, str] | None = None,
            env: Mapping[str, str] | None = None,
        ) -> Sidecar:
            manifests = {"sidecar.toml": settings(tmp_path / "state", free_block(), extra), **(files or {})}
            manifests |= {f"model-{index}.toml": text for index, text in enumerate(models)}
            return stack.enter_context(running(tmp_path, manifests, env))

        yield start
