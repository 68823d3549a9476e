"""Plugins on their way to being open: whoever is slow, or cannot be opened now, is tried again and holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from sidecar.mechanism.instance import Instance
from sidecar.mechanism.plugins import Loaded
from sidecar.mechanism.watchdog import STUCK_S

log = logging.getLogger(__name__)

RETRY_S = 5.0  # after the first failure; then twice as long each time
LONGEST_RETRY_S = 300.0


class Opening:
    """One plugin that is opened, again and again until it succeeds or is given up.

    instance: the open plugin, None until then. stand_in: what is in its place meanwhile, and cannot be used. tried: set
    once there is an outcome. opened: set when it is open.
    """

    def __init__(
        self,
        loaded: Loaded,
        make: Callable[[str, Loaded], Instance],
        close: Callable[[Instance], Awaitable[None]],
        opened: asyncio.Event,
    ) -> None:
        self.loaded = loaded
        self.instance: Instance | None = None
        self.stand_in = Instance(loaded.name, loaded, "it is still opening")
        self.tried = asyncio.Event()
        self._make = make
        self._close = close
        self._opened = opened
        self._hurry = asyncio.Event()
        self._current: Instance | None = None  # which is not closed yet
        self._task = asyncio.create_task(self._run(), name=f"open plugin {loaded.name}")

    @property
    def problem(self) -> str:
        """Why it is not open; "" if it is."""
        return self.stand_in.problem if self.instance is None else ""

    @property
    def over(self) -> bool:
        """Whether it is not tried any more, though it is not open."""
        return self._task.done() and self.instance is None

    def hurry(self) -> None:
        """Try again now, if it waits for that: what it needs may be there."""
        self._hurry.set()

    async def give_up(self) -> None:
        """Close it, wherever it is."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._current is not None:
            await self._close(self._current)

    async def _run(self) -> None:
        pause_s = RETRY_S
        while not await self._succeeds():
            self.tried.set()
            if self.stand_in.marker.longest_s > STUCK_S:
                return  # it holds up everybody each time that it is tried
            self._hurry.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._hurry.wait()
            pause_s = min(2 * pause_s, LONGEST_RETRY_S)
        self.tried.set()
        self._opened.set()

    async def _succeeds(self) -> bool:
        self._current = instance = self._make(self.loaded.name, self.loaded)
        await instance.open()
        if not instance.problem:
            self.instance = instance
            return True
        if instance.problem != self.stand_in.problem:
            log.error("plugin %s: %s\n%s", self.loaded.name, instance.problem, instance.last_error)
        self.stand_in.problem, self.stand_in.last_error = instance.problem, instance.last_error
        await self._close(instance)
        self._current = None
        self.stand_in.marker.blocked += instance.marker.blocked
        self.stand_in.marker.longest_s = instance.marker.longest_s
        return False
