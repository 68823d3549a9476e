"""Keeps an eye on the servers that somebody else runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from sidecar.control.fleet import Fleet
from sidecar.core.manifest import Model, Variant
from sidecar.core.observed import ExternalServer
from sidecar.mechanism.modes import Health
from sidecar.mechanism.upstream import Client

log = logging.getLogger(__name__)

AGAIN_S = 0.2  # before a server that was healthy is asked a second time
PATIENCE_S = 1.0  # for which a round waits for a slow answer; that server is asked again when it has come

_Key = tuple[str, str, str]


class _Server(msgspec.Struct, frozen=True):
    """A url variant of a model, and how to find out how it is."""

    model: str
    variant: Variant
    health: Health

    @property
    def key(self) -> _Key:
        return self.model, self.variant.name, self.variant.url


class ExternalWatch:
    """Probes them, side by side: one that hangs delays the news of no other."""

    def __init__(self, fleet: Fleet, client: Client) -> None:
        self._fleet = fleet
        self._client = client
        self._probing: dict[_Key, asyncio.Task[None]] = {}

    async def probe_all(self, models: dict[str, Model], health: Callable[[Model], Health]) -> None:
        """Probe every url variant, unless that is still going on; forget those that are no longer declared."""
        servers = [
            _Server(name, variant, health(model))
            for name, model in models.items()
            for variant in model.variants
            if variant.external
        ]
        self._forget({server.key for server in servers})
        for server in servers:
            if server.key not in self._probing:
                self._begin(server)
        if self._probing:
            await asyncio.wait(self._probing.values(), timeout=PATIENCE_S)

    async def close(self) -> None:
        """Probe no longer."""
        probing = list(self._probing.values())
        self._forget(set())
        await asyncio.gather(*probing, return_exceptions=True)

    def _forget(self, declared: set[_Key]) -> None:
        for key in self._fleet.externals.keys() - declared:
            del self._fleet.externals[key]
        for key in self._probing.keys() - declared:
            self._probing.pop(key).cancel()

    def _begin(self, server: _Server) -> None:
        task = asyncio.create_task(self._probe(server), name=f"probe {server.variant.url}")
        self._probing[server.key] = task

        def ended(_: asyncio.Task[None]) -> None:
            if self._probing.get(server.key) is task:
                del self._probing[server.key]

        task.add_done_callback(ended)

    async def _probe(self, server: _Server) -> None:
        variant, before = server.variant, self._fleet.externals.get(server.key)
        was_healthy = before is not None and before.healthy
        healthy, message = await self._ask(server, alive=was_healthy)
        if was_healthy and not healthy:
            await asyncio.sleep(AGAIN_S)  # one lost connection says little of a server that has been well
            healthy, message = await self._ask(server, alive=True)
        seen = ExternalServer(model=server.model, variant=variant.name, healthy=healthy, message=message)
        if before != seen:
            why = f": {' '.join(message.split())}" if message else ""
            log.info(
                "%s: external server %s is %s", server.model, variant.url, "healthy" if healthy else f"unhealthy{why}"
            )
            self._fleet.externals[server.key] = seen
            self._fleet.changed.set()

    async def _ask(self, server: _Server, *, alive: bool) -> tuple[bool, str]:
        """Whether it is healthy, and why not. alive: it has been ready, so that the cheaper question will do."""
        variant = server.variant
        asked = server.health.alive if alive else server.health.ready
        key = ((b"authorization", f"Bearer {variant.api_key.reveal()}".encode()),) if variant.api_key else ()
        try:
            return await asked(self._client.probe(variant.url.rstrip("/"), key)), ""
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - an interface plugin may raise anything; it is why the server is unhealthy
            return False, str(error) or type(error).__name__
