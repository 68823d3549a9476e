"""Looks at servers while they load, and only then: what they have read, and what memory they have taken by now."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sidecar.control.fleet import Fleet
from sidecar.control.live import LiveServer
from sidecar.control.machine import Running
from sidecar.core.observed import ServerState

log = logging.getLogger(__name__)


class LoadWatch:
    """observe: has the memory of all servers measured. failed: looks that came to nothing.

    A look that hangs delays nobody, and is not made twice.
    """

    def __init__(self, fleet: Fleet, observe: Callable[[], Awaitable[object]], period_s: float) -> None:
        self._fleet = fleet
        self._observe = observe
        self._period_s = period_s
        self.failed = 0
        self._looks: dict[str, asyncio.Task[None]] = {}  # by server

    async def due(self) -> None:
        """Wait until something loads, and a while more."""
        await self._fleet.loads.wait()
        await asyncio.sleep(self._period_s)

    async def look(self) -> None:
        """Take in how far those that load have come."""
        loading = [server for server in self._fleet.servers.values() if server.state is ServerState.STARTING]
        if not loading:
            self._fleet.loads.clear()
            return
        await self._observe()
        for server in loading:
            if server.process is not None and server.id not in self._looks:
                self._looks[server.id] = asyncio.create_task(self._read(server, server.process))
        if self._looks:
            await asyncio.wait(self._looks.values(), timeout=self._period_s)

    async def _read(self, server: LiveServer, process: Running) -> None:
        try:
            server.reading = await process.reading()
        except Exception:
            self.failed += 1
            log.exception("%s: what it has read cannot be told", server.id)
        finally:
            del self._looks[server.id]
