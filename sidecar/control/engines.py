"""Asks servers for their own metrics, when somebody asks for ours: in the background, and never more than they bear.

A server that does not tell, or hangs, is asked again after a while; what it said last is told until that is old.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import msgspec

from sidecar.control.fleet import Fleet
from sidecar.core.manifest import Declaration, Variant
from sidecar.core.observed import ServerState
from sidecar.mechanism.engine_metrics import MOST_BYTES, EngineNumbers, read
from sidecar.mechanism.upstream import Client

log = logging.getLogger(__name__)

FRESH_S = 2.0  # an answer of this age will do
OLD_S = 60.0  # after which it is told no more
PATIENCE_S = 0.5  # for which whoever asks us waits for those who are being asked
DEADLINE_S = 5.0
AGAIN_S = 60.0  # before a server that does not tell is asked again
AT_ONCE = 16

OK = 200

Key = tuple[str, str, str]  # model, variant, and where it is


class _Reading(msgspec.Struct, frozen=True):
    """numbers: None where there are none. ask_at, at: by the clock that never jumps."""

    numbers: EngineNumbers | None
    at: float
    ask_at: float


class Engines:
    """The numbers of all servers that are ready."""

    def __init__(self, fleet: Fleet, client: Client) -> None:
        self._fleet = fleet
        self._client = client
        self._readings: dict[Key, _Reading] = {}
        self._asking: dict[Key, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)

    async def refresh(self, declared: Declaration) -> None:
        """Ask those of whom nothing fresh is known; wait for them a moment, and leave the rest for the next time."""
        servers = dict(self._servers(declared))
        for key in self._readings.keys() - servers.keys():
            del self._readings[key]
        for key in self._asking.keys() - servers.keys():
            self._asking.pop(key).cancel()
        now = self._fleet.clock.monotonic()
        for key, variant in servers.items():
            before = self._readings.get(key)
            if key not in self._asking and (before is None or before.ask_at <= now):
                self._begin(key, variant)
        if self._asking:
            await asyncio.wait(self._asking.values(), timeout=PATIENCE_S)

    def numbers(self) -> list[tuple[str, str, EngineNumbers]]:
        """By model and variant, what is known and not old."""
        oldest = self._fleet.clock.monotonic() - OLD_S
        return [
            (model, variant, reading.numbers)
            for (model, variant, _), reading in self._readings.items()
            if reading.numbers is not None and reading.at >= oldest
        ]

    async def close(self) -> None:
        """Ask no longer."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    def _servers(self, declared: Declaration) -> Iterator[tuple[Key, Variant]]:
        for server in self._fleet.servers.values():
            if server.state in (ServerState.READY, ServerState.DRAINING):
                yield (server.model, server.variant.name, server.base_url), server.variant
        for name, model in declared.models.items():
            for variant in self._fleet.healthy_externals(name, model):
                yield (name, variant.name, variant.url.rstrip("/")), variant

    def _begin(self, key: Key, variant: Variant) -> None:
        task = asyncio.create_task(self._ask(key, variant), name=f"metrics of {key[2]}")
        self._asking[key] = task

        def ended(_: asyncio.Task[None]) -> None:
            if self._asking.get(key) is task:
                del self._asking[key]

        task.add_done_callback(ended)

    async def _ask(self, key: Key, variant: Variant) -> None:
        numbers, why = None, ""
        key_header = ((b"authorization", f"Bearer {variant.api_key.reveal()}".encode()),) if variant.api_key else ()
        try:
            async with self._places, asyncio.timeout(DEADLINE_S):
                reply = await self._client.probe(key[2], key_header).get_at_most("/metrics", MOST_BYTES)
            if reply.status == OK:
                numbers = await asyncio.to_thread(read, reply.body.decode("utf-8", "replace"))
            else:
                why = f"it answers {reply.status}"
        except (OSError, TimeoutError) as error:
            why = str(error) or f"no answer within {DEADLINE_S:g} s"
        if why:
            log.debug("%s: no metrics of %s: %s", key[0], key[2], why)
        self._take(key, numbers if numbers is not None and numbers.tells else None)

    def _take(self, key: Key, numbers: EngineNumbers | None) -> None:
        now = self._fleet.clock.monotonic()
        before = self._readings.get(key)
        if numbers is not None:
            self._readings[key] = _Reading(numbers, now, now + FRESH_S)
        elif before is not None and before.numbers is not None:
            self._readings[key] = _Reading(before.numbers, before.at, now + FRESH_S)  # it has told before
        else:
            self._readings[key] = _Reading(None, now, now + AGAIN_S)
