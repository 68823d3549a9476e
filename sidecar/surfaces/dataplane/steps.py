"""What filters that wait for something do with an answer: one step after the other, in a task."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from sidecar.surfaces.dataplane.wire import Wire

QUEUE_BYTES = 256 * 1024  # of an answer, waiting for filters


class Steps:
    """What is to be done with an answer, one after the other, in a task."""

    def __init__(self, wire: Wire) -> None:
        self.when_empty: Callable[[], None] | None = None
        self._wire = wire
        self._queue: deque[tuple[Callable[[], Coroutine[Any, Any, None]], int]] = deque()
        self._bytes = 0
        self._more = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether more than enough waits."""
        return self._bytes > QUEUE_BYTES

    def put(self, step: Callable[[], Coroutine[Any, Any, None]], size: int) -> None:
        """Have it done in its turn."""
        self._queue.append((step, size))
        self._bytes += size
        self._more.set()

    async def run(self, failed: Callable[[Exception], None]) -> None:
        """Until a step is the last one, which ends the request and with it this task, or one has failed."""
        try:
            while True:
                while not self._queue:
                    self._more.clear()
                    await self._more.wait()
                step, size = self._queue.popleft()
                await step()
                self._bytes -= size
                if self._wire.complete:
                    return
                if self._wire.paused:
                    await self._wire.drained()
                if not self._queue and self.when_empty is not None:
                    resume, self.when_empty = self.when_empty, None
                    resume()
        except Exception as error:  # noqa: BLE001 - whoever owns the request says what becomes of it
            failed(error)
