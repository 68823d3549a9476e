"""Tells stats plugins which servers hold memory, and from when to when: what they cost by the hour.

Told again and again, as a whole: one that was not heard, or came twice, does no harm. A server that a sidecar takes
over keeps its id and the time at which it was started, so the time in between is not lost either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from plugin_sdk import LoadedServer, Stats
from sidecar.control.fleet import Fleet
from sidecar.control.generations import Generation
from sidecar.control.live import LiveServer
from sidecar.core.manifest import Declaration
from sidecar.mechanism.hooks import overrides
from sidecar.mechanism.instance import Instance


class Residence:
    """generation: gives the one in force."""

    def __init__(self, fleet: Fleet, generation: Callable[[], Generation]) -> None:
        self._fleet = fleet
        self._generation = generation
        self._chains: dict[str, tuple[str, ...]] = {}  # of servers that are there, while their models were declared

    async def tell(self) -> None:
        """Each plugin that wants to know hears of the models whose chain it is in. What fails is noted there."""
        generation = self._generation()
        listeners = [one for one in generation.instances.values() if _listens(one)]
        if not listeners:
            self._fleet.departed.clear()
            self._chains = {}
            return
        told = [*self._ended(), *self._loaded()]
        self._chains = {
            one.id: chain for one in told if (chain := self._chain(one, generation.declaration)) is not None
        }
        default = generation.declaration.settings.chain
        for_each = {one.name: [it for it in told if one.name in self._chains.get(it.id, default)] for one in listeners}
        await asyncio.gather(*(_tell(one, for_each[one.name]) for one in listeners))

    def _chain(self, server: LoadedServer, declaration: Declaration) -> tuple[str, ...] | None:
        """What is no longer declared has the chain that it had; None: that is not known, and may be the default."""
        model = declaration.models.get(server.model)
        return self._chains.get(server.id) if model is None else declaration.chain_of(model)

    def _loaded(self) -> Iterable[LoadedServer]:
        now = self._fleet.clock.unix()
        for server in self._fleet.servers.values():
            if server.process is not None:  # else it has only been promised its memory
                yield _view(server, now)

    def _ended(self) -> Iterable[LoadedServer]:
        departed = self._fleet.departed
        while departed:
            server, gone = departed.popleft()
            if server.process is not None:
                yield _view(server, gone, ended=True)


async def _tell(instance: Instance, servers: list[LoadedServer]) -> None:
    try:
        await instance.bind("loaded")(servers)
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything; taken note of
        instance.went_wrong("loaded", error)


def _listens(instance: Instance) -> bool:
    return instance.kind == "stats" and not instance.problem and overrides(instance.plugin, Stats, "loaded")


def _view(server: LiveServer, until_s: float, *, ended: bool = False) -> LoadedServer:
    return LoadedServer(
        id=server.id,
        model=server.model,
        variant=server.variant.name,
        since_s=server.created_unix,
        until_s=max(until_s, server.created_unix),
        ended=ended,
        reserved_mb=dict(server.reserved_mb),
    )
