"""What servers have said: finds a model's log, and reads it off the loop, for a few readers at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from sidecar.control.fleet import Fleet
from sidecar.control.machine import Machine
from sidecar.core.manifest import Declaration, Variant
from sidecar.core.names import listed
from sidecar.mechanism import logreader, serverlog
from sidecar.mechanism.logreader import Found, Place, Wanted
from sidecar.mechanism.redaction import NOTHING, Redactor
from sidecar.mechanism.serverlog import ServerLog

log = logging.getLogger(__name__)

AT_ONCE = 2  # readings, in threads that others need, too
FOLLOWERS = 64
FORGOTTEN_AFTER_S = 30 * 86400.0  # without a line, of models that are no longer declared
REMEMBERED = 1000  # models

T = TypeVar("T")


class TooManyFollowersError(Exception):
    """Each who follows a log looks at files twice a second."""


class ServerLogs:
    """The logs of all models. declared: what is in force. state: None = servers' output is not kept.

    hide: what nobody is shown of it, beside what the servers are given.
    """

    def __init__(
        self,
        fleet: Fleet,
        declared: Callable[[], Declaration],
        machine: Machine,
        state: Path | None,
        hide: Redactor = NOTHING,
    ) -> None:
        self.followers = 0
        self._fleet = fleet
        self._declared = declared
        self._machine = machine
        self._folder = state / "logs" if state is not None else None
        self._hide = hide
        self._names: dict[str, str] = {}  # what models are called now that were called otherwise before
        self._redactors: dict[str, tuple[tuple[Variant, ...], Redactor]] = {}
        self._shared: WeakValueDictionary[str, ServerLog] = WeakValueDictionary()  # by those who follow
        self._turn = asyncio.Semaphore(AT_ONCE)

    def of(self, model: str) -> ServerLog | None:
        """A model's log, whether or not there is any; None if servers' output is not kept.

        The name may be one of before, if no other model has it now.
        """
        if self._folder is None:
            return None
        models = self._declared().models
        while model not in models and model in self._names:
            model = self._names[model]
        hide, log = self._hidden(model), self._shared.get(model)
        if log is None or log.hide is not hide:
            log = self._shared[model] = ServerLog(self._folder, model, hide)
        return log

    async def rename(self, names: Mapping[str, str]) -> None:
        """Models are called otherwise now. Those who follow go on; logs of servers that are up go along with them."""
        for old, new in names.items():
            self._names.pop(new, None)
            self._names[old] = new
            if self._fleet.server_of(new) is None:
                try:
                    await self._machine.rename_log(old, new)
                except OSError as error:
                    log.error("the log of %s cannot be found as that of %s: %s", old, new, error)

    def _hidden(self, model: str) -> Redactor:
        declared, server = self._declared().models.get(model), self._fleet.server_of(model)
        variants = (*(declared.variants if declared else ()), *((server.variant,) if server else ()))
        known = self._redactors.get(model)
        if known is None or known[0] != variants:
            self._redactors.pop(model, None)
            if len(self._redactors) >= REMEMBERED:
                self._redactors.clear()
            known = self._redactors[model] = (variants, without_keys(self._hide, variants))
        return known[1]

    async def forget(self) -> None:
        """Delete the logs of models that are long gone, which would fill the disk in the end."""
        folder = self._folder
        if folder is not None:
            models = {*self._declared().models, *(server.model for server in self._fleet.servers.values())}
            before = self._fleet.clock.unix() - FORGOTTEN_AFTER_S
            gone = await asyncio.to_thread(serverlog.forget, folder, models, before)
            if gone:
                log.info("the logs of models that are gone for long are deleted: %s", listed(sorted(gone)))

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


def without_keys(hide: Redactor, variants: Iterable[Variant]) -> Redactor:
    """What else nobody is shown of the output of such servers: what they are given, and need not stand elsewhere."""
    found = list(variants)
    keys = [one.api_key.reveal() for one in found if one.api_key is not None]
    return hide.also(*(one.env for one in found), others=keys)
