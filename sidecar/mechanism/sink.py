"""Feeds a stats plugin off the hot path, from a bounded queue, some outcomes at a time."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any

from plugin_sdk import Outcome

log = logging.getLogger(__name__)

CLOSE_S = 10.0
QUEUE = 10_000
WAIT_S = 0.1  # for more outcomes: waking the loop for each costs more than all the rest
BATCH = 1_000  # that are not waited for any longer, and handed over at once where the plugin takes several
TURN = 50  # calls in a row; then it is others' turn


class Sink:
    """Hands outcomes to a plugin, in their order. dropped: outcomes that found the queue full, or the sink closed.

    record: the plugin's method; whatever it raises has been taken note of by whoever bound it. most: how many outcomes
    it takes at once.
    """

    def __init__(self, name: str, record: Callable[[list[Outcome]], Awaitable[Any]], most: int = 1) -> None:
        self.dropped = 0
        self._name = name
        self._record = record
        self._most = most
        self._room = QUEUE
        self._waiting: deque[Outcome] = deque()
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._due = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._task = self._loop.create_task(self._feed(), name=f"stats-{name}")

    def put(self, outcome: Outcome) -> None:
        """Hand over an outcome. Never waits, never raises."""
        waiting = self._waiting
        if len(waiting) >= self._room:
            self._drop()
            return
        waiting.append(outcome)
        if self._timer is None:
            self._timer = self._loop.call_later(WAIT_S, self._due.set)
        elif len(waiting) == BATCH:
            self._due.set()

    async def close(self) -> None:
        """Deliver what is queued, within a deadline, then stop."""
        self._closing, self._room = True, 0
        self._due.set()
        _, late = await asyncio.wait((self._task,), timeout=CLOSE_S)
        if late:
            log.warning("stats plugin %s: %d outcomes were lost at close", self._name, len(self._waiting))
            self._task.cancel()
            await asyncio.wait(late)
        if self._timer is not None:
            self._timer.cancel()

    def _drop(self) -> None:
        self.dropped += 1
        if self.dropped == 1 and not self._closing:
            log.warning("stats plugin %s does not keep up: outcomes are dropped", self._name)

    async def _feed(self) -> None:
        while self._waiting or not self._closing:
            await self._due.wait()
            self._due.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            await self._hand_over()

    async def _hand_over(self) -> None:
        waiting, calls = self._waiting, 0
        while waiting:
            outcomes = list(islice(waiting, self._most))
            await self._record(outcomes)
            for _ in outcomes:  # not before, so that they still take up room, and are missed if it does not end
                waiting.popleft()
            calls += 1
            if calls % TURN == 0:
                await asyncio.sleep(0)
