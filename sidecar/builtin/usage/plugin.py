"""The plugin: what the sidecar calls."""

from __future__ import annotations

import asyncio
import contextlib
import platform
from collections.abc import Sequence
from pathlib import Path

import msgspec

from plugin_sdk import LoadedServer, Outcome, Stats, UsageQuery, UsageReport, inline
from sidecar.builtin.usage import postgres, reading, sqlite
from sidecar.builtin.usage.settings import Settings
from sidecar.builtin.usage.writer import Database, Writer


class Usage(Stats[Settings]):
    """Keep a row for each request, and what it cost. It never fails on account of its database.

    What cannot be written waits, as long as there is room for it; then it is dropped, and counted as `dropped`.
    """

    async def open(self) -> None:
        """Raises PluginError if there can be no database at that place, or it is of a newer version than this one."""
        node = self.config.node or platform.node()
        config = msgspec.structs.replace(self.config, node=node)
        database: Database
        if config.dsn is not None:
            database = postgres.Postgres(config.dsn, node)
        else:
            database = sqlite.SQLite(self._path(), self.log)
        self._writer = Writer(database, config, self.log, lambda count: self.metrics.count("dropped", count))
        await asyncio.to_thread(self._writer.start)

    async def close(self) -> None:
        """Write what waits to be written, within a deadline."""
        writer: Writer | None = getattr(self, "_writer", None)  # `open` may never have come to it
        if writer is not None:
            await asyncio.to_thread(writer.stop)

    @inline
    def record(self, outcome: Outcome) -> None:
        """Hand it over to the thread that writes."""
        self._writer.put((outcome,))

    @inline
    def record_many(self, outcomes: Sequence[Outcome]) -> None:
        """The same of several."""
        self._writer.put(outcomes)

    @inline
    def loaded(self, servers: Sequence[LoadedServer]) -> None:
        """The same of servers."""
        self._writer.see(servers)

    def report(self, query: UsageQuery) -> UsageReport:
        """Sums by model, principal, key, variant, mode, node, hour, day or month, in UTC; also if nobody has opened it.

        Raises Reject, PluginError.
        """
        if self.config.dsn is not None:
            with contextlib.closing(postgres.Reader(self.config.dsn)) as reader:
                return reading.report(reader.run, query)
        with contextlib.closing(sqlite.Reader(self._path())) as file:
            return reading.report(file.run, query)

    @property
    def dropped(self) -> int:
        """Outcomes that could not be kept."""
        return self._writer.dropped

    def _path(self) -> Path:
        return Path(self.config.path or self.state_dir / f"{self.name}.db").expanduser()
