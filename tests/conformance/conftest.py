"""One sidecar for all of these tests: each begins with connections that nobody has used."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.world import World, world
from tests.e2e.conftest import free_block


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("conformance"), free_block()) as made:
        yield made


@pytest.fixture
def here(shared_world: World) -> Iterator[World]:
    """The sidecar, its upstream, and clients of it."""
    yield shared_world
    shared_world.reset()
