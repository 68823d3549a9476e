"""The promises of design.md, checked at every step against what is really there. The first one broken ends the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from sidecar.core.manifest import Declaration, Variant
from sidecar.core.observed import LEAVING, Observed, Server, ServerState
from sidecar.core.plan import Drain, Plan, Start, Stop
from sidecar.core.planner import plan
from tests.simulation import room

if TYPE_CHECKING:  # it looks at what they are; they report to it
    from sidecar.control.fleet import Fleet
    from tests.simulation.sidecar import Sidecar
    from tests.simulation.world import Gpu, Group, World

NOTICED_S = 1.0  # within which the end of a server must be known
IDLE_SLACK_S = 70.0  # a device that is slow to answer may hold up a round
BY_ITSELF = ("Exited", "Failed")  # reasons for which nobody has decided to stop the server


class BrokenPromiseError(AssertionError):
    """The number of the promise in design.md, and the facts."""


class Audit:
    """world and sidecar: what it looks at. broken: the first promise that was."""

    world: World

    def __init__(self, stop: Callable[[], None]) -> None:
        self.sidecar: Sidecar | None = None
        self.broken: BrokenPromiseError | None = None
        self.checks = 0
        self.quiet_since = 0.0  # when something last happened that may have moved a deadline
        self.forced: set[str] = set()  # servers that a person has had stopped whatever they did
        self.calm = False  # nothing happens but that callers come and go
        self._stop = stop
        self._room_for: dict[str, tuple[Variant, set[str]]] = {}  # newcomers, and who was evicted for them
        self._ready_since: dict[str, float] = {}

    def fail(self, promise: str, facts: str) -> None:
        """Note it and end the run; the first one counts."""
        if self.broken is None:
            self.broken = BrokenPromiseError(f"promise {promise}, at {self.world.now:.3f} s: {facts}")
        self._stop()

    # --- at every step ------------------------------------------------------------------------------------------

    def look(self) -> None:
        """What must hold at all times."""
        self.checks += 1
        sidecar = self.sidecar
        if sidecar is None or not sidecar.recovered or sidecar.machine.dead:
            return
        servers = sidecar.controller.fleet.servers
        recorded = {record.id for record in self.world.journal}
        for name in self.world.groups:
            if name not in servers:
                self.fail("2", f"{name} has living processes and no reservation")
            if name not in recorded:
                self.fail("2", f"{name} has living processes and is not recorded")
        models = [server.model for server in servers.values()]
        if len(set(models)) != len(models):
            self.fail("10", f"a model has two servers: {sorted(servers)}")
        self._idle(sidecar)
        ports = [server.port for server in servers.values() if server.port]
        if len(set(ports)) != len(ports):
            self.fail("16", f"two servers have one port: {sorted(ports)}")

    def _idle(self, sidecar: Sidecar) -> None:
        """What nobody uses is stopped in time, if nothing is in the way."""
        fleet = sidecar.controller.fleet
        if sidecar.losing_events or fleet.waiting or fleet.closing:
            return
        models = sidecar.controller.declaration.models
        if any(server.variant.exclusive_start for server in fleet.servers.values()):
            return  # nothing goes while one that sizes itself by what is free is loading
        for server in fleet.servers.values():
            model = models.get(server.model)
            idle = server.state is ServerState.READY and not server.in_flight and model is not None
            if not idle or model is None or model.pinned or not model.idle_timeout:
                continue
            due = max(server.last_used + model.idle_timeout, self.quiet_since)
            if self.world.now > due + IDLE_SLACK_S:
                self.fail("28", f"{server.id} is due since {self.world.now - due:.1f} s and was not stopped")

    # --- what the machine is asked to do ------------------------------------------------------------------------

    def spawns(self, server: str, model: str) -> None:
        """Just before a process is made."""
        record = next((record for record in self.world.journal if record.id == server), None)
        if record is None:
            self.fail("2", f"{server} is spawned before it is recorded")
        for group in self.world.groups.values():
            if group.model == model:
                self.fail("10", f"{server} is spawned while {group.server} runs")

    def port_taken(self, port: int) -> None:
        """Just after a port was given out."""
        for group in self.world.groups.values():
            if group.port == port:
                self.fail("16", f"port {port} is given out, and {group.server} has it")

    def stops(self, server: str) -> None:
        """Just before the first signal."""
        fleet = self.sidecar.controller.fleet if self.sidecar else None
        if fleet is None or (live := fleet.servers.get(server)) is None:
            return
        if live.state is not ServerState.STOPPING:
            self.fail("19", f"{server} is {live.state.value} as its stop begins")
        busy = self.world.busy.get(server, 0)
        ended = server in self.world.groups and self.world.groups[server].exit is not None
        gone = server not in self.world.groups
        forced = server in self.forced or fleet.closing or live.left_because in BY_ITSELF
        if busy and not (forced or ended or gone):
            self.fail("7", f"{server} is stopped ({live.left_because}) with {busy} requests in flight")

    def signalled(self, group: Group) -> None:
        """A signal reaches a server of ours."""
        sidecar = self.sidecar
        if sidecar is None or not sidecar.recovered or sidecar.machine.dead:
            return
        server = sidecar.controller.fleet.servers.get(group.server)
        if server is None or server.state is not ServerState.STOPPING:
            self.fail("17", f"{group.server} gets a signal, and nobody has decided to stop it")

    def serves(self, server: str) -> None:
        """The sidecar has found out that the server serves."""
        self._ready_since[server] = self.world.now

    def granted(self, server: str, model: str) -> None:
        """A request was let through."""
        group = self.world.groups.get(server)
        if group is not None and group.model.partition("~")[0] != model.partition("~")[0]:  # renamed, maybe
            self.fail("19", f"a request for {model} was sent to {server}")
        if group is not None and not group.listening and group.exit is None:
            self.fail("19", f"a request was sent to {server}, which does not listen yet")

    # --- what befalls servers -----------------------------------------------------------------------------------

    def died(self, group: Group) -> None:
        """A server has ended by itself."""
        self.world.loop.call_later(NOTICED_S, self._noticed, group, self.sidecar)

    def _noticed(self, group: Group, sidecar: Sidecar | None) -> None:
        if sidecar is None or sidecar is not self.sidecar or sidecar.machine.dead or not sidecar.recovered:
            return
        server = sidecar.controller.fleet.servers.get(group.server)
        if server is not None and server.state is ServerState.READY:
            self.fail("20", f"{group.server} has ended {NOTICED_S} s ago and is still taken for ready")

    def out_of_memory(self, group: Group, device: Gpu) -> None:
        """A server that loads finds the device full."""
        others = [one for one in self.world.groups.values() if device.id in one.peak]
        honest = all(one.peak[device.id] <= one.declared[device.id] for one in others)
        if honest and device.disturbed_at < group.spawned_at - 2.0:
            held = {one.server: one.used_mb(device.id, self.world.now) for one in others}
            self.fail("1", f"{group.server} does not fit on {device.id}: {held}, foreign {device.foreign}")

    # --- after each round ---------------------------------------------------------------------------------------

    def planned(self, observed: Observed, decided: Plan, declared: Declaration) -> None:
        """What was decided, and has just been begun."""
        servers = {server.id: server for server in observed.servers}
        for action in decided.actions:
            match action:
                case Start():
                    self._start(action, observed, declared)
                case Stop() | Drain():
                    if (server := servers.get(action.server)) is not None:
                        self._leave(action, server, observed, declared)
        self._no_more_than_needed(observed, decided, declared)
        self._not_in_vain(observed, decided, declared)

    def _start(self, start: Start, observed: Observed, declared: Declaration) -> None:
        variant = next(one for one in declared.models[start.model].variants if one.name == start.variant)
        wanted = sorted(amount for _, amount in variant.needs())
        if sorted(start.reserved_mb.values()) != wanted or len(start.reserved_mb) != len(wanted):
            self.fail("1", f"{start.model} needs {wanted} and reserves {start.reserved_mb}")
        fleet = self.sidecar.controller.fleet if self.sidecar else None
        if fleet is None or (fleet.server_of(start.model) is None and not fleet.closing):
            self.fail("2", f"{start.model} was started and has no reservation")
            return
        self._alone(start, fleet)
        for key in start.reserved_mb:
            device = next((one for one in observed.devices if one.id == key), None)
            if device is None or device.status.problem or device.stale:
                self.fail("4", f"{start.model} is placed on {key}, which could not be read")
                continue
            reserved = sum(server.reserved_mb.get(key, 0) for server in fleet.servers.values())
            if reserved > (usable := room.usable_mb(device, declared)):
                self.fail("1", f"{start.model} takes {key} to {reserved} of {usable} MB")

    def _alone(self, start: Start, fleet: Fleet) -> None:
        """An engine that sizes itself by what is free loads while nothing comes or goes beside it."""
        mine = fleet.server_of(start.model)
        for other in fleet.servers.values():
            if mine is None or other is mine or not other.reserved_mb.keys() & start.reserved_mb.keys():
                continue
            sizing = other.variant.exclusive_start and other.state is ServerState.STARTING
            moving = other.state in (ServerState.STARTING, ServerState.STOPPING)
            if sizing or (mine.variant.exclusive_start and moving):
                self.fail("3", f"{mine.id} starts beside {other.id} ({other.state.value}), one of them exclusively")

    def _leave(self, action: Stop | Drain, server: Server, observed: Observed, declared: Declaration) -> None:
        model = declared.models.get(server.model)
        if isinstance(action, Stop) and server.in_flight:
            self.fail("7", f"{server.id} is stopped ({action.reason}) with {server.in_flight} requests in flight")
        if action.reason == "ManifestChanged":
            fingerprints = {one.fingerprint() for one in model.variants if one.name == server.variant} if model else ()
            if server.fingerprint in fingerprints:
                self.fail("12", f"{server.id} is drained for a change that is none of its own")
        if not _evicts(action):
            return
        if model is not None and model.pinned:
            self.fail("8", f"{server.id} is pinned and is evicted")
        since = self._ready_since.get(server.id, -math.inf)
        resident_s = self.world.now - since
        if model is not None and resident_s < model.min_residency - 0.001:
            self.fail("9", f"{server.id} is evicted after {resident_s:.3f} of {model.min_residency:g} s")
        self._helps(action, server, observed, declared)

    def _helps(self, action: Stop | Drain, server: Server, observed: Observed, declared: Declaration) -> None:
        """Whether the victim holds what the newcomer needs, on a device that can be read."""
        newcomer = action.message.removeprefix("makes room for ").partition(" ")[0]
        model = declared.models.get(newcomer)
        if model is None:
            self.fail("6", f"{server.id} is evicted for {newcomer}, which is not declared")
            return
        wanted = {one for variant in model.variants for one in variant.required_devices}
        known = [one for one in observed.devices if not one.status.problem and not one.stale]
        useful = {one.id for one in known if wanted & {one.id, one.device_class, one.label, *room.names(one, declared)}}
        if not useful & server.reserved_mb.keys():
            self.fail(
                "6", f"{server.id} on {sorted(server.reserved_mb)} is evicted for {newcomer}, which needs {wanted}"
            )

    def _no_more_than_needed(self, observed: Observed, decided: Plan, declared: Declaration) -> None:
        """With one newcomer alone it is easily said whether its victims make room, and whether one could stay."""
        victims = {action.server for action in decided.actions if isinstance(action, Stop | Drain) and _evicts(action)}
        others = any(isinstance(action, Start) for action in decided.actions)
        if not victims or others or len(observed.demands) != 1 or (model := _newcomer(decided, declared)) is None:
            return
        variant, newcomer = model
        leaving = _going(observed, decided)
        if not room.fits(variant, observed, declared, leaving):
            self.fail("6", f"{sorted(victims)} are evicted for {newcomer}, which then does not fit")
        for victim in sorted(victims):
            if room.fits(variant, observed, declared, leaving - {victim}):
                self.fail("6", f"{victim} is evicted for {newcomer}, which fits beside it")

    def _not_in_vain(self, observed: Observed, decided: Plan, declared: Declaration) -> None:
        """Who was evicted does not come back before the one for whom it was, unless it comes before it by right."""
        waiting = {demand.model: demand.since for demand in observed.demands}
        self._room_for = {name: victims for name, victims in self._room_for.items() if name in waiting and self.calm}
        for action in decided.actions:
            if isinstance(action, Start):
                self._room_for.pop(action.model, None)
                mine = declared.models[action.model]
                overdue = self.world.now - waiting.get(action.model, math.inf) >= mine.max_wait
                for newcomer, (variant, victims) in self._room_for.items():
                    by_right = overdue or mine.priority > declared.models[newcomer].priority
                    others = waiting.keys() - {newcomer, action.model}  # one of them may have gone ahead of it
                    if by_right or others or action.model not in victims:
                        continue
                    if room.is_taken_by(action, variant, observed, declared, _going(observed, decided)):
                        self.fail("6", f"{action.model} was evicted for {newcomer} and takes its room again")
            elif _evicts(action) and (found := _newcomer(decided, declared)):
                self._room_for.setdefault(found[1], (found[0], set()))[1].add(action.model)

    # --- the beginning and the end of a sidecar -----------------------------------------------------------------

    def recovered(self, sidecar: Sidecar, before: list[Group]) -> None:
        """before: the servers that had to be taken over."""
        fleet = sidecar.controller.fleet
        for group in before:
            server = fleet.servers.get(group.server)
            if group.ended_by_itself:
                continue
            if group.told_to_go:
                self.fail("16", f"{group.server} was healthy and is stopped")
            elif server is None or server.process is None:
                self.fail("16", f"{group.server} was healthy and is not adopted")
            elif (server.process.pid, server.port) != (group.pid, group.port):
                now = f"{server.process.pid} and {server.port}"
                self.fail("16", f"{group.server} had pid {group.pid} and port {group.port}, and now {now}")
        for server in fleet.servers.values():
            alive = self.world.groups.get(server.id)
            process = server.process
            if process is not None and not process.exited.done() and (alive is None or process.pid not in alive.pids):
                self.fail("17", f"{server.id} is adopted as pid {process.pid}, which is not its process")

    def declared(self, sidecar: Sidecar) -> None:
        """Some time after an edit: exactly what ought to be is in force."""
        in_force = sidecar.controller.declaration.models
        if in_force != sidecar.manifests.expected:
            differing = {
                name
                for name in in_force.keys() | sidecar.manifests.expected.keys()
                if in_force.get(name) != sidecar.manifests.expected.get(name)
            }
            self.fail("11, 13", f"in force is {sorted(in_force)}; wrong are {sorted(differing)}")

    def settled(self, sidecar: Sidecar, acted_before: int) -> None:
        """Nothing has come in for long."""
        acted = sidecar.controller.reconciler.acted - acted_before
        if acted:
            actions = sidecar.controller.reconciler.last_plan.actions
            self.fail("28", f"{acted} rounds acted while nothing happened; the last plan: {actions}")
        controller = sidecar.controller
        observed = controller.fleet.observed(controller.devices.devices)
        if actions := plan(controller.declaration, observed, controller.clock.monotonic()).actions:
            self.fail("28", f"nothing happens, and there are still things to do: {actions}")
        self._agrees(sidecar)

    def _agrees(self, sidecar: Sidecar) -> None:
        """At rest, what runs, what is reserved and what is told are the same."""
        fleet = sidecar.controller.fleet
        if fleet.servers.keys() != self.world.groups.keys():
            self.fail("16", f"there are {sorted(fleet.servers)}, and what runs is {sorted(self.world.groups)}")
        for server in fleet.servers.values():
            if server.state is not ServerState.READY or not self.world.groups[server.id].listening:
                self.fail("28", f"{server.id} is still {server.state.value}")
        if fleet.waiting:
            self.fail("9", f"nobody calls, and somebody waits for {sorted(fleet.waiting)}")
        for name, model in sidecar.controller.declaration.models.items():
            serves = fleet.server_of(name) is not None or fleet.healthy_external(name, model) is not None
            if fleet.ready(name) != serves:
                self.fail("20", f"{name} is told to be ready: {fleet.ready(name)}; it is: {serves}")


def _evicts(action: Stop | Drain) -> bool:
    return action.reason in ("Evicted", "TurnOver")


def _going(observed: Observed, decided: Plan) -> set[str]:
    """Servers that leave already, or by this plan."""
    leaving = {server.id for server in observed.servers if server.state in LEAVING}
    return leaving | {action.server for action in decided.actions if isinstance(action, Stop | Drain)}


def _newcomer(decided: Plan, declared: Declaration) -> tuple[Variant, str] | None:
    """Whom the victims of a plan make room for: "makes room for NAME (variant VARIANT)"."""
    told = {action.message for action in decided.actions if isinstance(action, Stop | Drain) and _evicts(action)}
    name, _, variant = told.pop().removeprefix("makes room for ").removesuffix(")").partition(" (variant ")
    model = declared.models.get(name)
    found = next((one for one in model.variants if one.name == variant), None) if model else None
    return (found, name) if found is not None and not told else None
