"""Feeds a stats plugin off the hot path, from a bounded queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from plugin_sdk import Outcome

log = logging.getLogger(__name__)

CLOSE_S = 10.0
QUEUE = 10_000


class Sink:
    """Hands outcomes to a plugin, one after the other. dropped: outcomes that found the queue full.

    record: the plugin's method; whatever it raises has been taken note of by whoever bound it.
    """

    def __init__(self, name: str, record: Callable[[Outcome], Awaitable[Any]]) -> None:
        self.dropped = 0
        self._name = name
        self._record = record
        self._queue: asyncio.Queue[Outcome | None] = asyncio.Queue(QUEUE)
        self._task = asyncio.get_running_loop().create_task(self._feed(), name=f"stats-{name}")

    def put(self, outcome: Outcome) -> None:
        """Hand over an outcome. Never waits, never raises."""
        try:
            self._queue.put_nowait(outcome)
        except asyncio.QueueFull:
            self.dropped += 1
            if self.dropped == 1:
                log.warning("stats plugin %s does not keep up: outcomes are dropped", self._name)

    async def close(self) -> None:
        """Deliver what is queued, within a deadline, then stop."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._queue.put(None)
                await self._task
        except TimeoutError:
            log.warning("stats plugin %s: %d outcomes were lost at close", self._name, self._queue.qsize())
            self._task.cancel()

    async def _feed(self) -> None:
        while (outcome := await self._queue.get()) is not None:
            await self._record(outcome)
