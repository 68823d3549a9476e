"""The loop: observe, plan, act. Level-triggered: whatever happens only wakes it, and it looks at everything again.

It never waits for a server. Starts and stops run in tasks of their own and wake it when they are through.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec

from sidecar.control.fleet import Fleet
from sidecar.control.generations import Generation
from sidecar.control.leases import RefusedError, code_of
from sidecar.control.live import LiveServer
from sidecar.control.machine import Outside
from sidecar.control.servers import Order, Servers
from sidecar.control.watch import DeviceWatch
from sidecar.core.manifest import PortRange
from sidecar.core.observed import Device, Observed
from sidecar.core.plan import Action, Drain, Plan, Start, Stop
from sidecar.core.planner import plan

log = logging.getLogger(__name__)

FRESH_S = 1.0  # a device reading of this age will do
LOOKS = 3  # at the machine, for one that no change of a server falls into
PAUSE_S = 0.02  # between two rounds, so that a burst of events is one round


class Reconciler:
    """Carries out plans. rounds / acted / errors: counters for status."""

    def __init__(
        self, outside: Outside, fleet: Fleet, servers: Servers, watch: DeviceWatch, generation: Callable[[], Generation]
    ) -> None:
        self._fleet = fleet
        self._servers = servers
        self._watch = watch
        self._generation = generation
        self._random = outside.random
        self._resync_s = outside.timing.resync_s  # a lost event costs this much time, never correctness
        self._tracer = outside.tracer
        self.cwd = Path()
        self.last_plan = Plan()
        self.rounds = self.acted = self.errors = 0

    async def run(self) -> None:
        """For ever. A round that fails is logged and counted, and the next one looks again."""
        while True:
            try:
                await self.round()
            except asyncio.CancelledError:
                raise
            except Exception:
                self.errors += 1
                log.exception("a reconcile round failed (%d so far)", self.errors)
                await asyncio.sleep(FRESH_S)
            await asyncio.sleep(PAUSE_S)
            await self._until_something_happens()

    async def round(self) -> None:
        """Observe, plan, act, once."""
        self._fleet.changed.clear()
        began = self._fleet.clock.monotonic()
        observed = await self.observe()
        now = self._fleet.clock.monotonic()
        self.last_plan = plan(self._generation().declaration, observed, now)
        self.rounds += 1
        if self.last_plan.actions:
            self._act(observed)
        self._fleet.note(self.last_plan.conditions)
        for model in list(self._fleet.waiting):
            self._answer(model)
        self._fleet.tallies.rounds.add(self._fleet.clock.monotonic() - began)

    async def observe(self) -> Observed:
        """One look at everything."""
        devices = await self._look()
        for server in self._fleet.servers.values():
            self._fleet.measurements.observed(server.model, server.variant, server.devices, server.observed_mb)
        return self._fleet.observed(devices)

    async def _look(self) -> tuple[Device, ...]:
        """The devices, and into the servers what they take, all as of one moment; stale where that cannot be had."""
        for _ in range(LOOKS):
            before = self._fleet.transitions
            devices = await self._watch.read(self._fleet.last_transition, FRESH_S)
            await self._watch.observe_memory(self._fleet.servers.values(), devices, FRESH_S)
            if self._fleet.transitions == before:
                return devices  # else a server may count as ready, and its memory as free yet
        return tuple(msgspec.structs.replace(device, stale=True) for device in devices)

    async def _until_something_happens(self) -> None:
        wake_at = self.last_plan.wake_at
        now = self._fleet.clock.monotonic()
        timeout_s = self._resync_s if wake_at is None else min(self._resync_s, max(0.0, wake_at - now))
        try:
            async with asyncio.timeout(timeout_s):
                await self._fleet.changed.wait()
        except TimeoutError:
            return

    def _act(self, observed: Observed) -> None:
        self.acted += 1
        told = [f"{type(action).__name__} {action.model}: {action.message}" for action in self.last_plan.actions]
        with self._tracer.start_as_current_span("reconcile", attributes={"sidecar.actions": told}):
            for action, text in zip(self.last_plan.actions, told, strict=True):
                log.info("%s", text)
                self._carry_out(action, observed)

    def _carry_out(self, action: Action, observed: Observed) -> None:
        match action:
            case Start():
                self._start(action, observed)
            case Drain():
                if server := self._fleet.servers.get(action.server):
                    self._fleet.drain(server, action.reason, action.message)
            case Stop():
                if server := self._fleet.servers.get(action.server):
                    self._stop(server, action)

    def _stop(self, server: LiveServer, stop: Stop) -> None:
        if not self._fleet.try_stop(server, stop.reason, stop.message):
            log.info("%s: a request came in, so it stays", server.id)
        elif stop.reason == "BetterVariant":
            self._fleet.send_back(server)

    def _start(self, start: Start, observed: Observed) -> None:
        if self._fleet.closing:
            return  # whoever waits was refused already; what is not started need not be stopped
        generation = self._generation()
        model = generation.declaration.models[start.model]
        variant = next(variant for variant in model.variants if variant.name == start.variant)
        server = LiveServer(f"{start.model}-{self._random.getrandbits(32):08x}", start, variant, self._fleet.clock)
        self._servers.begin(server, self.order(server, observed.devices), start.message)

    def order(self, server: LiveServer, devices: tuple[Device, ...]) -> Order:
        """How the server is to be run by what is declared now."""
        generation = self._generation()
        return Order(
            ready=generation.health(generation.declaration.models[server.model]).ready,
            devices=tuple(device for key in server.devices for device in devices if device.id == key),
            visibility=self._watch.visibility(server.devices),
            ports=PortRange.parse(generation.declaration.settings.ports),
            cwd=self.cwd,
        )

    def _answer(self, model: str) -> None:
        """Serve those who wait for the model if an external server can; tell them if waiting is no use."""
        declared = self._generation().declaration.models.get(model)
        if declared is None:
            self._fleet.refuse(model, RefusedError("model_not_found", "the model is no longer declared", None))
        elif (variant := self._fleet.healthy_external(model, declared)) is not None:
            self._fleet.grant_external(model, variant)
        elif refusal := self.last_plan.refusals.get(model):
            error = RefusedError(code_of(refusal.reason), refusal.message, refusal.retry_after_s)
            self._fleet.refuse(model, error)
