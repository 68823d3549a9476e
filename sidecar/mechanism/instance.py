"""One plugin of a generation: made, opened, closed; and what has gone wrong with it so far."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from plugin_sdk import Outcome, Plugin, Stats
from plugin_sdk.services import Services
from sidecar.mechanism.blame import advice, shown
from sidecar.mechanism.bounded import Bounded
from sidecar.mechanism.calls import Threads, bind
from sidecar.mechanism.plugins import Loaded
from sidecar.mechanism.sink import BATCH, Sink
from sidecar.mechanism.versions import fault_of
from sidecar.mechanism.watchdog import Marker

log = logging.getLogger(__name__)

OPEN_S = 30.0
CLOSE_S = 10.0
TIMED = 512  # of the latest calls

OnError = Literal["deny", "skip", "disable"]

# What a failure means where the manifest does not say. A guard that fails must not let pass.
DEFAULT_ON_ERROR: dict[str, OnError] = {"auth": "deny", "filter": "deny", "route": "skip", "stats": "skip"}


def on_error_of(loaded: Loaded) -> OnError:
    """What a failure of the plugin means for the request."""
    return loaded.declaration.on_error or DEFAULT_ON_ERROR.get(loaded.kind, "skip")


class Instance:
    """One plugin of a generation.

    problem: why it cannot be used, "" when it can. out: it failed so often in a row that it is left out until it is
    made anew; then problem says so. runs: calls that were timed. busy_s: what all of them took. failed: calls that went
    wrong. last_error: the latest, with its traceback. durations_s: of the latest calls.
    """

    def __init__(self, name: str, loaded: Loaded | None, problem: str = "", services: Services | None = None) -> None:
        self.name = name
        self.loaded = loaded
        self.problem = problem
        self.out = False
        self.runs = 0
        self.busy_s = 0.0
        self.failed = 0
        self.in_row = 0  # failures since the last call that went well
        self.last_error = ""
        self.durations_s: deque[float] = deque(maxlen=TIMED)
        self.users = 0  # generations that hold it
        self.plugin: Plugin[Any] | None = None
        self.sink: Sink | None = None
        self.threads = Threads(f"plugin-{name}")
        self.marker = Marker(name, loaded.place if loaded is not None else "")
        self._services = services

    @property
    def kind(self) -> str:
        """A plugin that did not load may be anything; as an auth plugin it does the least harm."""
        return self.loaded.kind if self.loaded is not None else "auth"

    @property
    def on_error(self) -> OnError:
        """What a failure means for the request."""
        return on_error_of(self.loaded) if self.loaded is not None else "deny"

    async def open(self) -> None:
        """Make and open the plugin. What goes wrong becomes its problem."""
        if self.loaded is None:
            return
        make = functools.partial(self.loaded.make, self._services)
        try:
            async with asyncio.timeout(OPEN_S):
                plugin: Plugin[Any] = await asyncio.wrap_future(self.threads.submit(make))
            self.plugin = plugin
            await Bounded(plugin.open(), OPEN_S, self.marker)
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; told by whoever has it opened
            self.problem = f"open failed: {self._why(error)}"
            self.last_error = shown(error)
            return
        if isinstance(plugin, Stats):
            several = type(plugin).record_many is not Stats.record_many
            self.sink = Sink(self.name, self._recorder(several), BATCH if several else 1)

    def _why(self, error: Exception) -> str:
        if not isinstance(error, TimeoutError) or str(error):
            return f"{type(error).__name__}: {error}"
        place = self.loaded.place if self.loaded is not None else ""
        at = fault_of(error.__context__, "", place) if error.__context__ is not None else None  # where it was cancelled
        where = f": it was at {at.file}:{at.line}" if at is not None and place and at.file.startswith(place) else ""
        return f"it did not end within {OPEN_S:g} s{where}; give what it waits for a timeout of its own"

    @property
    def deadline_s(self) -> float:
        """Of each call."""
        if self.loaded is None:
            raise RuntimeError(f"plugin {self.name} is not loaded")
        return self.loaded.declaration.deadline

    def bind(self, method: str) -> Callable[..., Awaitable[Any]]:
        """A method of the plugin with its deadline."""
        if self.plugin is None:
            raise RuntimeError(f"plugin {self.name} is not open")
        return bind(getattr(self.plugin, method), self.deadline_s, self.threads, self.marker)

    def ran(self, took_s: float) -> None:
        """A call went well."""
        self.runs += 1
        self.busy_s += took_s
        self.in_row = 0
        self.durations_s.append(took_s)

    def went_wrong(self, what: str, error: Exception) -> None:
        """A call failed: `what` the plugin was to do."""
        self.failed += 1
        self.in_row += 1
        told = f"{what}: {advice(getattr(self.plugin, what, None), error, self.deadline_s)}"
        self.last_error = f"{shown(error)}{told}"
        if self.failed in (1, 10, 100) or self.failed % 1000 == 0:
            message = "%s plugin %s failed %d times so far, at %s"
            log.error(message, self.kind, self.name, self.failed, told, exc_info=error)
        if self.on_error == "disable" and not self.out and self.loaded is not None:
            most = self.loaded.declaration.disable_after
            if self.in_row >= most:
                self.out = True
                self.problem = f"left out after {most} failures in a row, the last one: {type(error).__name__}: {error}"
                log.error("%s plugin %s: %s", self.kind, self.name, self.problem)

    async def close(self) -> None:
        """Close the plugin, also one whose open failed."""
        if self.sink is not None:
            await self.sink.close()
        if self.plugin is not None:
            try:
                await Bounded(self.plugin.close(), CLOSE_S, self.marker)
            except Exception as error:
                self.failed += 1
                self.last_error = shown(error)
                log.exception("plugin %s did not close", self.name)
        self.threads.close()

    def _recorder(self, several: bool) -> Callable[[list[Outcome]], Awaitable[None]]:
        """Takes what the plugin takes at once: several outcomes, or a list of one."""
        name = "record_many" if several else "record"
        call = self.bind(name)
        clock = asyncio.get_running_loop().time

        async def record(outcomes: list[Outcome]) -> None:
            if self.out:
                return
            began = clock()
            try:
                await call(outcomes if several else outcomes[0])
            except Exception as error:  # noqa: BLE001 - taken note of; the next outcome may do better
                self.went_wrong(name, error)
            else:
                self.ran(clock() - began)

        return record
