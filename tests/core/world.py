"""A machine that carries plans out: servers move through their states, and live memory follows what they take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from sidecar.core.ledger import pool_of
from sidecar.core.manifest import Declaration
from sidecar.core.observed import Demand, Device, Observed, Server, ServerState
from sidecar.core.plan import Drain, Plan, Start, Stop
from sidecar.core.planner import plan
from tests.core.strategies import Scene

Use = dict[str, dict[str, int]]  # server id to device id to MB

_MOVING = (ServerState.STARTING, ServerState.STOPPING)


class World(msgspec.Struct, frozen=True):
    """What is declared and seen, and what no probe tells.

    use: what each server takes. loading: servers that were never ready, so that they allocate on while they leave.
    hidden: servers that cannot be measured.
    """

    declared: Declaration
    observed: Observed
    use: Use
    loading: frozenset[str] = frozenset()
    hidden: frozenset[str] = frozenset()

    @classmethod
    def of(cls, scene: Scene) -> World:
        servers = scene.observed.servers
        loading = frozenset(server.id for server in servers if server.state is ServerState.STARTING)
        hidden = frozenset(server.id for server in servers if not server.observed_mb)
        return cls(scene.declared, scene.observed, scene.use, loading, hidden)

    @classmethod
    def seen(cls, declared: Declaration, observed: Observed) -> World:
        """A world in which every server was measured."""
        return cls.of(Scene(declared, observed, {server.id: server.observed_mb for server in observed.servers}))

    @property
    def moving(self) -> bool:
        """Whether something is under way that needs no further decision: a start, a stop, a reading."""
        servers, devices = self.observed.servers, self.observed.devices
        return any(server.state in _MOVING for server in servers) or any(device.stale for device in devices)

    @property
    def overcommitted(self) -> list[str]:
        """Devices that cannot hold what is taken and what loading servers may still take."""
        most = self.use | {one.id: one.reserved_mb for one in self.observed.servers if one.id in self.loading}
        found = []
        for device in self.observed.devices:
            members = _members(device, self.observed.devices)
            if device.status.free_mb + _taken(members, self.use) < _taken(members, most):
                found.append(device.label)
        return found

    def plan(self, now: float) -> Plan:
        return plan(self.declared, self.observed, now)


def apply(decided: Plan, world: World, now: float) -> World:
    """Carry out the plan's actions: nothing is ready, and nothing is gone, yet."""
    for action in decided.actions:
        match action:
            case Start():
                world = _start(action, world, now)
            case Stop(server=key):
                world = _move(world, key, ServerState.STOPPING)
                if action.reason == "BetterVariant":
                    world = _seen(world, moving=world.observed.moving | {action.model})
            case Drain(server=key):
                world = _move(world, key, ServerState.DRAINING)
    return world


def elapse(world: World, now: float) -> World:
    """What is under way ends: starting servers become ready, stopping ones go, draining ones finish their requests."""
    kept = [server for server in world.observed.servers if server.state is not ServerState.STOPPING]
    ready = {server.id for server in kept if server.state is ServerState.STARTING}
    use = {one.id: dict(one.reserved_mb) if one.id in ready else world.use[one.id] for one in kept}
    servers = tuple(_ended(server, now) for server in kept)
    up = {server.model for server in servers if server.state is ServerState.READY}
    variants = {(server.model, server.variant) for server in servers if server.state is ServerState.READY}
    world = _seen(
        world,
        demands=tuple(demand for demand in world.observed.demands if demand.model not in up),
        failures=tuple(one for one in world.observed.failures if (one.model, one.variant) not in variants),
    )
    leaving = {server.id for server in servers if server.state is ServerState.DRAINING}
    world = msgspec.structs.replace(world, loading=world.loading & leaving)
    return _measured(world, servers, use)


def finish_requests(world: World, now: float) -> World:
    """Every request in flight ends."""
    servers = tuple(
        msgspec.structs.replace(server, in_flight=0, last_used=now) if server.in_flight else server
        for server in world.observed.servers
    )
    return _measured(world, servers, world.use)


def busy(world: World, names: Iterable[str], now: float) -> World:
    """Traffic that never ends: what is ready has a request in flight, and somebody waits for what is not."""
    wanted = set(names)
    servers = tuple(
        msgspec.structs.replace(server, in_flight=1, last_used=now)
        if server.state is ServerState.READY and server.model in wanted
        else server
        for server in world.observed.servers
    )
    up = {server.model for server in servers if server.state is ServerState.READY}
    asked = {demand.model for demand in world.observed.demands}
    more = tuple(Demand(name, now) for name in sorted(wanted - up - asked))
    return _seen(world, servers=servers, demands=world.observed.demands + more)


def settle(world: World, now: float) -> tuple[World, list[Plan]]:
    """Plan, carry out and wait until nothing moves; the plans on the way, the last of which does nothing."""
    plans: list[Plan] = []
    for _ in range(60):
        plans.append(world.plan(now))
        if not plans[-1].actions and not world.moving:
            return world, plans
        world = elapse(apply(plans[-1], world, now), now)
    raise AssertionError(f"does not settle; the last actions are {plans[-1].actions}")


def _start(start: Start, world: World, now: float) -> World:
    variants = world.declared.models[start.model].variants
    variant = next(variant for variant in variants if variant.name == start.variant)
    server = Server(
        id=f"{start.model}-{len(world.observed.servers)}-{now}",
        model=start.model,
        variant=start.variant,
        fingerprint=variant.fingerprint(),
        state=ServerState.STARTING,
        reserved_mb=start.reserved_mb,
        since=now,
        last_used=now,
        exclusive=variant.exclusive_start,
    )
    world = _seen(
        world,
        auto_started=world.observed.auto_started | {start.model},
        moving=world.observed.moving - {start.model},
    )
    world = msgspec.structs.replace(world, loading=world.loading | {server.id})
    use = world.use | {server.id: dict.fromkeys(start.reserved_mb, 0)}
    return _measured(world, (*world.observed.servers, server), use)


def _move(world: World, key: str, state: ServerState) -> World:
    servers = tuple(
        msgspec.structs.replace(server, state=state) if server.id == key else server
        for server in world.observed.servers
    )
    return _measured(world, servers, world.use)


def _ended(server: Server, now: float) -> Server:
    if server.state is ServerState.STARTING:
        return msgspec.structs.replace(server, state=ServerState.READY, since=now, last_used=now)
    if server.state is ServerState.DRAINING:
        return msgspec.structs.replace(server, in_flight=0)
    return server


def _measured(world: World, servers: tuple[Server, ...], use: Use) -> World:
    """The world with these servers, as a probe sees it."""
    seen = tuple(
        msgspec.structs.replace(server, observed_mb={} if server.id in world.hidden else use[server.id])
        for server in servers
    )
    devices = world.observed.devices
    freed = (_taken(_members(one, devices), world.use) - _taken(_members(one, devices), use) for one in devices)
    world = _seen(world, servers=seen, devices=tuple(map(_freed, devices, freed)))
    return msgspec.structs.replace(world, use=use)


def _seen(world: World, **fields: Any) -> World:
    """The world in which something else is observed."""
    return msgspec.structs.replace(world, observed=msgspec.structs.replace(world.observed, **fields))


def _members(device: Device, devices: Iterable[Device]) -> set[str]:
    """The devices that use the same memory."""
    ids = {one.id for one in devices}
    return {one.id for one in devices if pool_of(one, ids) == pool_of(device, ids)}


def _taken(members: Iterable[str], use: Use) -> int:
    return sum(taken.get(member, 0) for taken in use.values() for member in members)


def _freed(device: Device, more_mb: int) -> Device:
    status = msgspec.structs.replace(device.status, free_mb=device.status.free_mb + more_mb)
    return msgspec.structs.replace(device, status=status, stale=False)
