"""Puts the control floor together, and keeps its loops running: reconcile, manifests, external servers, logs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from sidecar.control.activator import Activator
from sidecar.control.changes import renamed_models, take_over_changes
from sidecar.control.events import Events
from sidecar.control.externals import ExternalWatch
from sidecar.control.fleet import Fleet, Memories
from sidecar.control.generations import Generation, Generations
from sidecar.control.leases import RefusedError, drained
from sidecar.control.loads import LoadWatch
from sidecar.control.machine import Outside
from sidecar.control.measurements import Measurements
from sidecar.control.reconciler import Reconciler
from sidecar.control.recovery import Recovery
from sidecar.control.residence import Residence
from sidecar.control.revisions import Revisions, in_force, take_over
from sidecar.control.serverlogs import ServerLogs
from sidecar.control.servers import Servers
from sidecar.control.watch import DeviceWatch, cap_logs
from sidecar.core.explain import Story, explain, wanting
from sidecar.core.manifest import Declaration, Problem
from sidecar.core.names import listed
from sidecar.core.nodes import counted
from sidecar.core.overrides import DRAINED
from sidecar.core.plan import Plan
from sidecar.core.planner import plan
from sidecar.mechanism.applied import AppliedFile
from sidecar.mechanism.loader import Loaded
from sidecar.mechanism.services import Host
from sidecar.mechanism.source import RejectedError, SourceError

log = logging.getLogger(__name__)

TROUBLE_S = 1.0  # before a loop that has failed goes on


class UnusableError(Exception):
    """The manifests leave nothing to run with. problems: all of them."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("the manifests cannot be used")
        self.problems = problems


class Controller:
    """Everything that decides. `open` before use, `close` at the end."""

    def __init__(self, root: Path, outside: Outside) -> None:
        self.root = root
        self.client = outside.client
        self.tracer = outside.tracer
        self.node = outside.node
        self.clock = outside.clock
        self.opened_at = self.clock.monotonic()
        self.events = Events(self.clock, outside.state)
        self.measurements = Measurements(outside.state)
        memories = Memories(events=self.events, measurements=self.measurements, random=outside.random.random)
        self.fleet = Fleet(self.clock, memories)
        self.server_logs = ServerLogs(
            self.fleet, lambda: self.declaration, outside.machine, outside.state, outside.hide
        )
        self.generations = Generations(Host(outside.tracer, outside.state))
        self.devices = DeviceWatch(self.clock, outside.machine, self.fleet.changed)
        self.revisions = Revisions()
        self._in_force: Loaded | None = None
        self._applied = AppliedFile(outside.state)
        self.activator = Activator(self.fleet)
        self.look_now = asyncio.Event()  # set: somebody knows that the manifests have changed
        self.hurry = asyncio.Event()  # set: whoever shuts down has no patience for requests in flight
        self._anew = False  # whether somebody has asked for all to be read again
        self._taking_over = asyncio.Lock()
        self.source = outside.source
        self._timing = outside.timing
        self._servers = Servers(outside, self.fleet)
        self._residence = Residence(self.fleet, lambda: self.generation)
        self._externals = ExternalWatch(self.fleet, outside.client)
        self.reconciler = Reconciler(outside, self.fleet, self._servers, self.devices, lambda: self.generation)
        self.reconciler.cwd = root
        self.loads = LoadWatch(self.fleet, self.reconciler.observe, self._timing.loads_s)
        self._recovery = Recovery(outside.machine, self._servers, self.reconciler)
        self._externals_now = asyncio.Event()  # set: there may be others
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

    async def open(self, loaded: Loaded, before: Loaded | None = None) -> None:
        """Take the first revision, look around once, and start the loops. Raises UnusableError.

        before: what the sidecar before had in force; what is faulty now is kept as it was there.
        """
        if not loaded.usable and before is None:
            raise UnusableError(loaded.problems)
        self._in_force = before
        await self.events.open()
        await self._adopt(loaded)
        await self._recovery.run(self.declaration, self.devices.devices)
        if before is not None:
            await self._rename_logs(renamed_models(self.fleet, before.declaration, self.declaration))
        await self.reconciler.round()
        self._loops = [
            asyncio.create_task(self.reconciler.run(), name="reconcile"),
            asyncio.create_task(self._whenever(self._manifests_changed, self.refresh), name="manifests"),
            asyncio.create_task(self._whenever(self._plugins_opened, self._take_opened), name="plugins"),
            asyncio.create_task(self._whenever(self._externals_due, self._probe_externals), name="externals"),
            asyncio.create_task(self._every(self._timing.logs_s, self._cap_logs), name="server logs"),
            asyncio.create_task(self._every(self._timing.forget_s, self.server_logs.forget), name="old logs"),
            asyncio.create_task(self._whenever(self.loads.due, self.loads.look), name="loads"),
            asyncio.create_task(self._every(self._timing.saves_s, self.measurements.save), name="measurements"),
            asyncio.create_task(self._every(self._timing.residence_s, self._residence.tell), name="residence"),
        ]

    async def close(self) -> None:
        """Refuse who waits, let what is in flight finish within drain_timeout, stop the servers, close the plugins."""
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._externals.close()
        await self.source.close()
        self.fleet.close()
        if self.generations.current is not None:
            await self._drain()
        if self.generations.current is not None and self.declaration.settings.on_exit == "keep":
            self._servers.keep()
            await self._write_down()
        for server in list(self.fleet.servers.values()):
            if not server.kept:
                self.fleet.force_stop(server, "Shutdown")
        await self._servers.all_gone()
        if self.generations.current is not None:
            await self._residence.tell()
        await self.generations.close()
        await self.measurements.save()
        await self.events.close()

    async def refresh(self) -> bool:
        """Take over what has changed in the manifests and has held still since the last look; whether anything has."""
        async with self._taking_over:
            anew, self._anew = self._anew, False
            try:
                loaded = await self.source.read(self.declaration, anew=anew)
            except RejectedError as error:
                self._turn_down(error)
                return False
            except SourceError as error:
                self._reject(str(error))
                return False
            if loaded is None:
                return False
            await self._adopt(loaded)
            return True

    def ask_reload(self) -> None:
        """Have manifests and plugins read again soon, those on `sys.path` too, whether or not they seem changed."""
        self._anew = True
        self.look_now.set()

    async def reload(self) -> bool:
        """Do so now. False if they cannot be read; `revisions` tells why."""
        self._anew = True
        return await self.refresh()

    async def what_if(self, wanted: str | None) -> Plan:
        """The plan for this moment, or for the moment when somebody asks for the model `wanted`. Changes nothing."""
        observed = await self.reconciler.observe()
        now = self.clock.monotonic()
        return plan(self.declaration, observed if wanted is None else wanting(observed, wanted, now), now)

    async def explain(self, name: str) -> Story:
        """The whole story of a declared model, at this moment."""
        observed = await self.reconciler.observe()
        return explain(self.declaration, observed, name, self.clock.monotonic())

    async def start(self, name: str) -> None:
        """Bring a model up, forgetting earlier failures. Raises RefusedError with the reason if it does not come up."""
        self.undrain(name)
        self.fleet.forgive(name)
        lease = await self.activator.acquire(name, self.declaration.models[name], bounded=False)
        lease.release()

    async def stop(self, name: str, *, force: bool) -> bool:
        """Drain a model's server and stop it, or stop it at once with `force`. False if there is none."""
        self.fleet.refuse(name, RefusedError("stopped", "somebody has stopped the model", None))
        self.fleet.moving.pop(name, None)
        server = self.fleet.server_of(name)
        if server is None:
            return False
        server.returns = False
        if force:
            self.fleet.force_stop(server, "Requested", "somebody has asked for it")
        else:
            self.fleet.drain(server, "Requested", "somebody has asked for it")
        await server.ended.wait()
        return True

    async def drain(self, name: str) -> bool:
        """Take a model out of service: whoever waits is refused, what is in flight finishes, its server is stopped.

        Returns when that is so; nothing brings it back but `undrain` and `start`. False if it was so already.
        """
        new = self.fleet.overrides.drain(name)
        self.fleet.refuse(name, drained(name))
        self.fleet.moving.pop(name, None)
        self.fleet.changed.set()
        if (server := self.fleet.server_of(name)) is not None:
            server.returns = False
            self.fleet.drain(server, DRAINED, "an operator has taken the model out of service")
            await server.ended.wait()
        return new

    def undrain(self, name: str) -> bool:
        """Put a drained model back into service; it starts when somebody wants it. False if it was not drained."""
        self.fleet.changed.set()
        return self.fleet.overrides.undrain(name)

    def pin(self, name: str, *, pinned: bool) -> bool:
        """Pin a model's server on top of what its manifest says, or take that back. False if it was so already."""
        self.fleet.changed.set()
        return self.fleet.overrides.pin(name) if pinned else self.fleet.overrides.unpin(name)

    async def _adopt(self, loaded: Loaded) -> None:
        before = self.generations.current.declaration if self.generations.current else None
        kept = self._in_force
        declaration, self.revisions = take_over(kept.declaration if kept else None, loaded)
        for problem in self.revisions.problems:
            log.warning("%s", problem)
        self._in_force = now = in_force(kept, loaded, declaration)
        await self._applied.save(self.root, declaration, now.tables)
        generation = await self.generations.adopt(declaration, now.catalog)
        # In one step with it, or a plan in between would find renamed models undeclared.
        names = renamed_models(self.fleet, before, declaration) if before is not None else {}
        renamed = before is not None and take_over_changes(self.fleet, before, declaration)
        self.measurements.declare(declaration)
        self.fleet.overrides.keep_only(declaration.models)
        self._tell(declaration)
        log.info("revision %s is in force as generation %d", declaration.revision, generation.number)
        if names:
            await self._rename_logs(names)  # before a model that has one of the old names begins a log of its own
        await self._use_generation()
        new = loaded.declaration.settings
        if before is not None and (before.settings.listen, before.settings.state_dir) != (new.listen, new.state_dir):
            log.warning("listen and state_dir take effect when the sidecar is started anew")
        if renamed:
            await self._write_down()

    async def _take_opened(self) -> None:
        async with self._taking_over:
            if await self.generations.take_opened():
                log.info("plugins have opened: generation %d is in force", self.generation.number)
                await self._use_generation()

    async def _use_generation(self) -> None:
        self.fleet.changed.set()
        self._externals_now.set()
        await self.devices.use(self.generations.probers())

    async def _plugins_opened(self) -> None:
        await self.generations.opened.wait()

    async def _write_down(self) -> None:
        try:
            await self._servers.write_down()
        except OSError:
            log.exception("the new names of servers cannot be written down; the next sidecar goes by how they run")

    def _tell(self, declaration: Declaration) -> None:
        problems = self.revisions.problems
        kept = f"; in their last good form: {listed(self.revisions.kept)}" if self.revisions.kept else ""
        elsewhere = f"; {told}" if (told := counted(declaration.elsewhere)) else ""
        message = f"{len(declaration.models)} models, {len(problems)} problems{kept}{elsewhere}"
        self.events.record("RevisionApplied", message=message, revision=declaration.revision)
        for problem in problems:
            self.events.record("ManifestProblem", message=str(problem), revision=self.revisions.attempted)

    def _reject(self, message: str) -> None:
        problem = Problem(file=str(self.root), message=message)
        if self.revisions.problems != (problem,):
            log.error("%s; what is in force stays", problem)
            self.events.record("RevisionRejected", reason="SourceError", message=message)
        self.revisions = Revisions(attempted="", applied=self.declaration.revision, problems=(problem,))

    def _turn_down(self, error: RejectedError) -> None:
        """A revision that was read and is not taken: what is in force stays."""
        if self.revisions.problems != error.problems:
            log.error("%s:", error)
            for problem in error.problems:
                log.error("%s", problem)
        told = "; ".join(map(str, error.problems))
        self.events.record("RevisionRejected", reason="Faulty", message=f"{error}: {told}", revision=error.revision)
        applied = self.declaration.revision
        self.revisions = Revisions(attempted=error.revision, applied=applied, problems=error.problems)

    async def _probe_externals(self) -> None:
        generation = self.generation
        await self._externals.probe_all(generation.declaration.models, generation.health)

    async def _externals_due(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timing.externals_s):
                await self._externals_now.wait()
        self._externals_now.clear()

    async def _rename_logs(self, names: dict[str, str]) -> None:
        await self.server_logs.rename(names)
        await self._cap_logs()

    async def _cap_logs(self) -> None:
        await cap_logs(self.fleet.servers.values(), self.declaration.settings.server_log_limit)

    async def _drain(self) -> None:
        for server in self.fleet.servers.values():
            self.fleet.drain(server, "Shutdown", "the sidecar is shutting down")
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

    async def _manifests_changed(self) -> None:
        await self.source.changed(self.look_now)
        self.look_now.clear()

    async def _every(self, period_s: float, work: Callable[[], Awaitable[object]]) -> None:
        await self._whenever(lambda: asyncio.sleep(period_s), work)

    async def _whenever(self, wait: Callable[[], Awaitable[None]], work: Callable[[], Awaitable[object]]) -> None:
        """For ever: what fails is logged and counted, and tried again the next time."""
        while True:
            try:
                await wait()
                await work()
            except asyncio.CancelledError:
                raise
            except Exception:
                self.reconciler.errors += 1
                log.exception("%s failed", getattr(work, "__name__", work))
                await asyncio.sleep(TROUBLE_S)
