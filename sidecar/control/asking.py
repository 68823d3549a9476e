"""When a repository is asked: at intervals, soon when somebody wants it, and ever more rarely while it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import SystemRandom

from sidecar.control.clock import Clock
from sidecar.core.sourcing import next_wait_s

GAP_S = 1.0  # between two looks for which others have asked


class Schedule:
    """asked_at: when it was asked last. next_at: when it will be; None = when somebody says so. Seconds since 1970."""

    def __init__(self, interval_s: float, clock: Clock) -> None:
        self.asked_at: float | None = None
        self.next_at: float | None = None
        self._interval_s = interval_s
        self._clock = clock
        self._random = SystemRandom()
        self._woken = asyncio.Event()
        self._wanted = ""  # what has asked for a look soon

    def asked(self) -> None:
        """It is being asked."""
        self.asked_at = self._clock.unix()

    def nudge(self, trigger: str) -> None:
        """Somebody says that there may be something new: look soon, once for all who say so meanwhile."""
        self._wanted = self._wanted or trigger
        self._woken.set()

    def reckon(self) -> None:
        """Something has changed that the time of the next look depends on."""
        self._woken.set()

    async def due(self, held: Callable[[], bool], failures: Callable[[], int]) -> str:
        """Wait until it is time to ask, or somebody wants it; what is the reason.

        held: whether it is not to be asked at all for now. failures: in a row.
        """
        while True:
            self._woken.clear()
            if self._wanted and not held():
                await self._keep_distance()
                trigger, self._wanted = self._wanted, ""
                return trigger
            wait_s = None if held() else next_wait_s(self._interval_s, failures(), self._random.random())
            self.next_at = None if wait_s is None else self._clock.unix() + wait_s
            try:
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()
            except TimeoutError:
                return "interval"

    async def _keep_distance(self) -> None:
        """Between two looks that others have asked for, so that nobody can have the server asked all the time."""
        since = self._clock.unix() - (self.asked_at or 0.0)
        if 0 <= since < GAP_S:
            await asyncio.sleep(GAP_S - since)
