"""What to do next: one pure function of what is declared, what is observed, and the time.

Laws (each has a test in tests/core/test_planner.py that tries to break it):

1.  On no device do the reservations of the servers that exist and that the plan starts add up to more than is usable;
    a reservation over several devices is taken whole or not at all.
2.  A server with requests in flight is never in a Stop. Pinned servers are never evicted, external ones never touched.
3.  Nothing is evicted unless the newcomer then fits, and no one is evicted who could have stayed.
4.  A device that cannot be read gets nothing new, and nothing on it is stopped on its account.
5.  A model has at most one server at a time: while one exists, in whatever state, no other is started.
6.  Memory that a waiting model is promised (by a stop under way) is given to nobody who comes after it.
7.  Same input, same plan. A plan that is carried out leaves nothing to do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from sidecar.core.eviction import choose, evictable
from sidecar.core.ledger import Ledger, Memory, less, lower
from sidecar.core.manifest import Declaration, Model, Variant
from sidecar.core.observed import Condition, Device, Observed, Server, ServerState, Status
from sidecar.core.placement import Inventory, Placement, missing, place
from sidecar.core.plan import Action, Drain, Plan, Start, Stop

LEAVING = (ServerState.DRAINING, ServerState.STOPPING)

READY = "Ready"  # the type of the condition that every model has

# Reasons of a Ready condition that waiting cannot be expected to cure: requests are refused at once.
HOPELESS = frozenset({"Unplaceable", "InsufficientMemory", "DeviceUnavailable", "ExternalUnhealthy"})


def plan(declared: Declaration, observed: Observed, now: float) -> Plan:
    """Decide. Raises nothing: what cannot be done is a condition."""
    return _Round(declared, observed, now).run()


class _Round:
    """One planning: the inputs, the claims made so far, and what has been decided."""

    def __init__(self, declared: Declaration, observed: Observed, now: float) -> None:
        self.models = declared.models
        self.observed = observed
        self.now = now
        self.inventory = Inventory.of(observed.devices, declared.devices)
        self.ledger = Ledger(observed.devices, observed.servers, self.inventory.caps, declared.settings.headroom_mb)
        self.server_of = {server.model: server for server in observed.servers}
        self.demand_of = {demand.model: demand for demand in observed.demands}
        self.failure_of = {failure.model: failure for failure in observed.failures}
        self.leaving = [server for server in observed.servers if server.state in LEAVING]
        self.draining: set[str] = set()  # servers that this plan drains
        self.contested: set[str] = set()  # devices that a model with a promise elsewhere would rather have
        self.actions: list[Action] = []
        self.conditions: dict[str, Condition] = {}
        self.wakes: list[float] = []
        self.claimed: Memory = {}  # by starts of this plan
        self.promised: Memory = {}  # to models that wait for a stop under way

    def run(self) -> Plan:
        for server in self.observed.servers:
            self._retire(server)
        for name in self._wanted():
            self._serve(name, self.models[name])
        for name, model in self.models.items():
            if name not in self.conditions:
                self.conditions[name] = self._at_rest(name, model)
        return Plan(
            actions=tuple(self.actions),
            conditions={name: (self.conditions[name],) for name in self.models},
            wake_at=min((wake for wake in self.wakes if wake > self.now), default=None),
        )

    # --- servers that should go ---------------------------------------------------------------------------------

    def _retire(self, server: Server) -> None:
        """Stop what has drained; drain what is no longer declared so; stop what has been idle for long enough."""
        if server.state is ServerState.DRAINING and server.in_flight == 0:
            self._stop(server, "Drained", "nothing is in flight any more")
        if server.state in LEAVING:
            return
        if change := self._outdated(server):
            self._leave(Drain(model=server.model, server=server.id, reason="ManifestChanged", message=change), server)
        elif server.state is ServerState.READY and server.model not in self.demand_of:
            self._stop_if_idle(server, self.models[server.model])

    def _outdated(self, server: Server) -> str:
        model = self.models.get(server.model)
        if model is None:
            return "the model is no longer declared"
        variant = next((variant for variant in model.variants if variant.name == server.variant), None)
        if variant is None:
            return f"variant {server.variant} is no longer declared"
        return "" if variant.fingerprint() == server.fingerprint else f"variant {server.variant} was changed"

    def _stop_if_idle(self, server: Server, model: Model) -> None:
        if model.pinned or model.idle_timeout <= 0:
            return
        used = self.now if server.in_flight else server.last_used  # a busy one cannot expire before now + idle_timeout
        expires = used + model.idle_timeout
        if self.now >= expires:
            self._stop(server, "Idle", f"unused for {self.now - server.last_used:.0f} s")
        else:
            self.wakes.append(expires)

    def _stop(self, server: Server, reason: str, message: str) -> None:
        self._leave(Stop(model=server.model, server=server.id, reason=reason, message=message), server)

    def _leave(self, action: Stop | Drain, server: Server) -> None:
        self.actions.append(action)
        if isinstance(action, Drain):
            self.draining.add(server.id)
        if server not in self.leaving:
            self.leaving.append(server)

    # --- models that should come --------------------------------------------------------------------------------

    def _wanted(self) -> list[str]:
        """Models that somebody asked for or that start by themselves: by priority, then by who has waited longest."""
        automatic = {
            name for name, model in self.models.items() if model.auto_start and name not in self.observed.auto_started
        }
        names = (automatic | set(self.demand_of)) & set(self.models)

        def turn(name: str) -> tuple[int, float, str]:
            demand = self.demand_of.get(name)
            return (-self.models[name].priority, demand.since if demand else float("inf"), name)

        return sorted(names, key=turn)

    def _serve(self, name: str, model: Model) -> None:
        if self._external(name) is True:
            return
        server = self.server_of.get(name)
        if server is not None and server not in self.leaving:
            return  # _at_rest says how it is
        failure = self.failure_of.get(name)
        if failure and failure.retry_at > self.now:
            if failure.retry_at < math.inf:
                self.wakes.append(failure.retry_at)
            return
        variants = [variant for variant in model.variants if not variant.external]
        if server is not None:
            self._promise(variants)
            return
        if variants and not (self._start(name, variants) or self._await(name, variants)):
            self._make_room(name, variants)

    def _start(self, name: str, variants: list[Variant]) -> bool:
        """Start the first variant that fits what is free now and is promised to nobody."""
        now = less(self.ledger.free(), self.claimed)
        soon = less(self.ledger.free(self.leaving), self.claimed, self.promised)
        free = lower(now, soon)
        for variant in variants:
            if placement := place(variant, self.inventory, free):
                self._claim(self.claimed, placement)
                on = self._labels(placement.devices)
                self.actions.append(
                    Start(
                        model=name,
                        variant=variant.name,
                        devices=placement.devices,
                        reserved_mb=placement.reserved_mb,
                        message=f"variant {variant.name} fits on {on}",
                    )
                )
                self._say(name, "Starting", f"starting variant {variant.name} on {on}")
                return True
        return False

    def _promise(self, variants: list[Variant]) -> bool:
        """Keep room for the first variant that fits once the stops under way are done."""
        soon = less(self.ledger.free(self.leaving), self.claimed, self.promised)
        for position, variant in enumerate(variants):
            if placement := place(variant, self.inventory, soon):
                self._claim(self.promised, placement)
                preferred = {device.id for other in variants[:position] for device in self._candidates(other)}
                elsewhere = {device.id for device in self._candidates(variant)} - set(placement.devices)
                self.contested |= preferred | elsewhere
                return True
        return False

    def _await(self, name: str, variants: list[Variant]) -> bool:
        """Wait, if there will be room once the stops under way are done."""
        if not self._promise(variants):
            return False
        leaving = ", ".join(sorted({server.model for server in self.leaving}))
        self._say(name, "WaitingForMemory", f"waits until {leaving} has stopped")
        return True

    def _make_room(self, name: str, variants: list[Variant]) -> None:
        candidates = [
            server
            for server in evictable(self.observed.servers, self.models)
            if server not in self.leaving and server.model not in self.demand_of
        ]
        if name not in self.demand_of:
            candidates = []  # auto_start takes free room; it does not push others out
        for variant in variants:
            if any(device.id in self.contested for device in self._candidates(variant)):
                continue  # whoever comes first could move in there, and the eviction would have been in vain
            victims = choose(candidates, lambda gone, variant=variant: self._fits(variant, gone))  # type: ignore[misc] # mypy cannot infer a lambda with a default
            if victims:
                for victim in victims:
                    self._stop(victim, "Evicted", f"makes room for {name} (variant {variant.name})")
                self._await(name, [variant])
                return
        self.conditions[name] = self._refusal(variants)

    def _fits(self, variant: Variant, gone: Iterable[Server]) -> bool:
        free = less(self.ledger.free([*self.leaving, *gone]), self.claimed, self.promised)
        return place(variant, self.inventory, free) is not None

    # --- explanations -------------------------------------------------------------------------------------------

    def _refusal(self, variants: list[Variant]) -> Condition:
        """Why no variant can be had now, the most hopeful reason of them all."""
        unread = [device for variant in variants for device in self._candidates(variant) if device.stale]
        if unread:
            return _not_ready("WaitingForReading", f"waits until {unread[0].label} has been read again")
        message = "; ".join(self._shortage(variant) for variant in variants)
        movable = [server for server in self.observed.servers if not self._pinned(server)]
        room = self.ledger.free([*self.leaving, *(server for server in movable if server not in self.leaving)])
        if any(place(variant, self.inventory, room) for variant in variants):
            busy = listed_models(server for server in movable if server.in_flight or server.model in self.demand_of)
            return _not_ready("WaitingForMemory", f"waits for {busy or 'its turn'}; {message}")
        return _not_ready(self._hopeless_reason(variants), message)

    def _hopeless_reason(self, variants: list[Variant]) -> str:
        if all(missing(variant, self.inventory) for variant in variants):
            return "DeviceUnavailable"
        if not any(place(variant, self.inventory, self.ledger.usable) for variant in variants):
            return "Unplaceable"
        return "InsufficientMemory"

    def _shortage(self, variant: Variant) -> str:
        if lacking := missing(variant, self.inventory):
            return f"variant {variant.name}: {lacking}"
        free = less(self.ledger.free(), self.claimed)
        lines = dict.fromkeys(self._room_on(device, free) for device in self._candidates(variant))
        wanted = ", ".join(f"{amount} MB on {requirement}" for requirement, amount in variant.needs())
        return f"variant {variant.name} needs {wanted}: {'; '.join(lines)}"

    def _candidates(self, variant: Variant) -> list[Device]:
        return [device for name in variant.required_devices for device in self.inventory.candidates(name)]

    def _room_on(self, device: Device, free: Memory) -> str:
        if device.unknown:
            return f"{device.label} cannot be read ({device.unknown})"
        holders = self.ledger.holders(device.id)
        held = f" ({holders})" if holders else ""
        return f"{device.label} has {max(0, free[device.id])} of {self.ledger.usable[device.id]} usable MB free{held}"

    def _at_rest(self, name: str, model: Model) -> Condition:
        """The condition of a model about which nothing was decided in this round."""
        external = self._external(name)
        if external is True:
            return Condition(type=READY, status=Status.TRUE, reason="Serving", message="an external server is healthy")
        failure = self.failure_of.get(name)
        if server := self.server_of.get(name):
            if failure and failure.server == server.id:
                return _not_ready(failure.reason, failure.message)  # what is left of it is being stopped
            return self._of_server(server)
        if failure and (failure.retry_at > self.now or name not in self.demand_of):
            return _not_ready(failure.reason, failure.message)
        variants = [variant for variant in model.variants if not variant.external]
        if not variants:
            return _not_ready("ExternalUnhealthy", external) if external else _not_ready("NotProbed", "not probed yet")
        if not any(place(variant, self.inventory, self.ledger.usable) for variant in variants):
            return self._refusal(variants)
        return _not_ready("Stopped", "starts on demand")

    def _of_server(self, server: Server) -> Condition:
        on = self._labels(tuple(server.reserved_mb))
        text = f"variant {server.variant} on {on}"
        if server.state is ServerState.READY and server not in self.leaving:
            return Condition(type=READY, status=Status.TRUE, reason="Serving", message=text)
        if server.id in self.draining:
            return _not_ready("Draining", text)
        states = {ServerState.STARTING: "Starting", ServerState.DRAINING: "Draining"}
        return _not_ready(states.get(server.state, "Stopping"), text)

    def _external(self, name: str) -> bool | str | None:
        """True: a url variant is healthy. Text: why none is. None: there is none, or none was probed yet."""
        probes = [external for external in self.observed.externals if external.model == name]
        if any(external.healthy for external in probes):
            return True
        return "; ".join(f"{external.variant}: {external.message}" for external in probes) or None

    def _pinned(self, server: Server) -> bool:
        model = self.models.get(server.model)
        return model is not None and model.pinned

    def _labels(self, devices: tuple[str, ...]) -> str:
        return ", ".join(self.inventory.label(device) for device in devices) or "no device"

    def _say(self, name: str, reason: str, message: str) -> None:
        self.conditions[name] = _not_ready(reason, message)

    def _claim(self, claims: Memory, placement: Placement) -> None:
        for device, amount in placement.reserved_mb.items():
            claims[device] = claims.get(device, 0) + amount


def listed_models(servers: Iterable[Server]) -> str:
    """`a (2 in flight), b`."""
    return ", ".join(
        f"{server.model} ({server.in_flight} in flight)" if server.in_flight else server.model for server in servers
    )


def _not_ready(reason: str, message: str) -> Condition:
    return Condition(type=READY, status=Status.FALSE, reason=reason, message=message)
