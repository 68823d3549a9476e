"""One life of the sidecar: from its start, on whatever the one before has left, to its end or its death."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from pathlib import Path
from random import Random

from opentelemetry.trace import NoOpTracer

from sidecar.control.clock import Clock, Timing
from sidecar.control.controller import Controller
from sidecar.control.machine import Outside
from sidecar.core.observed import ServerState
from sidecar.mechanism.loader import Loaded
from tests.simulation.declared import Manifests, VirtualSource
from tests.simulation.loop import OWNER, VirtualLoop
from tests.simulation.machine import VirtualClient, VirtualMachine
from tests.simulation.world import Group, World

OPENS_S = 15.0  # whatever the one before has left; a device plugin may take 5 s before it is given up
RESYNC_S = 600.0  # seldom, since nothing is waited for: what a lost event costs is told by `losing_events`


class Sidecar:
    """A controller, and all tasks that end with it. recovered: it has taken over what there was."""

    def __init__(self, world: World, manifests: Manifests, seed: int) -> None:
        self.world = world
        self.manifests = manifests
        self.died = asyncio.Event()
        self.recovered = False
        self.losing_events = False
        self.machine = VirtualMachine(world, self.died.set)
        self._tasks: set[asyncio.Task[object]] = set()
        self._random = Random(seed)  # noqa: S311 - a simulation must be repeatable
        self.controller = Controller(
            Path("/virtual"),
            Outside(
                machine=self.machine,
                source=VirtualSource(manifests),
                client=VirtualClient(world),
                tracer=NoOpTracer(),
                clock=Clock(_strictly_rising(world.loop), world.unix),
                timing=Timing(
                    resync_s=RESYNC_S, externals_s=RESYNC_S, logs_s=3600.0, loads_s=600.0, residence_s=3600.0
                ),
                random=self._random,
            ),
        )
        self._lose_events()
        self._watch_rounds()

    def task(self, coroutine: object, name: str) -> asyncio.Task[object]:
        """A task that ends when this sidecar does: it is part of it, or talks to it."""
        context = contextvars.copy_context()
        context.run(OWNER.set, self._own)
        return self.world.loop.create_task(coroutine, name=name, context=context)  # type: ignore[arg-type] # any coroutine

    async def open(self) -> None:
        """Start. Returns when it has recovered, or died over it."""
        world = self.world
        world.audit.sidecar = self
        in_force, loaded = self.manifests.in_force(), self.manifests.loaded()
        opening = self.task(self._open(loaded, in_force, self._to_be_adopted()), "open")
        await asyncio.wait((opening, died := asyncio.ensure_future(self.died.wait())), return_when="FIRST_COMPLETED")
        died.cancel()
        if opening.done() and not opening.cancelled():
            opening.result()

    async def _open(self, loaded: Loaded, in_force: Loaded | None, before: list[Group]) -> None:
        began = self.world.now
        await self.controller.open(loaded, in_force)
        if (took_s := self.world.now - began) > OPENS_S:
            self.world.audit.fail("16", f"it took {took_s:.1f} s to take over what there was")
        self.recovered = True
        self.world.audit.recovered(self, before)

    def _to_be_adopted(self) -> list[Group]:
        """Servers that are healthy, recorded with their identity and declared as they run."""
        declared = {
            (name, one.fingerprint()) for name, model in self.manifests.expected.items() for one in model.variants
        }
        found = []
        for record in self.world.journal:
            group = self.world.groups.get(record.id)
            if group is None or not group.listening or group.told_to_go or not record.pid:
                continue  # one that loads may never be ready, and then it is stopped by right
            if (record.model, record.fingerprint) in declared:
                found.append(group)
        return found

    async def close(self) -> None:
        """A graceful exit, unless it dies over it."""
        ready = [server.id for server in self.controller.fleet.servers.values() if server.state is ServerState.READY]
        closing = self.task(self.controller.close(), "close")
        await asyncio.wait((closing, died := asyncio.ensure_future(self.died.wait())), return_when="FIRST_COMPLETED")
        died.cancel()
        if closing.done() and not closing.cancelled():
            closing.result()
            self._ended_well(ready)
        await self.kill()

    def _ended_well(self, ready: list[str]) -> None:
        kept = {name for name, server in self.controller.fleet.servers.items() if server.kept}
        if self.controller.declaration.settings.on_exit == "keep":
            for name in ready:
                group = self.world.groups.get(name)
                if group is not None and group.listening and name not in kept:
                    self.world.audit.fail("16", f"{name} served, and was not kept")
        left = self.world.groups.keys() - kept
        if left:
            self.world.audit.fail("16", f"the sidecar has ended, and {sorted(left)} were left behind")
        self.machine.dead = True  # what is left of it now does nothing any more

    async def kill(self) -> None:
        """SIGKILL: whatever it was doing ends here."""
        self.machine.dead = True
        self.died.set()
        self.world.audit.sidecar = None
        for turn in range(100):
            pending = [task for task in self._tasks if not task.done()]
            if not pending:
                break
            for task in pending:
                task.cancel()
            await asyncio.sleep(0)
            if turn == 99:
                raise RuntimeError(f"tasks that do not end: {pending}")
        self.world.busy.clear()
        for pid in list(self.world.zombies):
            self.world.reaped(pid)

    def _own(self, task: asyncio.Task[object]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lose_events(self) -> None:
        """In bad times, an event gets lost now and then, or comes twice."""
        changed = self.controller.fleet.changed
        really = changed.set
        random = Random(self._random.getrandbits(32))  # noqa: S311 - as above

        def unreliably() -> None:
            if self.losing_events and random.random() < 0.2:
                return
            really()
            if self.losing_events and random.random() < 0.2:
                self.world.loop.call_later(random.random(), really)

        changed.set = unreliably  # type: ignore[method-assign] # that is the fault

    def _watch_rounds(self) -> None:
        reconciler, audit = self.controller.reconciler, self.world.audit
        observe, one_round = reconciler.observe, reconciler.round
        seen: list[object] = []

        async def observed() -> object:
            seen[:] = [await observe()]
            return seen[0]

        async def watched() -> None:
            await one_round()
            if not self.machine.dead:
                for action in reconciler.last_plan.actions:
                    self.world.say(f"plan: {action}")
                audit.planned(seen[0], reconciler.last_plan, self.controller.declaration)  # type: ignore[arg-type] # Observed
                audit.look()

        reconciler.observe = observed  # type: ignore[method-assign,assignment] # the audit looks over its shoulder
        reconciler.round = watched  # type: ignore[method-assign] # as above


def _strictly_rising(loop: VirtualLoop) -> Callable[[], float]:
    """On a real machine no two looks at the clock give the same."""
    last = loop.now

    def monotonic() -> float:
        nonlocal last
        last = max(loop.now, last + 1e-7)
        return last

    return monotonic
