"""Puts the control floor together, and keeps its loops running: reconcile, manifests, external servers, logs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from opentelemetry.trace import Tracer

from sidecar.control.activator import Activator
from sidecar.control.clock import Clock
from sidecar.control.fleet import Fleet, LiveServer, RefusedError
from sidecar.control.generations import Generation, Generations
from sidecar.control.reconciler import Reconciler
from sidecar.control.revisions import Revisions, take_over
from sidecar.control.servers import Servers
from sidecar.control.watch import DeviceWatch, ExternalWatch, cap_logs
from sidecar.core.manifest import Declaration, Problem
from sidecar.core.names import listed
from sidecar.core.observed import Demand, ServerState
from sidecar.core.plan import Plan, Start
from sidecar.core.planner import plan
from sidecar.mechanism import loader, procfs, source
from sidecar.mechanism.journal import Journal, Record
from sidecar.mechanism.lock import StateDir
from sidecar.mechanism.runner import MARKER, stop_marked
from sidecar.mechanism.upstream import Client

log = logging.getLogger(__name__)

MANIFESTS_S = 0.5
EXTERNALS_S = 5.0
LOGS_S = 2.0
ORPHAN_GRACE_S = 10.0


class UnusableError(Exception):
    """The manifests leave nothing to run with. problems: all of them."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("the manifests cannot be used")
        self.problems = problems


class Controller:
    """Everything that decides. `open` before use, `close` at the end."""

    def __init__(self, root: Path, state: StateDir, client: Client, tracer: Tracer) -> None:
        self.root = root
        self.client = client
        self.tracer = tracer
        self.clock = Clock()
        self.opened_at = self.clock.monotonic()
        self.fleet = Fleet(self.clock)
        self.generations = Generations()
        self.devices = DeviceWatch(self.clock, self.fleet.changed)
        self.revisions = Revisions()
        self.activator = Activator(self.fleet)
        self.look_now = asyncio.Event()  # set: somebody knows that the manifests have changed
        self.hurry = asyncio.Event()  # set: whoever shuts down has no patience for requests in flight
        self._state = state
        self._journal = Journal(state.path)
        self._servers = Servers(self.fleet, client, state.logs, self._journal, tracer)
        self._externals = ExternalWatch(self.fleet, client)
        self.reconciler = Reconciler(self.fleet, self._servers, self.devices, lambda: self.generation, tracer)
        self.reconciler.cwd = root
        self._signature: source.Signature | None = None  # of the revision in force
        self._seen: source.Signature | None = None  # at the last look
        self._loops: list[asyncio.Task[None]] = []

    @property
    def generation(self) -> Generation:
        """The generation in force."""
        if self.generations.current is None:
            raise RuntimeError("the controller is not open")
        return self.generations.current

    @property
    def declaration(self) -> Declaration:
        """What is declared, as far as it is in force."""
        return self.generation.declaration

    async def open(self, loaded: loader.Loaded, signature: source.Signature) -> None:
        """Take the first revision, look around once, and start the loops. Raises UnusableError."""
        if not loaded.usable:
            raise UnusableError(loaded.problems)
        self._signature = signature
        await self._adopt(loaded)
        await self._recover()
        await self._probe_externals()
        await self.reconciler.round()
        self._loops = [
            asyncio.create_task(self.reconciler.run(), name="reconcile"),
            asyncio.create_task(self._every(MANIFESTS_S, self.refresh, self.look_now), name="manifests"),
            asyncio.create_task(self._every(EXTERNALS_S, self._probe_externals), name="externals"),
            asyncio.create_task(self._every(LOGS_S, self._cap_logs), name="server logs"),
        ]

    async def close(self) -> None:
        """Refuse who waits, let what is in flight finish within drain_timeout, stop the servers, close the plugins."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self.fleet.close()
        if self.generations.current is not None:
            await self._drain()
        if self.generations.current is not None and self.declaration.settings.on_exit == "keep":
            self._servers.keep()
        for server in list(self.fleet.servers.values()):
            if not server.kept:
                self.fleet.force_stop(server, "Shutdown")
        await self._servers.all_gone()
        await self.generations.close()

    async def refresh(self) -> bool:
        """Take over what has changed in the manifests and has held still since the last look; whether anything has."""
        try:
            signature = await asyncio.to_thread(source.signature, self.root)
            held_still, self._seen = signature == self._seen, signature
            if not held_still or signature == self._signature:
                return False
            snapshot = await asyncio.to_thread(source.read, self.root)
        except source.SourceError as error:
            self._reject(str(error))
            return False
        loaded = await asyncio.to_thread(loader.load, snapshot, os.environ, self.declaration)
        self._signature = snapshot.signature
        await self._adopt(loaded)
        await self._probe_externals()
        return True

    def what_if(self, wanted: str | None) -> Plan:
        """The plan for this moment, or for the moment when somebody asks for the model `wanted`. Changes nothing."""
        now = self.clock.monotonic()
        observed = self.fleet.observed(self.devices.devices)
        if wanted is not None and wanted not in {demand.model for demand in observed.demands}:
            demands = (*observed.demands, Demand(wanted, now))
            observed = msgspec.structs.replace(observed, demands=demands)
        return plan(self.declaration, observed, now)

    async def start(self, name: str) -> None:
        """Bring a model up, forgetting earlier failures. Raises RefusedError with the reason if it does not come up."""
        self.fleet.failures.pop(name, None)
        lease = await self.activator.acquire(name, self.declaration.models[name])
        lease.release()

    async def stop(self, name: str, *, force: bool) -> bool:
        """Drain a model's server and stop it, or stop it at once with `force`. False if there is none."""
        server = self.fleet.server_of(name)
        if server is None:
            return False
        self.fleet.refuse(name, RefusedError("stopped", "somebody has stopped the model", None))
        if force:
            self.fleet.force_stop(server, "Requested")
        elif server.state in (ServerState.STARTING, ServerState.READY):
            server.left_because = "Requested"
            self.fleet.move(server, ServerState.DRAINING)
        await server.ended.wait()
        return True

    async def _recover(self) -> None:
        """Take over the servers of the sidecar before, if they still are what is declared; stop what else it left."""
        for record in await asyncio.to_thread(self._journal.read):
            server = self._recorded(record)
            if server is not None and self._servers.take_over(server, record):
                log.info("%s: taken over (pid %d, port %d)", server.id, record.pid, record.port)
                self.fleet.auto_started.add(server.model)
                self._servers.begin(server, self.reconciler.order(server, self.devices.devices))
        mark = self._servers.marker("")
        left = await asyncio.to_thread(procfs.marked, f"{MARKER}={mark}")
        stops = []
        for server_id in left.keys() - self.fleet.servers.keys():
            log.warning("%s: left behind by another sidecar, and not what is declared: stopped", server_id)
            stops.append(stop_marked(mark + server_id, ORPHAN_GRACE_S))
        await asyncio.gather(*stops)

    def _recorded(self, record: Record) -> LiveServer | None:
        """The recorded server, if it would have to be started just so today."""
        model = self.declaration.models.get(record.model)
        variants = model.variants if model is not None else ()
        variant = next((one for one in variants if one.fingerprint() == record.fingerprint), None)
        if variant is None or record.pid == 0:
            return None
        start = Start(model=record.model, variant=variant.name, devices=record.devices, reserved_mb=record.reserved_mb)
        return LiveServer(record.id, start, variant, self.clock)

    async def _adopt(self, loaded: loader.Loaded) -> None:
        before = self.generations.current.declaration if self.generations.current else None
        declaration, self.revisions = take_over(before, loaded)
        for problem in self.revisions.problems:
            log.warning("%s", problem)
        generation = await self.generations.adopt(declaration, loaded.catalog)
        await self.devices.use(self.generations.probers())
        if before is not None:
            self._forget_changed(before, declaration)
            new = loaded.declaration.settings
            if (before.settings.listen, before.settings.state_dir) != (new.listen, new.state_dir):
                log.warning("listen and state_dir take effect when the sidecar is started anew")
        log.info("revision %s is in force as generation %d", declaration.revision, generation.number)
        self.fleet.changed.set()

    def _forget_changed(self, before: Declaration, after: Declaration) -> None:
        """A changed model gets a fresh try, and its server what can change without a restart."""
        for name in before.models.keys() | after.models.keys():
            if before.models.get(name) != after.models.get(name):
                self.fleet.failures.pop(name, None)
                self.fleet.auto_started.discard(name)
        for server in self.fleet.servers.values():
            model = after.models.get(server.model)
            for variant in model.variants if model else ():
                if (variant.name, variant.fingerprint()) == (server.variant.name, server.fingerprint):
                    server.variant = variant

    def _reject(self, message: str) -> None:
        problem = Problem(file=str(self.root), message=message)
        if self.revisions.problems != (problem,):
            log.error("%s; what is in force stays", problem)
        self._signature = None  # when it can be read again, it is a new revision, even if it is the same
        self.revisions = Revisions(attempted="", applied=self.declaration.revision, problems=(problem,))

    async def _probe_externals(self) -> None:
        generation = self.generation
        await self._externals.probe_all(generation.declaration.models, generation.ready)

    async def _cap_logs(self) -> None:
        await cap_logs(self.fleet.servers.values(), self.declaration.settings.server_log_limit)

    async def _drain(self) -> None:
        for server in self.fleet.servers.values():
            if server.state in (ServerState.STARTING, ServerState.READY):
                self.fleet.move(server, ServerState.DRAINING)
        busy = [asyncio.create_task(server.idle.wait()) for server in self.fleet.servers.values() if server.in_flight]
        hurry = asyncio.create_task(self.hurry.wait())
        idle = asyncio.gather(*busy)
        await asyncio.wait(
            (idle, hurry), timeout=self.declaration.settings.drain_timeout, return_when=asyncio.FIRST_COMPLETED
        )
        if not idle.done():
            still = listed(server.model for server in self.fleet.servers.values() if server.in_flight)
            log.warning("requests are cut off: the time to drain is over and %s still serve", still)
        for task in (idle, hurry):
            task.cancel()
        await asyncio.gather(idle, hurry, return_exceptions=True)

    async def _every(
        self, period_s: float, work: Callable[[], Awaitable[object]], at_once: asyncio.Event | None = None
    ) -> None:
        at_once = at_once or asyncio.Event()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(period_s):
                    await at_once.wait()
            at_once.clear()
            try:
                await work()
            except asyncio.CancelledError:
                raise
            except Exception:
                self.reconciler.errors += 1
                log.exception("%s failed", getattr(work, "__name__", work))
