"""What to do next: one pure function of what is declared, what is observed, and the time.

Laws (each has a test in tests/core/test_planner.py that tries to break it):

1.  On no device do the reservations of the servers that exist and that the plan starts add up to more than is usable;
    a reservation over several devices is taken whole or not at all.
2.  A server with requests in flight is never in a Stop. Pinned servers are never evicted, external ones never touched.
3.  Nothing is evicted unless the newcomer then fits, the cheapest such set is chosen, and no one in it can be spared.
4.  A device that cannot be read gets nothing new, and nothing on it is stopped on its account.
5.  A model has at most one server at a time: while one exists, in whatever state, no other is started.
6.  Memory that a waiting model is promised (by a stop under way) is given to nobody who comes after it.
7.  Same input, same plan. A plan that is carried out leaves nothing to do.
8.  Servers in use are drained only for a model that has waited for `max_wait`, and none within its `min_residency`.
9.  An engine that sizes itself by what is free (`exclusive_start`) loads while nothing comes or goes beside it.
10. A server moves to an earlier variant only when it is idle, past its residency, and nobody waits.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from sidecar.core.conditions import Conditions
from sidecar.core.eviction import priced
from sidecar.core.ledger import Ledger
from sidecar.core.manifest import Declaration, Model, Variant
from sidecar.core.observed import LEAVING, Observed, Server, ServerState
from sidecar.core.overrides import DRAINED, drained_message, with_pins
from sidecar.core.placement import Inventory
from sidecar.core.plan import Action, Drain, Plan, Refusal, Start, Stop
from sidecar.core.reasons import Reasons, failed, listed_models
from sidecar.core.room import Room
from sidecar.core.turns import in_turn, is_pinned, may_go, overdue_at, resident_until

QUIET_S = 30.0  # a server that nobody has used for so long may move to a better variant

# Where waiting cannot be expected to help requests are refused at once, and told when asking again may be worth it.
RETRY_AFTER_S = {"Unplaceable": None, "InsufficientMemory": 30.0, "DeviceUnavailable": 30.0, "ExternalUnhealthy": 5.0}


def plan(declared: Declaration, observed: Observed, now: float) -> Plan:
    """Decide. Raises nothing: what cannot be done is a condition."""
    return _Round(declared, observed, now).run()


class _Round:
    """One planning: the inputs, the room that is left, and what has been decided."""

    def __init__(self, declared: Declaration, observed: Observed, now: float) -> None:
        self.models = with_pins(declared.models, observed.pinned)
        self.elsewhere = declared.elsewhere
        self.revision = declared.revision
        self.observed = observed
        self.now = now
        self.inventory = Inventory(observed.devices, declared.devices)
        ledger = Ledger(observed.devices, observed.servers, self.inventory.caps, declared.settings.headroom_mb)
        self.room = Room(ledger, self.inventory)
        self.why = Reasons(self.inventory, self.room, self.models)
        self.conditions = Conditions(observed, now, self.inventory, self.room, self.why)
        self.demand_of = {demand.model: demand for demand in observed.demands if demand.model in self.models}
        self.failures = {(failure.model, failure.variant): failure for failure in observed.failures}
        self.load_s = {(one.model, one.variant): one.load_s for one in observed.measured}
        self.draining: set[str] = set()  # servers that this plan drains
        self.contested: set[str] = set()  # devices that a model with a promise elsewhere would rather have
        self.actions: list[Action] = []
        self.refusals: dict[str, Refusal] = {}
        self.wakes: list[float] = []

    def run(self) -> Plan:
        for name in sorted(self.observed.drained & self.models.keys()):
            self._refuse(name, DRAINED, drained_message(name), None)
        for server in self.observed.servers:
            self._retire(server)
        for name in self._wanted():
            self._serve(name, self.models[name])
        if not self.demand_of and not any(one.reason.startswith("Waiting") for one in self.conditions.said.values()):
            for server in self.observed.servers:
                self._improve(server)
        self.conditions.say_at_rest(self.models, self.draining)
        return Plan(
            actions=tuple(self.actions),
            conditions=self.conditions.all(self.models, self.revision),
            refusals=self.refusals,
            wake_at=min((wake for wake in self.wakes if wake > self.now), default=None),
        )

    # --- servers that should go ---------------------------------------------------------------------------------

    def _retire(self, server: Server) -> None:
        """Stop what has drained; drain what is no longer declared so; stop what has been idle for long enough."""
        drained = server.state is ServerState.DRAINING and server.in_flight == 0
        if drained and not self.room.closed(server):
            self._stop(server, "Drained", "nothing is in flight any more")
        if server.state in LEAVING:
            return
        if change := self._outdated(server):
            self._drain(server, "ManifestChanged", change)
        elif server.model in self.observed.drained:
            self._drain(server, DRAINED, "an operator has taken the model out of service")
        elif server.state is ServerState.READY and server.model not in self.demand_of:
            self._stop_if_idle(server, self.models[server.model])

    def _outdated(self, server: Server) -> str:
        model = self.models.get(server.model)
        if model is None and (elsewhere := self.elsewhere.get(server.model)):
            return f"the model is for other nodes: {elsewhere.nodes}"
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
        if self.now < expires:
            self.wakes.append(expires)
        elif not self.room.closed(server):
            self._stop(server, "Idle", f"unused for {self.now - server.last_used:.0f} s")

    def _stop(self, server: Server, reason: str, message: str) -> None:
        self.actions.append(Stop(model=server.model, server=server.id, reason=reason, message=message))
        self.room.stop(server)

    def _drain(self, server: Server, reason: str, message: str) -> None:
        self.actions.append(Drain(model=server.model, server=server.id, reason=reason, message=message))
        self.draining.add(server.id)
        self.room.leave(server)

    # --- models that should come --------------------------------------------------------------------------------

    def _wanted(self) -> list[str]:
        """Models that somebody asked for, that start by themselves, or that are on their way to another variant."""
        automatic = {
            name for name, model in self.models.items() if model.auto_start and name not in self.observed.auto_started
        }
        names = automatic | self.demand_of.keys() | (self.observed.moving & self.models.keys())
        return in_turn(names - self.observed.drained, self.models, self.demand_of, self.now)

    def _serve(self, name: str, model: Model) -> None:
        if self.conditions.external(name) is True:
            return
        server = self.conditions.server_of.get(name)
        if server is not None and not self.room.leaves(server):
            return  # which is told when all is decided
        managed = [variant for variant in model.variants if not variant.external]
        variants = [variant for variant in managed if not self._backs_off(name, variant)]
        if not variants:
            self._refuse_failed(name, managed)
        elif server is not None:
            if not self._promise(variants):
                self._contest(variants)
        elif not (self._start(name, managed, variants) or self._await(name, variants)):
            self._make_room(name, variants)

    def _backs_off(self, name: str, variant: Variant) -> bool:
        failure = self.failures.get((name, variant.name))
        if failure is None or failure.retry_at <= self.now:
            return False
        if failure.retry_at < math.inf:
            self.wakes.append(failure.retry_at)
        return True

    def _refuse_failed(self, name: str, managed: list[Variant]) -> None:
        """Every variant has failed and is not due yet."""
        failure = self.conditions.last_failure.get(name)
        if managed and failure is not None:
            soonest = min(self.failures[name, variant.name].retry_at for variant in managed)
            load_s = self.load_s.get((name, failure.variant), 0.0)
            retry_after_s = soonest - self.now + load_s if soonest < math.inf else None
            self._refuse(name, failure.reason, failure.message, retry_after_s)
        elif not managed and (why := self.conditions.external(name)) is not None:
            self._refuse(name, "ExternalUnhealthy", str(why), RETRY_AFTER_S["ExternalUnhealthy"])

    def _start(self, name: str, managed: list[Variant], variants: list[Variant]) -> bool:
        """Start the first variant that fits what is free now and is promised to nobody."""
        for variant in variants:
            placement = self.room.place_now(variant)
            if placement is None:
                continue
            passed_over = self._passed_over(name, managed[: managed.index(variant)])
            self.room.claim(variant, placement)
            on = self.inventory.labels(placement.devices)
            instead = f"; passed over: {'; '.join(passed_over)}" if passed_over else ""
            self.actions.append(
                Start(
                    model=name,
                    variant=variant.name,
                    devices=placement.devices,
                    reserved_mb=placement.reserved_mb,
                    message=f"variant {variant.name} fits on {on}{instead}",
                    passed_over=passed_over,
                )
            )
            self.conditions.say(name, "Starting", f"starting variant {variant.name} on {on}")
            return True
        return False

    def _passed_over(self, name: str, earlier: list[Variant]) -> tuple[str, ...]:
        reasons = []
        for variant in earlier:
            failure = self.failures.get((name, variant.name))
            backs_off = failure is not None and failure.retry_at > self.now
            reasons.append(failed(failure, self.now) if failure and backs_off else self.why.shortage(variant))
        return tuple(reasons)

    def _promise(self, variants: list[Variant], gone: Sequence[Server] = ()) -> Variant | None:
        """Keep room for the first variant that fits once what is under way is done, and `gone` have gone."""
        for position, variant in enumerate(variants):
            if placement := self.room.place_soon(variant, gone):
                self.room.promise(variant, placement)
                preferred = {device for other in variants[:position] for device in self._devices(other)}
                self.contested |= preferred | (self._devices(variant) - set(placement.devices))
                return variant
        return None

    def _contest(self, variants: list[Variant]) -> None:
        """Have nobody evicted there for those who come later: the model could move in before them."""
        for variant in variants:
            self.contested |= self._devices(variant)

    def _await(self, name: str, variants: list[Variant]) -> bool:
        """Wait, if there will be room once the stops and loads under way are done."""
        variant = self._promise(variants)
        if variant is None:
            return False
        leaving = self.room.on(variant, self.room.leaving)
        loading = self.room.on(variant, self.room.loading)
        if leaving:
            self.conditions.say(name, "WaitingForMemory", f"waits until {', '.join(leaving)} {_has(leaving)} stopped")
        else:
            who = ", ".join(loading) or "another model"
            self.conditions.say(name, "WaitingForStart", f"waits until {who} {_has(loading)} loaded: exclusive_start")
        return True

    def _make_room(self, name: str, variants: list[Variant]) -> None:
        """Evict who is idle; for an overdue model for which that is not enough, drain who is not."""
        demand = self.demand_of.get(name)  # auto_start takes free room; it does not push others out
        overdue = demand is not None and overdue_at(demand, self.models) <= self.now
        if demand is not None and self._push_out(name, variants, overdue=False):
            return
        if overdue and self._push_out(name, variants, overdue=True):
            return
        self._wait_or_refuse(name, variants)
        if overdue:
            self._keep_free(variants)
        if any(self.contested & self._devices(variant) for variant in variants):
            self._contest(variants)

    def _push_out(self, name: str, variants: list[Variant], *, overdue: bool) -> bool:
        candidates = [
            server
            for server in self._others()
            if may_go(server, self.models, self.demand_of, self.now, overdue=overdue)
        ]
        load_s = {one.id: self.load_s.get((one.model, one.variant), 0.0) for one in candidates}
        prices = priced(candidates, self.models, self.now, load_s)
        for variant in variants:
            if self.contested & self._devices(variant):
                continue  # whoever comes first could move in there, and the eviction would have been in vain
            if victims := self.room.cheapest(variant, prices):
                self._evict(victims, f"makes room for {name} (variant {variant.name})")
                self._await(name, [variant])
                return True
        return False

    def _keep_free(self, variants: list[Variant]) -> None:
        """Let nobody into the room that an overdue model gets when residencies end, or its turn might never come."""
        ends = {
            one.id: resident_until(one, self.models) if one.state is ServerState.READY else math.inf
            for one in self.observed.servers
            if not self.room.leaves(one) and not is_pinned(one, self.models)
        }

        def gone(end: float) -> list[Server]:
            return [one for one in self.observed.servers if ends.get(one.id, math.nan) <= end]

        times = sorted(set(ends.values()))
        enough = bisect_left(times, True, key=lambda end: any(self.room.place_soon(one, gone(end)) for one in variants))
        if enough < len(times):
            self._promise(variants, gone(times[enough]))

    def _others(self) -> list[Server]:
        """Servers that stay as yet, and may be told to go."""
        return [one for one in self.observed.servers if not self.room.leaves(one) and not self.room.closed(one)]

    def _evict(self, victims: Iterable[Server], message: str) -> None:
        for victim in victims:
            if victim.in_flight:
                self._drain(victim, "TurnOver", message)
            else:
                self._stop(victim, "Evicted", message)

    def _wait_or_refuse(self, name: str, variants: list[Variant]) -> None:
        if unread := self.why.stale(variants):
            self.conditions.say(name, "WaitingForReading", f"waits until {unread.label} has been read again")
            return
        shortage = "; ".join(map(self.why.shortage, variants))
        if reason := self.why.hopeless(variants):
            self._refuse(name, reason, shortage, RETRY_AFTER_S[reason])
            return
        others = [one for one in self.observed.servers if one.model != name and not self.room.leaves(one)]
        in_use = [one for one in others if one.in_flight or one.model in self.demand_of]
        message = f"waits for {listed_models(in_use or others) or 'its turn'}{self._turn(name, others)}; {shortage}"
        self.conditions.say(name, "WaitingForMemory", message)

    def _turn(self, name: str, others: list[Server]) -> str:
        """When its turn comes, loads and drains aside. The plan is made anew then, and when a residency ends."""
        demand = self.demand_of.get(name)
        if demand is None:
            return ""
        ends = [resident_until(one, self.models) for one in others if one.state is ServerState.READY]
        turn = max(overdue_at(demand, self.models), min(ends, default=self.now))
        self.wakes += [*ends, overdue_at(demand, self.models)]
        return f", its turn comes in about {turn - self.now:.0f} s" if turn > self.now else ""

    def _improve(self, server: Server) -> None:
        """Move an idle server to an earlier variant that has room by now."""
        if server.state is not ServerState.READY or server.in_flight or self.room.leaves(server):
            return
        better = self._better(server)
        quiet_at = max(server.last_used + QUIET_S, resident_until(server, self.models))
        if not better or quiet_at > self.now or self.room.closed(server):
            self.wakes += [quiet_at] if better else []
            return
        for variant in better:
            if placement := self.room.place_soon(variant, [server]):
                self._stop(server, "BetterVariant", f"moves to variant {variant.name}, which has room now")
                self.room.promise(variant, placement)
                return

    def _better(self, server: Server) -> list[Variant]:
        """Variants before the server's; one that has failed is tried again when there is no other server to lose."""
        if self.conditions.external(server.model) is True:
            return []  # nobody would start it again
        names = [variant.name for variant in self.models[server.model].variants]
        earlier = self.models[server.model].variants[: names.index(server.variant)]
        return [one for one in earlier if not one.external and (server.model, one.name) not in self.failures]

    # --- what helps the above -----------------------------------------------------------------------------------

    def _devices(self, variant: Variant) -> set[str]:
        return {key for name in variant.required_devices for key in self.inventory.ids(name)}

    def _refuse(self, name: str, reason: str, message: str, retry_after_s: float | None) -> None:
        self.conditions.say(name, reason, message)
        if name in self.demand_of:
            self.refusals[name] = Refusal(reason=reason, message=message, retry_after_s=retry_after_s)


def _has(models: Sequence[str]) -> str:
    return "have" if len(models) > 1 else "has"
