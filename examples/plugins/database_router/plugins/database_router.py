"""Models that stand in a table of a SQLite database: where each is, under which name, with whose key.

    python database_router.py models.db add gpt-oss https://llm.example.com --key-env LLM_KEY --timeout 60
    python database_router.py models.db remove gpt-oss

A row counts from the next request on; nothing is reloaded. The table names the environment variable that holds a key,
never the key.

sqlite3 blocks. That is no problem in a plain `def`, which the sidecar runs in threads of this plugin's own. A database
that is missing, locked or damaged is an error like any other: requests for its models get 503, and the declared ones go
on. So nothing is caught here to be on the safe side.
"""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from plugin_sdk import Config, Duration, ModelInfo, Request, Route, Secret, Target

# WAL (https://sqlite.org/wal.html): whoever writes keeps no reader waiting. It is a property of the file.
SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS models (
    name      TEXT PRIMARY KEY,                             -- what clients ask for
    base_url  TEXT NOT NULL,                                -- without /v1
    upstream  TEXT,                                         -- what the server calls it; NULL = the same
    key_env   TEXT,                                         -- the variable that holds the server's key; NULL = none
    timeout_s REAL,                                         -- for the head of an answer; NULL = for ever
    created   INTEGER NOT NULL DEFAULT (strftime('%s', 'now'))
);
"""

_LIST = "SELECT name, created FROM models ORDER BY name"
_FIND = "SELECT base_url, upstream, key_env, timeout_s FROM models WHERE name = ?"
_ADD = "INSERT INTO models (name, base_url, upstream, key_env, timeout_s) VALUES (?, ?, ?, ?, ?)"
_REMOVE = "DELETE FROM models WHERE name = ?"


class Settings(Config):
    """db_path: of the database; a relative one is looked for in the sidecar's state directory.

    patience: how long a locked database is waited for. Keep it well below the deadline of the plugin's table.
    """

    db_path: str = "models.db"
    patience: Duration = Duration(0.25)


class DatabaseRouter(Route[Settings]):
    """Looks each model up when it is asked for, so that a change needs no reload."""

    def models(self) -> list[ModelInfo]:
        return [ModelInfo(name=name, owned_by=self.name, created=created) for name, created in self._rows(_LIST)]

    def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target | None:
        if targets:
            return None  # a manifest declares the model, and has servers for it
        for base_url, upstream, key_env, timeout_s in self._rows(_FIND, request.model):
            return Target(
                name=self.name,
                base_url=base_url,
                model=upstream or request.model,
                api_key=Secret.resolve({"env": key_env}) if key_env else None,
                timeout_s=timeout_s,
            )
        return None

    def _rows(self, query: str, *values: str) -> Sequence[tuple[Any, ...]]:
        """What the database says. A connection takes less time than a request, and each thread needs its own."""
        path = Path(self.config.db_path).expanduser()
        path = path if path.is_absolute() else self.state_dir / path
        address = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=self.config.patience)) as database:
            return database.execute(query, values).fetchall()


def add(
    path: Path,
    name: str,
    base_url: str,
    *,
    upstream: str | None = None,
    key_env: str | None = None,
    timeout_s: float | None = None,
) -> None:
    """A new model; the table is made if need be."""
    with closing(sqlite3.connect(path)) as database:
        database.executescript(SCHEMA)
        with database:  # a transaction
            database.execute(_ADD, (name, base_url, upstream, key_env, timeout_s))


def remove(path: Path, name: str) -> int:
    """Take a model out. How many rows those were."""
    with closing(sqlite3.connect(path)) as database, database:
        return database.execute(_REMOVE, (name,)).rowcount


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Models in a SQLite database.")
    parser.add_argument("database", type=Path)
    verbs = parser.add_subparsers(dest="verb", required=True)
    adding = verbs.add_parser("add")
    adding.add_argument("name")
    adding.add_argument("base_url", help="such as https://llm.example.com, without /v1")
    adding.add_argument("--upstream", help="what the server calls it")
    adding.add_argument("--key-env", help="the environment variable that holds the server's key")
    adding.add_argument("--timeout", type=float, help="seconds to wait for the head of an answer")
    verbs.add_parser("remove").add_argument("name")
    given = parser.parse_args()
    if given.verb == "add":
        settings = {"upstream": given.upstream, "key_env": given.key_env, "timeout_s": given.timeout}
        add(given.database, given.name, given.base_url, **settings)
    else:
        print(f"{remove(given.database, given.name)} models called {given.name} are gone")


if __name__ == "__main__":
    main()
