"""What servers have said: finds a model's log, and reads it off the loop, for a few readers at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from sidecar.control.fleet import Fleet
from sidecar.mechanism import logreader
from sidecar.mechanism.logreader import Found, Place, Wanted
from sidecar.mechanism.redaction import NOTHING, Redactor
from sidecar.mechanism.serverlog import ServerLog

AT_ONCE = 2  # readings, in threads that others need, too
FOLLOWERS = 64

T = TypeVar("T")


class TooManyFollowersError(Exception):
    """Each who follows a log looks at files twice a second."""


class ServerLogs:
    """The logs of all models. state: None = servers' output is not kept. hide: what nobody is shown of it."""

    def __init__(self, fleet: Fleet, state: Path | None, hide: Redactor = NOTHING) -> None:
        self._hide = hide
        self.followers = 0
        self._fleet = fleet
        self._folder = state / "logs" if state is not None else None
        self._turn = asyncio.Semaphore(AT_ONCE)

    def of(self, model: str) -> ServerLog | None:
        """A model's log, whether or not there is any: of the server that is up, or of one by the model's name."""
        if self._folder is None:
            return None
        server = self._fleet.server_of(model)
        if server is not None:
            return ServerLog.of(self._folder, server.id, self._hide)
        return ServerLog(self._folder, model, self._hide)

    async def exists(self, log: ServerLog, *, previous: bool = False) -> bool:
        """Whether there has been such a run."""
        return await self._off_the_loop((log.previous if previous else log.now).exist)

    async def read(self, log: ServerLog, wanted: Wanted, *, previous: bool = False, whole: bool = False) -> Found:
        """See `logreader.read`. Raises OSError, PatternError."""
        return await self._off_the_loop(lambda: logreader.read(log, wanted, previous=previous, whole=whole))

    async def news(self, log: ServerLog, place: Place, wanted: Wanted) -> Found:
        """See `logreader.news`. Raises OSError, PatternError."""
        return await self._off_the_loop(lambda: logreader.news(log, place, wanted))

    async def stamp(self, log: ServerLog) -> tuple[object, ...]:
        """See `logreader.stamp`. Raises OSError."""
        return await self._off_the_loop(lambda: logreader.stamp(log))

    @contextmanager
    def following(self) -> Iterator[None]:
        """While somebody follows. Raises TooManyFollowersError."""
        if self.followers >= FOLLOWERS:
            raise TooManyFollowersError(f"{FOLLOWERS} follow servers' logs already")
        self.followers += 1
        try:
            yield
        finally:
            self.followers -= 1

    async def _off_the_loop(self, work: Callable[[], T]) -> T:
        async with self._turn:
            return await asyncio.to_thread(work)
