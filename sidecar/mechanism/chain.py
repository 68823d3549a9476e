"""A model's plugin chain, compiled once: which calls to make, with their deadlines and what to do when they fail.

A stage that cannot run is still a stage: an auth plugin that is missing, broken, slow or wrong refuses the request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from plugin_sdk import ANONYMOUS, Outcome, Plugin, Principal, Reject, Request
from sidecar.mechanism.calls import Threads, bind, contained
from sidecar.mechanism.plugins import Loaded

log = logging.getLogger(__name__)

OPEN_S = 30.0
CLOSE_S = 10.0
STATS_QUEUE = 10_000


class Instance:
    """One plugin of a generation. problem: why it cannot be used; "" when it can. failed: calls that went wrong."""

    def __init__(self, name: str, loaded: Loaded | None, problem: str = "") -> None:
        self.name = name
        self.loaded = loaded
        self.problem = problem
        self.failed = 0
        self.users = 0  # generations that hold it
        self.plugin: Plugin[Any] | None = None
        self.sink: Sink | None = None
        self.threads = Threads(f"plugin-{name}")

    @property
    def kind(self) -> str:
        """A plugin that did not load may be anything; as an auth plugin it does the least harm."""
        return self.loaded.kind if self.loaded is not None else "auth"

    async def open(self) -> None:
        """Make and open the plugin. What goes wrong becomes its problem."""
        if self.loaded is None:
            return
        try:
            async with asyncio.timeout(OPEN_S):
                plugin: Plugin[Any] = await asyncio.wrap_future(self.threads.submit(self.loaded.make))
                self.plugin = plugin
                await contained(plugin.open())
        except Exception as error:
            self.problem = f"open failed: {type(error).__name__}: {error}"
            log.exception("plugin %s cannot be opened", self.name)
            return
        if self.kind == "stats":
            self.sink = Sink(self, self.bind("record"))

    def bind(self, method: str) -> Callable[..., Awaitable[Any]]:
        """A method of the plugin with its deadline."""
        if self.plugin is None or self.loaded is None:
            raise RuntimeError(f"plugin {self.name} is not open")
        return bind(getattr(self.plugin, method), self.loaded.declaration.deadline, self.threads)

    async def close(self) -> None:
        """Close the plugin, also one whose open failed."""
        if self.sink is not None:
            await self.sink.close()
        if self.plugin is not None:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await contained(self.plugin.close())
            except Exception:
                self.failed += 1
                log.exception("plugin %s did not close", self.name)
        self.threads.close()


class Sink:
    """Feeds a stats plugin from a bounded queue. dropped: outcomes that found it full."""

    def __init__(self, instance: Instance, record: Callable[..., Awaitable[Any]]) -> None:
        self.dropped = 0
        self._instance = instance
        self._record = record
        self._queue: asyncio.Queue[Outcome | None] = asyncio.Queue(STATS_QUEUE)
        self._task = asyncio.get_running_loop().create_task(self._feed(), name=f"stats-{instance.name}")

    def put(self, outcome: Outcome) -> None:
        """Hand over an outcome. Never waits, never raises."""
        try:
            self._queue.put_nowait(outcome)
        except asyncio.QueueFull:
            self.dropped += 1
            if self.dropped == 1:
                log.warning("stats plugin %s does not keep up: outcomes are dropped", self._instance.name)

    async def close(self) -> None:
        """Deliver what is queued, within a deadline, then stop."""
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._queue.put(None)
                await self._task
        except TimeoutError:
            log.warning("stats plugin %s: %d outcomes were lost at close", self._instance.name, self._queue.qsize())
            self._task.cancel()

    async def _feed(self) -> None:
        while (outcome := await self._queue.get()) is not None:
            try:
                await self._record(outcome)
            except Exception:
                self._instance.failed += 1
                if self._instance.failed in (1, 10, 100) or self._instance.failed % 1000 == 0:
                    log.exception("stats plugin %s failed (%d times)", self._instance.name, self._instance.failed)


class Chain:
    """The stages of one model, in the manifest's order."""

    def __init__(self, instances: Sequence[Instance]) -> None:
        self._auths = [_auth(instance) for instance in instances if instance.kind == "auth"]
        self._sinks = [instance.sink for instance in instances if instance.sink is not None]

    async def authenticate(self, request: Request) -> Principal:
        """Who is calling: each auth plugin must admit the caller, the last one names it. Raises Reject."""
        principal = ANONYMOUS
        for auth in self._auths:
            principal = await auth(request)
        return principal

    @property
    def has_auth(self) -> bool:
        """Whether anybody is asked who they are."""
        return bool(self._auths)

    def record(self, outcome: Outcome) -> None:
        """Tell the stats plugins, some time soon."""
        for sink in self._sinks:
            sink.put(outcome)


def _auth(instance: Instance) -> Callable[[Request], Awaitable[Principal]]:
    """The plugin's `authenticate`, failing closed: clients learn that it failed, the log says how."""
    call = instance.bind("authenticate") if not instance.problem else None

    def refuse(what: str) -> Reject:
        return Reject(503, f'the auth plugin "{instance.name}" {what}', code="auth_unavailable", retry_after_s=5)

    async def authenticate(request: Request) -> Principal:
        if call is None:
            raise refuse("is not available")
        try:
            principal = await call(request)
        except Reject:
            raise
        except TimeoutError:
            instance.failed += 1
            raise refuse("did not answer in time") from None
        except Exception as error:
            instance.failed += 1
            log.exception("auth plugin %s failed", instance.name)
            raise refuse("failed") from error
        if not isinstance(principal, Principal):
            instance.failed += 1
            log.error("auth plugin %s returned %s, not a Principal", instance.name, type(principal).__name__)
            raise refuse("failed")
        return principal

    return authenticate
