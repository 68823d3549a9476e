"""A row for each request, in SQLite: who asked which model for what, how it ended, how long it took, and its tokens.

Rows are written by a thread of the plugin's own, some at a time, so that no request ever waits for a disk. Of what was
recorded, at most the last second is lost when the program is killed.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

from plugin_sdk import Config, Duration, Outcome, PluginError, Stats, inline

SCHEMA_VERSION = 2
FLUSH_S = 0.25
AT_ONCE = 32  # rows in one statement: SQLite gets the interpreter out of the way once for each statement
BUSY_S = 1.0  # for a database that somebody else writes to; after that it is tried again with the next batch
CLOSE_S = 5.0
PRUNE_EVERY_S = 600.0
PRUNE_ROWS = 5_000  # in one go, so that others get their turn

_ASKED = {
    "started_s": "REAL NOT NULL",  # unix time
    "duration_s": "REAL NOT NULL",
    "queue_s": "REAL NOT NULL",
    "first_byte_s": "REAL",
    "principal": "TEXT NOT NULL",
    "model": "TEXT NOT NULL",
    "variant": "TEXT NOT NULL",
    "mode": "TEXT NOT NULL",
    "path": "TEXT NOT NULL",
    "end": "TEXT NOT NULL",
    "status": "INTEGER NOT NULL",
    "code": "TEXT NOT NULL",
    "streamed": "INTEGER NOT NULL",
    "cold": "INTEGER NOT NULL",
}
_TOKENS = {
    "input_tokens": "INTEGER",  # NULL: the server did not tell
    "output_tokens": "INTEGER",
    "cached_tokens": "INTEGER",
    "reasoning_tokens": "INTEGER",
    "input_tokens_per_s": "REAL",
    "output_tokens_per_s": "REAL",
    "response_model": "TEXT",
}
_SENT = {
    "bytes_in": "INTEGER NOT NULL",
    "bytes_out": "INTEGER NOT NULL",
    "trace_id": "TEXT NOT NULL",
}
COLUMNS = {**_ASKED, **_TOKENS, **_SENT}

_asked = attrgetter(*("end.value" if name == "end" else name for name in _ASKED))
_tokens = attrgetter(*_TOKENS)
_sent = attrgetter(*_SENT)
_NOT_TOLD = (None,) * len(_TOKENS)

_NAMES = ", ".join(f'"{name}"' for name in COLUMNS)  # quoted, because END is a word of SQL
_TYPED = ", ".join(f'"{name}" {kind}' for name, kind in COLUMNS.items())
_CREATE = (
    f"CREATE TABLE requests (id INTEGER PRIMARY KEY, {_TYPED})",
    "CREATE INDEX requests_by_time ON requests (started_s)",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_SINCE_VERSION_1 = ("reasoning_tokens", "input_tokens_per_s", "output_tokens_per_s")
_UPDATE = (
    *(f'ALTER TABLE requests ADD COLUMN "{name}" {COLUMNS[name]}' for name in _SINCE_VERSION_1),
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)
_VALUES = f"({', '.join('?' * len(COLUMNS))})"
_INSERT = f"INSERT INTO requests ({_NAMES}) VALUES {_VALUES}"  # noqa: S608 - constants alone
_INSERT_SOME = f"{_INSERT}, {', '.join([_VALUES] * (AT_ONCE - 1))}"
_PRUNE = "DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE started_s < ? ORDER BY started_s LIMIT ?)"


class Settings(Config):
    """path: of the database; "" = `NAME.db` in the state directory. retention: how long a row is kept, 0 = for ever.

    queue: how many outcomes may wait to be written, as for a database that is locked; more are dropped and counted.
    """

    path: str = ""
    retention: Duration = Duration(90 * 86_400)
    queue: int = 10_000

    def __post_init__(self) -> None:
        if self.queue < 1:
            raise ValueError("queue must be 1 or more")


class Usage(Stats[Settings]):
    """Keep a row for each request. It never fails on account of its database: what cannot be written is dropped."""

    async def open(self) -> None:
        """Raises PluginError if there can be no database at that place, or it is of a newer version than this one."""
        path = self.config.path or str(self.state_dir / f"{self.name}.db")
        self._writer = Writer(path, self.config, self.log)
        await asyncio.to_thread(self._writer.start)

    async def close(self) -> None:
        """Write what waits to be written, within a deadline."""
        writer: Writer | None = getattr(self, "_writer", None)  # `open` may never have come to it
        if writer is not None:
            await asyncio.to_thread(writer.stop)

    @inline
    def record(self, outcome: Outcome) -> None:
        """Hand it over to the thread that writes."""
        self.record_many((outcome,))

    @inline
    def record_many(self, outcomes: Sequence[Outcome]) -> None:
        """The same of several."""
        excess = self._writer.put(outcomes)
        if excess:
            self.metrics.count("dropped", excess)

    @property
    def dropped(self) -> int:
        """Outcomes that could not be kept."""
        return self._writer.dropped


class Writer:
    """Writes outcomes to a database in a thread of its own. dropped: how many could not be kept."""

    def __init__(self, path: str, config: Settings, log: logging.Logger) -> None:
        self.path = Path(path).expanduser()
        self.dropped = 0
        self._config = config
        self._log = log
        self._lock = threading.Lock()
        self._waiting: list[Outcome] = []
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._database: sqlite3.Connection | None = None
        self._problem = ""
        self._pruned_at = -PRUNE_EVERY_S

    def start(self) -> None:
        """See whether the database can be had, and begin. One that is locked just now is waited for later."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connect(self.path).close()
        except sqlite3.OperationalError as error:
            if not _passes(error):
                raise PluginError(f"{self.path}: {error}") from error
            self._say(f"{error}: tried again soon")
        except (OSError, sqlite3.DatabaseError) as error:
            raise PluginError(f"{self.path}: {error}") from error
        thread = threading.Thread(target=self._run, name=f"usage {self.path.name}", daemon=True)
        thread.start()
        self._thread = thread  # not before: an `open` that is cancelled is closed meanwhile, and that joins it

    def put(self, outcomes: Sequence[Outcome]) -> int:
        """Take them, never waiting; for how many there was no room left."""
        with self._lock:
            room = self._config.queue - len(self._waiting)
            self._waiting += outcomes[:room]
            many = 2 * len(self._waiting) > self._config.queue
        self._wake.set()
        if many:
            self._hurry.set()
        excess = len(outcomes) - room
        if excess <= 0:
            return 0
        self._drop(excess, "there is no room left for what waits to be written")
        return excess

    def stop(self) -> None:
        """Write what waits, and end; after the deadline without it."""
        self._stopping.set()
        self._wake.set()
        self._hurry.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():
                self._log.warning("%s: what waits to be written is lost, because the database hangs", self.path)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(PRUNE_EVERY_S)
            self._hurry.wait(FLUSH_S)  # more may come, to be written along with the first
            self._wake.clear()
            self._hurry.clear()
            self._flush()
            self._prune()
        lost = len(self._flush())
        if lost:
            self._drop(lost, "it was closed")
        self._disconnect()

    def _flush(self) -> list[Outcome]:
        """Write what waits. What could not be written waits on, and is given back."""
        with self._lock:
            batch, self._waiting = self._waiting, []
        if not batch:
            return []
        try:
            self._write(batch)
        except Exception as error:  # noqa: BLE001 - told and counted; the thread has to go on
            self._failed(error, batch)
            return batch
        self._problem = ""
        return []

    def _write(self, batch: list[Outcome]) -> None:
        """Write them in one go; without those that cannot be stored, now or ever, which are dropped."""
        database = self._connected()
        try:
            with database:  # a transaction
                whole = len(batch) - len(batch) % AT_ONCE
                for start in range(0, whole, AT_ONCE):
                    database.execute(_INSERT_SOME, list(chain.from_iterable(map(row, batch[start : start + AT_ONCE]))))
                database.executemany(_INSERT, map(row, batch[whole:]))
        except Exception as error:
            if _is_of_the_database(error):
                raise
            unfit = _write_apart(database, batch)
            for why in unfit:
                self._drop(1, f"one cannot be stored: {why}")

    def _failed(self, error: Exception, batch: list[Outcome]) -> None:
        self._say(str(error))
        if not _passes(error):
            self._disconnect()  # it may be another file the next time
        with self._lock:
            waiting = batch + self._waiting
            self._waiting, excess = waiting[: self._config.queue], waiting[self._config.queue :]
        self._wake.set()
        if excess:
            self._drop(len(excess), str(error))

    def _prune(self) -> None:
        """Forget what is older than it has to be kept."""
        if self._config.retention <= 0 or time.monotonic() - self._pruned_at < PRUNE_EVERY_S:
            return
        oldest = time.time() - self._config.retention
        try:
            database = self._connected()
            with database:
                forgotten = database.execute(_PRUNE, (oldest, PRUNE_ROWS)).rowcount
        except (sqlite3.Error, OSError, PluginError) as error:
            self._say(str(error))
            return
        if forgotten == PRUNE_ROWS:
            self._wake.set()  # there are more, for which it is the turn again after the next rows are written
        else:
            self._pruned_at = time.monotonic()

    def _connected(self) -> sqlite3.Connection:
        if self._database is not None and not self.path.exists():  # somebody removed it: what is written would be lost
            self._disconnect()
        if self._database is None:
            self._database = connect(self.path)
        return self._database

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _drop(self, count: int, why: str) -> None:
        with self._lock:
            before, self.dropped = self.dropped, self.dropped + count
        if len(str(before)) < len(str(self.dropped)) or before == 0:  # at 1, 10, 100, ...
            self._log.error("%s: %d outcomes were dropped so far: %s", self.path, self.dropped, why)

    def _say(self, problem: str) -> None:
        if problem != self._problem:
            self._log.error("%s cannot be written: %s", self.path, problem)
        self._problem = problem


def connect(path: Path) -> sqlite3.Connection:
    """The database, with its tables. Raises sqlite3.Error, PluginError if a newer version of this program made it."""
    database = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False)
    try:
        # https://sqlite.org/wal.html: readers do not keep the writer waiting, and what is written survives the program
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        version = _version(database)
        if version > SCHEMA_VERSION:
            raise PluginError(f"{path} has version {version}, and this program knows none above {SCHEMA_VERSION}")
        if version < SCHEMA_VERSION:
            _update(database)
    except BaseException:
        database.close()
        raise
    return database


def _write_apart(database: sqlite3.Connection, batch: list[Outcome]) -> list[Exception]:
    """Write those that can be stored, one by one; what was wrong with the others."""
    unfit: list[Exception] = []
    with database:
        for outcome in batch:
            try:
                database.execute(_INSERT, [_storable(value) for value in row(outcome)])
            except Exception as error:
                if _is_of_the_database(error):
                    raise
                unfit.append(error)
    return unfit


def _update(database: sqlite3.Connection) -> None:
    with database:
        database.execute("BEGIN IMMEDIATE")  # of two programs that begin at once, the second finds it done
        statements = {0: _CREATE, 1: _UPDATE}.get(_version(database), ())
        for statement in statements:
            database.execute(statement)


def _version(database: sqlite3.Connection) -> int:
    """0: it has no tables yet."""
    [version] = database.execute("PRAGMA user_version").fetchone()
    return int(version)


def row(outcome: Outcome) -> tuple[Any, ...]:
    """The values of an outcome, as COLUMNS has them."""
    usage = outcome.usage
    found: tuple[Any, ...] = _asked(outcome) + (_NOT_TOLD if usage is None else _tokens(usage)) + _sent(outcome)
    return found


def _storable(value: Any) -> Any:
    """What SQLite can hold: names and counts may come from tokens and servers that make up anything."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return max(-(2**63), min(value, 2**63 - 1)) if isinstance(value, int) else value


def read(path: Path, where: str = "1", *values: Any) -> list[dict[str, Any]]:
    """The rows of a database for which an SQL condition holds, in the order in which they were written."""
    database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)
    try:
        database.row_factory = sqlite3.Row
        found = database.execute(f"SELECT * FROM requests WHERE {where} ORDER BY id", values)  # noqa: S608 - written by whoever calls
        return [dict(one) for one in found]
    finally:
        database.close()


def _is_of_the_database(error: Exception) -> bool:
    """Whether the database is in trouble, not what was to be stored in it."""
    if type(error) is sqlite3.DatabaseError:  # it is corrupt, or none
        return True
    return isinstance(error, sqlite3.OperationalError | OSError | PluginError)


def _passes(error: Exception) -> bool:
    """Whether waiting may help: somebody else writes, or the disk is full."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and (code & 0xFF) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL)
