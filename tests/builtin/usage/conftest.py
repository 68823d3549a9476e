"""A PostgreSQL server for all tests of this folder, with tables for each, and what is recorded in them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from plugin_sdk import Secret
from sidecar.builtin.usage import sqlite, writer
from sidecar.builtin.usage.settings import Settings
from tests.builtin.usage.server import Server, running

Make = Callable[..., Settings]

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are written at once, and nothing is waited for as long as in earnest."""
    monkeypatch.setattr(writer, "FLUSH_S", 0.01)
    monkeypatch.setattr(sqlite, "BUSY_S", 0.01)


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.fixture
def database(server: Server) -> str:
    """A schema of the test's own, which takes much less time to make than a database: its dsn."""
    name = f"usage_{next(_numbers)}"
    server.ask(f"CREATE SCHEMA {name}")
    return f"{server.dsn()} options=-csearch_path={name}"


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes settings for a database of either kind, always the same one within a test."""
    where: dict[str, Any] = {"path": str(tmp_path / "usage.db")}
    if request.param == "postgres":
        where = {"dsn": Secret(request.getfixturevalue("database"))}
    return lambda **more: Settings(**{"node": "here"} | where | more)
