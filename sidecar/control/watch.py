"""Keeps an eye on what changes by itself: devices, the memory that servers really take, external servers, log sizes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from sidecar.control.clock import Clock
from sidecar.control.fleet import Fleet, LiveServer
from sidecar.core.manifest import Model
from sidecar.core.observed import Device, ExternalServer
from sidecar.mechanism import procfs
from sidecar.mechanism.devices import Prober
from sidecar.mechanism.upstream import Client

log = logging.getLogger(__name__)

PATIENCE_S = 0.5  # for which a plan waits for a fresh reading before it takes the last one


class DeviceWatch:
    """The last reading of every device plugin. A plugin that hangs delays nobody but itself."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._probers: dict[str, Prober] = {}
        self._probing: dict[str, asyncio.Task[tuple[Device, ...]]] = {}
        self._read_at: dict[str, float] = {}

    def use(self, probers: dict[str, Prober]) -> None:
        """Watch with these plugins from now on."""
        self._probers = probers
        self._read_at = {name: at for name, at in self._read_at.items() if name in probers}

    @property
    def devices(self) -> tuple[Device, ...]:
        """As last read."""
        return tuple(device for prober in self._probers.values() for device in prober.devices)

    @property
    def problems(self) -> dict[str, str]:
        """Device plugins that cannot be read, and why."""
        return {name: prober.problem for name, prober in self._probers.items() if prober.problem}

    async def read(self, newer_than: float) -> tuple[Device, ...]:
        """The devices, read after `newer_than` (monotonic seconds) where that takes no longer than a moment."""
        stale = [name for name in self._probers if self._read_at.get(name, -1.0) <= newer_than]
        if stale:
            await asyncio.wait([self._probe(name) for name in stale], timeout=PATIENCE_S)
        return self.devices

    def _probe(self, name: str) -> asyncio.Task[tuple[Device, ...]]:
        if name not in self._probing:
            task = self._probing[name] = asyncio.create_task(self._probe_now(name), name=f"probe {name}")
            task.add_done_callback(lambda _: self._probing.pop(name, None))
        return self._probing[name]

    async def _probe_now(self, name: str) -> tuple[Device, ...]:
        started = self._clock.monotonic()
        devices = await self._probers[name].probe()
        self._read_at[name] = started  # what changed while the probe ran may be missing from it
        return devices


async def observe_memory(servers: Iterable[LiveServer], devices: tuple[Device, ...]) -> None:
    """Attribute devices' memory to servers, by pid. Where a driver does not tell, or hides pids, it stays unknown."""
    running = [server for server in servers if server.process is not None]
    if not running:
        return
    leaders = {server.process.pid for server in running if server.process is not None}
    families = await asyncio.to_thread(_families, leaders)
    for server in running:
        if server.process is not None:
            server.observed_mb = _observed(families[server.process.pid], devices, server)


def _families(leaders: set[int]) -> dict[int, list[procfs.Process]]:
    """The living processes of each session, in one pass over /proc."""
    families: dict[int, list[procfs.Process]] = {leader: [] for leader in leaders}
    for process in procfs.processes():
        if process.alive and process.session in families:
            families[process.session].append(process)
    return families


def _observed(family: list[procfs.Process], devices: tuple[Device, ...], server: LiveServer) -> dict[str, int]:
    pids = {process.pid for process in family}
    observed: dict[str, int] = {}
    for device in devices:
        if device.host_memory:
            if device.id in server.reserved_mb:
                observed[device.id] = sum(process.rss_mb for process in family)
            continue
        used = [process.used_mb for process in device.status.processes if process.pid in pids]
        if used and None not in used:
            observed[device.id] = sum(amount for amount in used if amount is not None)
    return observed


class ExternalWatch:
    """Probes the servers that somebody else runs."""

    def __init__(self, fleet: Fleet, client: Client) -> None:
        self._fleet = fleet
        self._client = client

    async def probe_all(
        self, models: dict[str, Model], ready: Callable[[Model], Callable[..., Awaitable[bool]]]
    ) -> None:
        """Probe every url variant once, side by side; forget those that are no longer declared."""
        declared = {
            (name, variant.name): (model, variant)
            for name, model in models.items()
            for variant in model.variants
            if variant.external
        }
        for key in self._fleet.externals.keys() - declared.keys():
            del self._fleet.externals[key]
        probes = (self._probe(name, model, index, ready(model)) for name, model, index in _externals(models))
        await asyncio.gather(*probes)

    async def _probe(self, name: str, model: Model, index: int, ready: Callable[..., Awaitable[bool]]) -> None:
        variant = model.variants[index]
        key = ((b"authorization", f"Bearer {variant.api_key.reveal()}".encode()),) if variant.api_key else ()
        healthy, message = False, ""
        try:
            healthy = await ready(self._client.probe(variant.url.rstrip("/"), key))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - an interface plugin may raise anything; it is why the server is unhealthy
            message = str(error) or type(error).__name__
        seen = ExternalServer(model=name, variant=variant.name, healthy=healthy, message=message)
        if self._fleet.externals.get((name, variant.name)) != seen:
            log.info(
                "%s: external server %s is %s %s", name, variant.url, "healthy" if healthy else "unhealthy", message
            )
            self._fleet.externals[name, variant.name] = seen
            self._fleet.changed.set()


def _externals(models: dict[str, Model]) -> list[tuple[str, Model, int]]:
    return [
        (name, model, index)
        for name, model in models.items()
        for index, variant in enumerate(model.variants)
        if variant.external
    ]


async def cap_logs(servers: Iterable[LiveServer], limit_bytes: int) -> None:
    """Cut the logs of running servers that have outgrown the limit."""
    logs = [server.process.log for server in servers if server.process is not None]

    def cap() -> None:
        for one in logs:
            try:
                one.cap(limit_bytes)
            except OSError as error:
                log.error("%s cannot be shortened: %s", one.err, error)

    if logs:
        await asyncio.to_thread(cap)
