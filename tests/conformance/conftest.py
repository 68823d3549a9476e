"""One sidecar for all of these tests: each begins with connections that nobody has used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.conformance.world import World, world
from tests.e2e.conftest import free_block


class Worlds:
    """The world of the session; another one once its sidecar hangs, so that one test fails for it and not all."""

    def __init__(self, folders: pytest.TempPathFactory, extra: str = "") -> None:
        self._folders = folders
        self._extra = extra
        self._stack = ExitStack()
        self._current: World | None = None

    def current(self) -> World:
        """A world whose sidecar answers."""
        if self._current is None or self._current.hangs:
            self.close()
            made = world(self._folders.mktemp("conformance"), free_block(), self._extra)
            self._current = self._stack.enter_context(made)
        return self._current

    def close(self) -> None:
        """End it."""
        self._stack.close()
        self._current = None


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    made = Worlds(tmp_path_factory)
    yield made
    made.close()


@pytest.fixture
def here(worlds: Worlds) -> Iterator[World]:
    """The sidecar, its upstream, and clients of it."""
    current = worlds.current()
    yield current
    if not current.hangs:
        current.reset()
