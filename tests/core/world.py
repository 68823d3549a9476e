"""A machine that carries plans out: servers move through their states, and live memory follows what they take."""

from __future__ import annotations

import msgspec

from sidecar.core.manifest import Declaration
from sidecar.core.observed import Device, Observed, Server, ServerState
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
        devices = self.observed.devices
        return [one.label for one in devices if one.status.free_mb + _taken(one, self.use) < _taken(one, most)]

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
    observed = msgspec.structs.replace(
        world.observed,
        demands=tuple(demand for demand in world.observed.demands if demand.model not in up),
        failures=tuple(failure for failure in world.observed.failures if failure.model not in up),
    )
    leaving = {server.id for server in servers if server.state is ServerState.DRAINING}
    world = msgspec.structs.replace(world, observed=observed, loading=world.loading & leaving)
    return _measured(world, servers, use)


def finish_requests(world: World, now: float) -> World:
    """Every request in flight ends."""
    servers = tuple(
        msgspec.structs.replace(server, in_flight=0, last_used=now) if server.in_flight else server
        for server in world.observed.servers
    )
    return _measured(world, servers, world.use)


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
    server = Server(
        id=f"{start.model}-{len(world.observed.servers)}-{now}",
        model=start.model,
        variant=start.variant,
        fingerprint=next(variant.fingerprint() for variant in variants if variant.name == start.variant),
        state=ServerState.STARTING,
        reserved_mb=start.reserved_mb,
        since=now,
        last_used=now,
    )
    started = world.observed.auto_started | {start.model}
    observed = msgspec.structs.replace(world.observed, auto_started=started)
    world = msgspec.structs.replace(world, observed=observed, loading=world.loading | {server.id})
    use = world.use | {server.id: dict.fromkeys(start.reserved_mb, 0)}
    return _measured(world, (*observed.servers, server), use)


def _move(world: World, key: str, state: ServerState) -> World:
    servers = tuple(
        msgspec.structs.replace(server, state=state) if server.id == key else server
        for server in world.observed.servers
    )
    return _measured(world, servers, world.use)


def _ended(server: Server, now: float) -> Server:
    if server.state is ServerState.STARTING:
        return msgspec.structs.replace(server, state=ServerState.READY, last_used=now)
    if server.state is ServerState.DRAINING:
        return msgspec.structs.replace(server, in_flight=0)
    return server


def _measured(world: World, servers: tuple[Server, ...], use: Use) -> World:
    """The world with these servers, as a probe sees it."""
    seen = tuple(
        msgspec.structs.replace(server, observed_mb={} if server.id in world.hidden else use[server.id])
        for server in servers
    )
    devices = tuple(
        _freed(device, _taken(device, world.use) - _taken(device, use)) for device in world.observed.devices
    )
    observed = msgspec.structs.replace(world.observed, servers=seen, devices=devices)
    return msgspec.structs.replace(world, observed=observed, use=use)


def _taken(device: Device, use: Use) -> int:
    return sum(taken.get(device.id, 0) for taken in use.values())


def _freed(device: Device, more_mb: int) -> Device:
    status = msgspec.structs.replace(device.status, free_mb=device.status.free_mb + more_mb)
    return msgspec.structs.replace(device, status=status, stale=False)
