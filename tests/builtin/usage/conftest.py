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


def schema(server: Server) -> Secret:
    """The dsn of a schema of its own, which takes much less time to make than a database."""
    name = f"usage_{next(_numbers)}"
    server.ask(f"CREATE SCHEMA {name}")
    return Secret(f"{server.dsn()} options=-csearch_path={name}")


def place(kind: str, request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    """The settings that say where an empty database of a kind is."""
    if kind == "postgres":
        return {"dsn": schema(request.getfixturevalue("server"))}
    return {"path": str(folder / "usage.db")}


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Makes settings for a database of either kind, always the same one within a test."""
    where = place(request.param, request, tmp_path)
    return lambda **more: Settings(**{"node": "here"} | where | more)
