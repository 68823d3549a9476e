"""Admit the callers whose key is active in a table of a SQLite database.

    python database_auth.py auth.db add ann --expires 2027-01-31    # makes the table if need be, and prints a new key
    python database_auth.py auth.db deactivate ann                  # in force from the next request on

Whoever has a database already needs no more than the table that SCHEMA makes. It holds hashes, never keys: a key's is
what `printf %s KEY | sha256sum` prints.

sqlite3 blocks. That is no problem in a plain `def`, which the sidecar runs in threads of this plugin's own. A database
that is missing, locked or damaged is an error like any other: whatever an auth plugin raises refuses the request with
503, and `sidecar plugin list` shows the last one. So nothing is caught here to be on the safe side.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import hashlib
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from plugin_sdk import Auth, Config, Duration, Principal, Reject, Request

# WAL (https://sqlite.org/wal.html) stays with the file: whoever writes keeps no reader waiting. In turn, the sidecar
# has to be allowed to write to the folder, even though it only reads.
SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS api_keys (
    key_hash TEXT PRIMARY KEY,              -- SHA-256 in hexadecimal digits
    user     TEXT NOT NULL,
    active   INTEGER NOT NULL DEFAULT 1,
    expires  TEXT                           -- its last day in UTC, such as 2027-01-31; NULL = never
);
"""

_FIND = "SELECT user, active, expires < date('now') FROM api_keys WHERE key_hash = ?"
_ADD = "INSERT INTO api_keys (key_hash, user, expires) VALUES (?, ?, ?)"
_DEACTIVATE = "UPDATE api_keys SET active = 0 WHERE user = ? AND active"


class Settings(Config):
    """db_path: of the database; a relative one is looked for in the sidecar's state directory.

    patience: how long a locked database is waited for. Keep it well below the deadline of the plugin's table.
    """

    db_path: str = "auth.db"
    patience: Duration = Duration(0.25)

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise ValueError("patience cannot be less than nothing")


class DatabaseAuth(Auth[Settings]):
    """Looks each key up when it is used, so that a change needs no reload."""

    _connections: Connections | None = None

    async def open(self) -> None:
        """Say at once, and not with the first request, if there is no database; one may come to be later."""
        self._connections = Connections(self._path(), self.config.patience)
        try:
            await asyncio.to_thread(self._find, "")
        except (sqlite3.Error, OSError) as error:
            self.log.warning("nobody gets in as long as it is so: %s: %s", self._connections.path, error)

    async def close(self) -> None:
        if self._connections is not None:
            self._connections.close()

    def authenticate(self, request: Request) -> Principal:
        found = self._find(hashed(request.bearer_token))
        if found is None:
            raise Reject(401, "the API key is not known")
        user, active, expired = found
        if not active or expired:
            raise Reject(401, "the API key has expired" if active else "the API key is not active any more")
        return Principal(user)

    def _path(self) -> Path:
        path = Path(self.config.db_path).expanduser()
        return path if path.is_absolute() else self.state_dir / path

    def _find(self, key_hash: str) -> tuple[str, int, int | None] | None:
        assert self._connections is not None, "open() comes first"
        with self._connections.one() as database:
            found: tuple[str, int, int | None] | None = database.execute(_FIND, (key_hash,)).fetchone()
            return found


class Connections:
    """Read-only connections to one database. Each is one thread's at a time, so there are never more than threads."""

    def __init__(self, path: Path, patience_s: float) -> None:
        self.path = path
        self._patience_s = patience_s
        self._idle: list[tuple[sqlite3.Connection, tuple[int, int]]] = []  # append and pop are safe in threads
        self._closed = False

    @contextmanager
    def one(self) -> Iterator[sqlite3.Connection]:
        """A connection to use, once more if all went well with it. Raises sqlite3.Error or OSError if there is none."""
        stat = self.path.stat()
        file = (stat.st_dev, stat.st_ino)
        database = self._reused(file) or self._connect()
        try:
            yield database
        except BaseException:
            database.close()
            raise
        self._idle.append((database, file))
        if self._closed:  # meanwhile: it was a slow query, or a long wait for a lock
            self.close()

    def close(self) -> None:
        """Close those that nobody uses, and the others as they are given back."""
        self._closed = True
        while self._idle:
            self._idle.pop()[0].close()

    def _reused(self, file: tuple[int, int]) -> sqlite3.Connection | None:
        """One that is open, unless another file has taken the place of its own: there, keys may have been revoked."""
        try:
            database, opened = self._idle.pop()
        except IndexError:
            return None
        if opened == file:
            return database
        database.close()
        return None

    def _connect(self) -> sqlite3.Connection:
        address = f"{self.path.absolute().as_uri()}?mode=ro"
        return sqlite3.connect(address, uri=True, timeout=self._patience_s, check_same_thread=False)


def hashed(key: str) -> str:
    """What the table has in place of a key. Keys are long and random, so there is no need of salt."""
    return hashlib.sha256(key.encode()).hexdigest()


def add(path: Path, user: str, expires: datetime.date | None = None) -> str:
    """A new key of a user's. It is nowhere else: who loses it needs another."""
    key = f"sk-{secrets.token_urlsafe(32)}"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(SCHEMA)
        with database:  # a transaction
            database.execute(_ADD, (hashed(key), user, expires.isoformat() if expires else None))
    return key


def deactivate(path: Path, user: str) -> int:
    """Take all keys of a user's out of use. How many those were."""
    with closing(sqlite3.connect(path)) as database, database:
        return database.execute(_DEACTIVATE, (user,)).rowcount


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Keys in a SQLite database.")
    parser.add_argument("database", type=Path)
    parser.add_argument("verb", choices=("add", "deactivate"))
    parser.add_argument("user")
    parser.add_argument("--expires", type=datetime.date.fromisoformat, metavar="YYYY-MM-DD")
    given = parser.parse_args()
    if given.verb == "add":
        print(add(given.database, given.user, given.expires))
    else:
        print(f"{deactivate(given.database, given.user)} keys of {given.user} are not active any more")


if __name__ == "__main__":
    main()
