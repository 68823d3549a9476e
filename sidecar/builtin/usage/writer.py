"""Writes outcomes, and for how long servers were loaded, to a database: in a thread of its own, some at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from plugin_sdk import LoadedServer, Outcome
from sidecar.builtin.usage import books
from sidecar.builtin.usage.rows import Row, storable
from sidecar.builtin.usage.settings import Settings

FLUSH_S = 0.25
RETRY_S = 2.0  # at most, between two tries of what failed
CLOSE_S = 5.0
TIDY_EVERY_S = 600.0
AT_ONCE = 5000  # outcomes in a transaction
MANY = 500  # outcomes that wait are written at once: more of them would take memory, which is never all given back
MOST_SERVERS = 1000  # that wait to be written


class Database(Protocol):
    """What the writer asks of a database. place: which one it is, for logs."""

    place: str
    requests: str
    hour: str

    def check(self) -> None: ...

    def connect(self) -> bool: ...

    def disconnect(self) -> None: ...

    def transaction(self) -> AbstractContextManager[None]: ...

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[Row]: ...

    def changed(self, sql: str, values: Sequence[Any] = ()) -> int: ...

    def run_many(self, sql: str, rows: Sequence[Row]) -> None: ...

    def store(self, rows: Sequence[Row]) -> None: ...

    def store_apart(self, rows: Sequence[Row]) -> list[Exception]: ...

    def is_ours(self, error: Exception) -> bool: ...

    def passes(self, error: Exception) -> bool: ...

    def recover(self, error: Exception) -> None: ...


class Writer:
    """dropped: how many outcomes could not be kept. told: called with their number, in any thread."""

    def __init__(self, database: Database, config: Settings, log: logging.Logger, told: Callable[[int], None]) -> None:
        self.dropped = 0
        self._database = database
        self._config = config
        self._books = books.Books(database, config)
        self._log = log
        self._told = told
        self._lock = threading.Lock()
        self._waiting: list[Outcome] = []
        self._stuck: list[Outcome] = []  # could not be written, and comes first; always the same ones until it is
        self._servers: dict[str, LoadedServer] = {}
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._prepared = False  # the books, for this connection
        self._problem = ""
        self._failures = 0  # in a row
        self._tidy_at = 0.0

    def start(self) -> None:
        """See whether the database can be had, and begin. One that cannot be had just now is waited for later.

        Raises PluginError.
        """
        self._database.check()
        thread = threading.Thread(target=self._run, name=f"usage {self._database.place}", daemon=True)
        self._wake.set()  # to bring the tables up to date
        thread.start()
        self._thread = thread  # not before: an `open` that is cancelled is closed meanwhile, and that joins it

    def put(self, outcomes: Sequence[Outcome]) -> None:
        """Take them, never waiting; those for which there is no room are dropped."""
        with self._lock:
            room = self._config.queue - len(self._waiting) - len(self._stuck)
            self._waiting += outcomes[: max(0, room)]
            many = len(self._waiting) >= min(MANY, self._config.queue // 2)
        self._wake.set()
        if many:
            self._hurry.set()
        if len(outcomes) > room:
            self._drop(len(outcomes) - max(0, room), "there is no room left for what waits to be written")

    def see(self, servers: Sequence[LoadedServer]) -> None:
        """Take note of what is loaded, never waiting. If there are too many, what is left out comes again."""
        with self._lock:
            for server in servers:
                if server.id in self._servers or len(self._servers) < MOST_SERVERS:
                    self._servers[server.id] = server
        self._wake.set()

    def stop(self) -> None:
        """Write what waits, and end; after the deadline without it."""
        self._stopping.set()
        self._wake.set()
        self._hurry.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
            if self._thread.is_alive():
                place = self._database.place
                self._log.warning("%s: what waits to be written is lost, because the database hangs", place)

    # --- in the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(TIDY_EVERY_S)
            self._hurry.wait(FLUSH_S)  # more may come, to be written along with the first
            self._wake.clear()
            self._hurry.clear()
            if not self._flush():
                self._stopping.wait(min(RETRY_S, FLUSH_S * 2 ** min(self._failures, 8)))
                self._wake.set()
        while self._flush() and self._waiting:
            pass
        if lost := len(self._stuck) + len(self._waiting):
            self._drop(lost, "it was closed")
        self._database.disconnect()

    def _flush(self) -> bool:
        """Write what waits, and tidy up if it is time. Whether that went well; what could not be written waits on."""
        try:
            if self._database.connect():
                self._prepared = False
            if not self._prepared:
                self._books.open()
                self._prepared = True
            self._write_stuck()
            self._write_waiting()
            self._tidy()
        except Exception as error:  # noqa: BLE001 - told and counted; the thread has to go on
            self._failed(error)
            return False
        if self._problem:
            self._log.info("%s can be written again", self._database.place)
        self._problem, self._failures = "", 0
        return True

    def _write_stuck(self) -> None:
        if self._stuck:
            self._write(self._stuck)
            with self._lock:
                self._stuck = []

    def _write_waiting(self) -> None:
        with self._lock:
            self._stuck, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
            servers, self._servers = self._servers, {}
            more = bool(self._waiting)
        if more:
            self._wake.set()
            self._hurry.set()
        try:
            self._write_stuck()
            if servers:
                self._books.see(list(servers.values()))
        except BaseException:
            with self._lock:
                self._servers = servers | self._servers
            raise

    def _write(self, batch: list[Outcome]) -> None:
        """Write them in one go; without those that cannot be stored, now or ever, which are dropped."""
        try:
            self._database.store([self._books.row(outcome) for outcome in batch])
        except Exception as error:
            if self._database.is_ours(error):
                raise
        else:
            return
        rows, unfit = [], []
        for outcome in batch:
            try:
                rows.append(storable(self._books.row(outcome)))
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, it is no outcome; it is told and counted
                unfit.append(error)
        for why in (*unfit, *self._database.store_apart(rows)):
            self._drop(1, f"one cannot be stored: {why}")

    def _tidy(self) -> None:
        """Bring old rows into order, a part at a time."""
        if self._stopping.is_set() or time.monotonic() < self._tidy_at:
            return
        if self._books.tidy():
            self._tidy_at = time.monotonic() + TIDY_EVERY_S
        else:
            self._wake.set()  # there is more, whose turn it is after the next rows

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if str(error) != self._problem:
            self._log.error("%s cannot be written: %s", self._database.place, " ".join(str(error).split()))
        self._problem = str(error)
        try:
            self._database.recover(error)
        except Exception as fault:  # noqa: BLE001 - as above
            self._log.error("%s: %s", self._database.place, fault)

    def _drop(self, count: int, why: str) -> None:
        with self._lock:
            before, self.dropped = self.dropped, self.dropped + count
        self._told(count)
        if len(str(before)) < len(str(self.dropped)) or before == 0:  # at 1, 10, 100, ...
            self._log.error("%s: %d outcomes were dropped so far: %s", self._database.place, self.dropped, why)
