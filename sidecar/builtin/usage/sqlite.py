"""An SQLite database. To be used by one thread; others may write to the same file."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from plugin_sdk import PluginError
from sidecar.builtin.usage import tables
from sidecar.builtin.usage.rows import COLUMNS, Row

CACHE_KB = 512  # of pages: rows are only added, so that more would be memory for nothing
AT_ONCE = 32  # rows in one statement: SQLite gets the interpreter out of the way once for each statement
BUSY_S = 1.0  # for a database that somebody else writes to; after that it is tried again with the next batch
LATE_S = 30.0  # for a question; one that takes longer is broken off
STEPS = 100_000  # of SQLite's machine between two looks at the clock
MOST_PUT_ASIDE = 3

HOUR = "CAST(started_s / 3600 AS INTEGER) * 3600"

_TYPED = ", ".join(f'"{name}" {kind}' for name, kind in COLUMNS.items())
_CREATE = (
    f"CREATE TABLE requests (id INTEGER PRIMARY KEY, {_TYPED})",
    "CREATE INDEX requests_by_time ON requests (started_s)",
    f"{tables.TOTALS} WITHOUT ROWID",
    tables.SERVERS,
    tables.PRICES.format(real="REAL"),
)


def _columns(*names: str) -> tuple[str, ...]:
    return tuple(f'ALTER TABLE requests ADD COLUMN "{name}" {COLUMNS[name]}' for name in names)


_UPDATES = {  # by the version that they begin with
    1: _columns("reasoning_tokens", "input_tokens_per_s", "output_tokens_per_s"),
    2: (*_columns("key", "node", "cost", "currency"), *_CREATE[2:], tables.sum_up("requests WHERE true", HOUR)),
}
_VALUES = f"({', '.join('?' * len(COLUMNS))})"
_INSERT = f"INSERT INTO requests ({tables.NAMES}) VALUES {_VALUES}"  # noqa: S608 - constants alone
_INSERT_SOME = f"{_INSERT}, {', '.join([_VALUES] * (AT_ONCE - 1))}"
_FLAGS = tuple(place for place, kind in enumerate(COLUMNS.values()) if kind.startswith("BOOLEAN"))
_MAY_LACK = tuple(place for place, kind in enumerate(COLUMNS.values()) if "NOT NULL" not in kind)
_LACKING = float("nan")  # SQLite has no such number, and stores NULL
_SUM_UP = tables.sum_up("requests WHERE id > ?", HOUR)

_RUINED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PASSES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)


class SQLite:
    """A database in a file, which is made when it is not there."""

    requests = "requests"
    hour = HOUR

    def __init__(self, path: Path, log: logging.Logger) -> None:
        self.path = path.expanduser()
        self.place = str(self.path)
        self._log = log
        self._database: sqlite3.Connection | None = None
        self._put_aside = 0

    def check(self) -> None:
        """Whether there can be a database. Raises what makes it impossible, not what may pass by itself."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(connect(self.path)) as database:
                if not _version(database):
                    update(database)
        except (OSError, sqlite3.DatabaseError) as error:
            if not self.passes(error):
                raise PluginError(f"{self.place}: {error}") from error
            self._log.error("%s cannot be written: %s: tried again soon", self.place, error)

    def connect(self) -> bool:
        """Be connected, with all tables up to date. Whether that is new. Raises sqlite3.Error and OSError."""
        if self._database is not None and not self.path.exists():  # somebody removed it: what is written would be lost
            self.disconnect()
        if self._database is not None:
            return False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        database = connect(self.path)
        try:
            if 0 < (version := _version(database)) < tables.VERSION:
                self._log.info("%s: its tables of version %d become those of %d", self.place, version, tables.VERSION)
            update(database)
        except BaseException:
            database.close()
            raise
        self._database = database
        return True

    def disconnect(self) -> None:
        """Let go of it."""
        if self._database is not None:
            self._database.close()
            self._database = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; nobody else writes meanwhile."""
        with _transaction(self._connected()):
            yield

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """What a statement gives."""
        return self._connected().execute(sql, values).fetchall()

    def changed(self, sql: str, values: Sequence[Any] = ()) -> int:
        """How many rows a statement changes."""
        return self._connected().execute(sql, values).rowcount

    def run_many(self, sql: str, rows: Iterable[Row]) -> None:
        """A statement for each."""
        self._connected().executemany(sql, rows)

    def store(self, rows: Sequence[Row]) -> None:
        """Add requests, and what they add up to."""
        with self.transaction():
            [[last]] = self.run("SELECT COALESCE(MAX(id), 0) FROM requests")
            whole = len(rows) - len(rows) % AT_ONCE
            for start in range(0, whole, AT_ONCE):
                self.run(_INSERT_SOME, _flat(rows[start : start + AT_ONCE]))
            self.run_many(_INSERT, rows[whole:])
            self.run(_SUM_UP, (last,))

    def store_apart(self, rows: Sequence[Row]) -> list[Exception]:
        """Add those that can be stored; what is wrong with the others."""
        unfit: list[Exception] = []
        with self.transaction():
            [[last]] = self.run("SELECT COALESCE(MAX(id), 0) FROM requests")
            for values in rows:
                try:
                    self.run(_INSERT, values)
                except Exception as error:
                    if self.is_ours(error):
                        raise
                    unfit.append(error)
            self.run(_SUM_UP, (last,))
        return unfit

    def is_ours(self, error: Exception) -> bool:
        """Whether the database is in trouble, not what was to be stored in it."""
        if type(error) is sqlite3.DatabaseError:  # it is corrupt, or none
            return True
        return isinstance(error, sqlite3.OperationalError | OSError | PluginError)

    def passes(self, error: Exception) -> bool:
        """Whether waiting may help: somebody else writes, or the disk is full."""
        return _code(error) in _PASSES

    def recover(self, error: Exception) -> None:
        """Go on after a failure. A file that is ruined is put aside, for people to look at, and a new one begun."""
        if self.passes(error):
            return
        self.disconnect()  # it may be another file the next time
        if _code(error) in _RUINED and self._put_aside < MOST_PUT_ASIDE:
            self._put_aside += 1
            aside = f"{self.place}.damaged-{time.time():.0f}"
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    Path(self.place + suffix).rename(aside + suffix)
            self._log.error("%s is damaged (%s): it is kept as %s, and a new one begun", self.place, error, aside)

    def _connected(self) -> sqlite3.Connection:
        if self._database is None:
            raise sqlite3.OperationalError("not connected")
        return self._database


class Reader:
    """Reads from such a database."""

    def __init__(self, path: Path) -> None:
        """Raises PluginError if there is nothing to read."""
        self._path = path
        try:
            self._database = connect_to_read(path)
        except sqlite3.Error as error:
            raise PluginError(f"{path} cannot be read: {error}") from error

    def run(self, sql: str, values: Sequence[Any] = ()) -> Generator[Row, None, None]:
        """What a statement gives, a row at a time: there may be millions. Raises PluginError."""
        try:
            yield from self._database.execute(sql, values)
        except sqlite3.Error as error:
            raise PluginError(f"{self._path} cannot be read: {error}") from error

    def close(self) -> None:
        """Let go of it."""
        self._database.close()


def connect(path: Path) -> sqlite3.Connection:
    """The database, whatever is in it. Raises sqlite3.Error, PluginError if a newer version of this program made it."""
    database = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False, isolation_level=None)
    try:
        # https://sqlite.org/wal.html: readers do not keep the writer waiting, and what is written survives the program
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(f"PRAGMA cache_size = -{CACHE_KB}")
        _check_version(path, database)
    except BaseException:
        database.close()
        raise
    return database


def connect_to_read(path: Path) -> sqlite3.Connection:
    """The same for reading alone. Raises sqlite3.Error, PluginError also if it is of an older version."""
    if not path.exists():
        raise PluginError(f"there is no {path}: nothing was recorded yet")
    # Whoever writes has such a file. Without one nothing is to be made either: not by root, nor where nobody may.
    how = "mode=ro" if Path(f"{path}-wal").exists() else "immutable=1"
    database = sqlite3.connect(
        f"{path.resolve().as_uri()}?{how}", uri=True, timeout=BUSY_S, check_same_thread=False, isolation_level=None
    )
    try:
        version = _check_version(path, database)
    except BaseException:
        database.close()
        raise
    if version < tables.VERSION:
        database.close()
        if not version:
            raise PluginError(f"there are no tables in {path}: nothing was recorded yet, or it is another file")
        raise PluginError(f"{path} has version {version}: the next sidecar that writes to it brings it up to date")
    late = time.monotonic() + LATE_S
    database.set_progress_handler(lambda: time.monotonic() > late, STEPS)
    return database


def read(path: Path, where: str = "1", *values: Any) -> list[dict[str, Any]]:
    """The rows of a database for which an SQL condition holds, in the order in which they were written."""
    with contextlib.closing(connect_to_read(path)) as database:
        database.row_factory = sqlite3.Row
        found = database.execute(f"SELECT * FROM requests WHERE {where} ORDER BY id", values)  # noqa: S608 - written by whoever calls
        return [dict(one) for one in found]


def update(database: sqlite3.Connection) -> None:
    """Bring the tables up to date."""
    if _version(database) == tables.VERSION:
        return
    with _transaction(database):
        version = _version(database)  # of two programs that begin at once, the second finds it done
        if version == 0:
            for statement in _CREATE:
                database.execute(statement)
        for number in range(version or tables.VERSION, tables.VERSION):
            for statement in _UPDATES[number]:
                database.execute(statement)
        database.execute(f"PRAGMA user_version = {tables.VERSION}")


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _flat(rows: Sequence[Row]) -> list[Any]:
    """Their values, one after the other. Python's module looks for adapters of each True and None, which takes longer
    than to store them: so there are none.
    """
    values, width = list(chain.from_iterable(rows)), len(COLUMNS)
    for place in _FLAGS:
        values[place::width] = map(int, values[place::width])
    for place in _MAY_LACK:
        values[place::width] = [_LACKING if value is None else value for value in values[place::width]]
    return values


def _check_version(path: Path, database: sqlite3.Connection) -> int:
    version = _version(database)
    if version > tables.VERSION:
        raise PluginError(f"{path} has version {version}, and this program knows none above {tables.VERSION}")
    return version


def _version(database: sqlite3.Connection) -> int:
    """0: it has no tables yet."""
    [version] = database.execute("PRAGMA user_version").fetchone()
    return int(version)


def _code(error: Exception) -> int:
    code = getattr(error, "sqlite_errorcode", None)
    return -1 if code is None else code & 0xFF
