"""The product with one mistake in it: the simulation must find each of them, or it proves nothing."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from unittest.mock import patch

import msgspec

from sidecar.control import controller
from sidecar.control.fleet import Fleet
from sidecar.control.live import LiveServer
from sidecar.control.reconciler import Reconciler
from sidecar.control.revisions import Revisions
from sidecar.control.servers import Servers
from sidecar.core import planner, turns
from sidecar.core.ledger import Ledger
from sidecar.core.manifest import Declaration
from sidecar.core.observed import Device, Observed, Server, ServerState
from sidecar.core.plan import Plan
from sidecar.mechanism.journal import Record
from sidecar.mechanism.loader import Loaded
from tests.simulation import faults, machine
from tests.simulation.life import EVERYTHING, Course
from tests.simulation.machine import VirtualMachine, VirtualRunning
from tests.simulation.world import World

Mutant = Callable[[], AbstractContextManager[Any]]


def forgets_a_reservation() -> AbstractContextManager[Any]:
    """The ledger does not count servers that are starting."""
    build = Ledger.__init__

    def forgetful(self: Ledger, devices: Iterable[Device], known: Iterable[Server], *rest: Any) -> None:
        build(self, devices, [one for one in known if one.state is not ServerState.STARTING], *rest)

    return patch.object(Ledger, "__init__", forgetful)


def ignores_foreign_memory() -> AbstractContextManager[Any]:
    """Admission takes the ledger's word alone."""
    build = Ledger.__init__

    def trusting(self: Ledger, devices: Iterable[Device], *rest: Any) -> None:
        full = [_all_free(device) for device in devices]
        build(self, full, *rest)

    return patch.object(Ledger, "__init__", trusting)


def _all_free(device: Device) -> Device:
    status = msgspec.structs.replace(device.status, free_mb=device.status.total_mb)
    return msgspec.structs.replace(device, status=status)


def places_on_the_unknown() -> AbstractContextManager[Any]:
    """A device that cannot be read is taken for an empty one."""
    return patch.object(Device, "unknown", "")


def releases_too_early() -> AbstractContextManager[Any]:
    """The reservation is released when the stop has begun, not when the group is gone."""
    stop = Servers._stop
    under_way = set()

    async def hasty(self: Servers, server: LiveServer, how: Callable[[], Awaitable[None]]) -> None:
        under_way.add(asyncio.create_task(stop(self, server, how)))

    return patch.object(Servers, "_stop", hasty)


def stops_the_busy() -> AbstractContextManager[Any]:
    """A request in flight keeps nobody from being stopped."""

    def brutal(self: Fleet, server: LiveServer, reason: str, why: str = "") -> bool:
        self.force_stop(server, reason, why)
        return True

    def heedless(self: Fleet, server: LiveServer, reason: str, why: str = "") -> None:
        self.force_stop(server, reason, why)

    both = ExitStack()
    both.enter_context(patch.object(Fleet, "try_stop", brutal))
    both.enter_context(patch.object(Fleet, "drain", heedless))
    return both


def skips_the_record() -> AbstractContextManager[Any]:
    """Nothing is on disk when a process is spawned."""

    async def careless(self: VirtualMachine, records: Iterable[Record]) -> None:
        self.unwritten = tuple(records)  # type: ignore[attr-defined] # it stays in the page cache

    return patch.object(VirtualMachine, "record", careless)


def never_wakes_on_time() -> AbstractContextManager[Any]:
    """Only what happens wakes it, not what was due."""
    wait = Reconciler._until_something_happens

    async def sleepy(self: Reconciler) -> None:
        self.last_plan = msgspec.structs.replace(self.last_plan, wake_at=None)
        await wait(self)

    return patch.object(Reconciler, "_until_something_happens", sleepy)


def starts_twice() -> AbstractContextManager[Any]:
    """Who is starting is not there yet, so the next request of the burst starts another."""
    observed = Fleet.observed

    def blind(self: Fleet, devices: tuple[Device, ...]) -> Observed:
        seen = observed(self, devices)
        there = tuple(server for server in seen.servers if server.state is not ServerState.STARTING)
        return msgspec.structs.replace(seen, servers=there)

    return patch.object(Fleet, "observed", blind)


def forgets_residency() -> AbstractContextManager[Any]:
    """A server may go the moment that it is ready."""
    both = ExitStack()
    for module in (planner, turns):
        both.enter_context(patch.object(module, "resident_until", lambda *_: -math.inf))
    return both


def forgets_turns() -> AbstractContextManager[Any]:
    """However long a model waits, it is never its turn."""
    both = ExitStack()
    for module in (planner, turns):
        both.enter_context(patch.object(module, "overdue_at", lambda *_: math.inf))
    return both


def evicts_the_pinned() -> AbstractContextManager[Any]:
    """A pin holds nobody."""
    both = ExitStack()
    for module in (planner, turns):
        both.enter_context(patch.object(module, "is_pinned", lambda *_: False))
    return both


def signals_without_identity() -> AbstractContextManager[Any]:
    """A pid is taken for the process that once had it."""

    def blind(world: World, pid: int, started: int, *, kill: bool) -> None:
        world.deliver(pid, kill)

    return patch.object(machine, "send", blind)


def adopts_without_proof() -> AbstractContextManager[Any]:
    """Whoever has the recorded pid is the server."""

    def credulous(self: VirtualMachine, record: Record) -> VirtualRunning | None:
        if self.dead or not (started := self.world.identity(record.pid)):
            return None
        return VirtualRunning(self, record.id, record.pid, started, self.world.groups.get(record.id), child=False)

    return patch.object(VirtualMachine, "take_over", credulous)


def adopts_nothing() -> AbstractContextManager[Any]:
    """What another sidecar has started is always stopped."""
    return patch.object(VirtualMachine, "take_over", lambda *_: None)


def believes_an_empty_source() -> AbstractContextManager[Any]:
    """What a revision declares is in force, whatever is wrong with it."""

    def naive(before: Declaration | None, loaded: Loaded) -> tuple[Declaration, Revisions]:
        revision = loaded.declaration.revision
        return loaded.declaration, Revisions(attempted=revision, applied=revision)

    return patch.object(controller, "take_over", naive)


def stays_blind_to_exits() -> AbstractContextManager[Any]:
    """The end of a server is noticed when it is next asked for."""
    return patch.object(VirtualRunning, "_watch", lambda _: None)


def never_rests() -> AbstractContextManager[Any]:
    """A plan that is carried out leaves as much to do as before: what was stopped for being idle starts again."""
    plan = planner.plan

    def restless(declared: Declaration, observed: Observed, now: float) -> Plan:
        return plan(declared, msgspec.structs.replace(observed, auto_started=frozenset()), now)

    both = ExitStack()
    both.enter_context(patch("sidecar.control.reconciler.plan", restless))
    both.enter_context(patch("sidecar.control.controller.plan", restless))
    return both


class Case(msgspec.Struct, frozen=True):
    """A mistake, the promises of which one must be the first that it breaks, and what makes it show soon."""

    mutant: Mutant
    promises: tuple[str, ...]
    course: Course = EVERYTHING


_CALLERS = Course(calm=1.0, contentions=0.0)
_RIVALS = Course(contentions=1.0)
_DEVICES = Course(faults=(faults.device, faults.device, faults.burst, faults.rivals), calm=0.0, contentions=0.0)
_STOPS = Course(faults=(faults.collision, faults.burst, faults.kill), calm=0.0, contentions=0.0)
_EDITS = Course(faults=(faults.edit, faults.burst), calm=0.0, contentions=0.0)
_ENDS = Course(faults=(faults.kill, faults.leave, faults.burst), calm=0.0, contentions=0.0)
_FOREIGN = Course(faults=(faults.foreign, faults.rivals), calm=0.0, contentions=0.0)

ALL = (
    Case(forgets_a_reservation, ("promise 1", "promise 3"), _CALLERS),
    Case(ignores_foreign_memory, ("promise 1", "promise 6"), _FOREIGN),
    Case(places_on_the_unknown, ("promise 4", "promise 6"), _DEVICES),
    Case(releases_too_early, ("promise 2",)),
    Case(stops_the_busy, ("promise 7",), _RIVALS),
    Case(skips_the_record, ("promise 2",)),
    Case(never_wakes_on_time, ("promise 28",)),
    Case(starts_twice, ("promise 1", "promise 10", "a reconcile round failed")),
    Case(forgets_residency, ("promise 9",), _CALLERS),
    Case(forgets_turns, ("promise 9",), _RIVALS),
    Case(evicts_the_pinned, ("promise 8",), _CALLERS),
    Case(signals_without_identity, ("promise 17",), _STOPS),
    Case(adopts_without_proof, ("promise 16", "promise 17"), _ENDS),
    Case(adopts_nothing, ("promise 16",), _ENDS),
    Case(believes_an_empty_source, ("promise 11",), _EDITS),
    Case(stays_blind_to_exits, ("promise 20",)),
    Case(never_rests, ("promise 28",)),
)
