"""Keeps an eye on what changes by itself: devices, the memory that servers really take, log sizes."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable

import msgspec

from sidecar.control.clock import Clock
from sidecar.control.live import LiveServer
from sidecar.control.machine import Machine, Running
from sidecar.core.observed import Device
from sidecar.mechanism.devices import Prober
from sidecar.mechanism.machine import Families

log = logging.getLogger(__name__)

PATIENCE_S = 0.5  # for which a plan waits for a fresh reading before it takes the last one


class _Reading(msgspec.Struct, frozen=True):
    """When a probe began and ended. What changed while it ran may be missing from it."""

    began: float
    ended: float


class DeviceWatch:
    """The last reading of every device plugin. A plugin that hangs delays nobody but itself.

    late: set when a reading arrives that a plan could not wait for.
    """

    def __init__(self, clock: Clock, machine: Machine, late: asyncio.Event) -> None:
        self._clock = clock
        self._machine = machine
        self._late = late
        self._awaited: set[str] = set()
        self._probers: dict[str, Prober] = {}
        self._probing: dict[str, asyncio.Task[None]] = {}
        self._readings: dict[str, _Reading] = {}
        self._families: Families = {}
        self._families_at = -math.inf

    async def use(self, probers: dict[str, Prober]) -> None:
        """Watch with these plugins from now on. The first reading of new ones is waited for, up to its deadline."""
        new = [name for name, prober in probers.items() if self._probers.get(name) is not prober]
        began = self._clock.monotonic()
        await asyncio.gather(*(probers[name].probe() for name in new))  # until then those before it are looked at
        for name in new:
            self._readings[name] = _Reading(began, self._clock.monotonic())
            if (running := self._probing.pop(name, None)) is not None:
                running.cancel()
        self._probers = probers

    @property
    def devices(self) -> tuple[Device, ...]:
        """As last read."""
        return tuple(device for prober in self._probers.values() for device in prober.devices)

    def visibility(self, chosen: tuple[str, ...]) -> dict[str, str]:
        """For each vendor's variable, the chosen devices; "" where none is chosen.

        A server that reserved nothing on a GPU must not find one: engines take whatever they see.
        """
        ids: dict[str, list[str]] = {}
        for prober in self._probers.values():
            if prober.plugin.visibility_env:
                visible = [device.id for device in prober.devices if device.id in chosen]
                ids.setdefault(prober.plugin.visibility_env, []).extend(visible)
        return {name: ",".join(sorted(visible, key=chosen.index)) for name, visible in ids.items()}

    @property
    def problems(self) -> dict[str, str]:
        """Device plugins that cannot be read, and why."""
        return {name: prober.problem for name, prober in self._probers.items() if prober.problem}

    def plugins(self) -> dict[str, bool]:
        """Whether the last probe of each device plugin went well."""
        return {name: not prober.problem for name, prober in self._probers.items()}

    async def read(self, changed_at: float, fresh_s: float) -> tuple[Device, ...]:
        """The devices, read since `changed_at` and not longer ago than `fresh_s`.

        What cannot be had in a moment comes as it was, marked stale, and `late` is set when it is there.
        """
        stale = [name for name in self._probers if self._is_stale(name, changed_at, fresh_s)]
        if stale:
            await asyncio.wait([self._probe(name) for name in stale], timeout=PATIENCE_S)
            stale = [name for name in stale if self._is_stale(name, changed_at, fresh_s)]
        for name in stale:
            self._awaited.add(name)
            self._probe(name)  # the one that has just ended may have begun too early
        return tuple(
            msgspec.structs.replace(device, stale=True) if name in stale else device
            for name, prober in self._probers.items()
            for device in prober.devices
        )

    async def observe_memory(self, servers: Iterable[LiveServer], devices: tuple[Device, ...], fresh_s: float) -> None:
        """Attribute devices' memory to servers, by pid; who belongs to whom may have been looked up `fresh_s` ago.

        Where a driver does not tell, or hides pids, it stays unknown.
        """
        running = [(server, server.process.pid) for server in servers if server.process is not None]
        leaders = {pid for _, pid in running}
        now = self._clock.monotonic()
        families = self._families
        if leaders and (leaders != families.keys() or now - self._families_at > fresh_s):
            families = self._families = await self._machine.families(leaders)
            self._families_at = now
        for server, pid in running:
            family = families[pid]
            server.pids = frozenset(family)
            server.observed_mb = _observed(family, devices, server)

    def _is_stale(self, name: str, changed_at: float, fresh_s: float) -> bool:
        reading = self._readings.get(name)
        return reading is None or reading.began <= changed_at or self._clock.monotonic() - reading.ended > fresh_s

    def _probe(self, name: str) -> asyncio.Task[None]:
        if name not in self._probing:
            self._probing[name] = asyncio.create_task(self._probe_now(name, self._probers[name]), name=f"probe {name}")
        return self._probing[name]

    async def _probe_now(self, name: str, prober: Prober) -> None:
        began = self._clock.monotonic()
        try:
            await prober.probe()
        finally:
            if self._probing.get(name) is asyncio.current_task():
                del self._probing[name]
        self._readings[name] = _Reading(began, self._clock.monotonic())
        if name in self._awaited:
            self._awaited.discard(name)
            self._late.set()


def _observed(family: dict[int, int], devices: tuple[Device, ...], server: LiveServer) -> dict[str, int]:
    observed: dict[str, int] = {}
    for device in devices:
        if device.host_memory:
            if device.id in server.reserved_mb:
                observed[device.id] = sum(family.values())
            continue
        used = [process.used_mb for process in device.status.processes if process.pid in family]
        if used and None not in used:
            observed[device.id] = sum(amount for amount in used if amount is not None)
    return observed


async def cap_logs(servers: Iterable[LiveServer], limit_bytes: int) -> None:
    """Have the logs of running servers under their models' names, and cut those that have outgrown the limit."""

    async def cap(model: str, process: Running) -> None:
        try:
            await process.cap_log(model, limit_bytes)
        except OSError as error:
            log.error("%s: its log cannot be renamed or shortened: %s", model, error)

    await asyncio.gather(*(cap(server.model, server.process) for server in servers if server.process is not None))
