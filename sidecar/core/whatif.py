"""What would come of other manifests: the planner, asked again and again until it has nothing more to do.

Nothing happens here. Each action of a plan is taken to succeed at once: servers come up, take what they declare, and go
when they are told to, after their requests. Time stands still, so only what the manifests decide shows.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sidecar.core.manifest import Declaration
from sidecar.core.observed import LEAVING, Condition, Demand, Device, Observed, Server, ServerState
from sidecar.core.plan import Action, Drain, Plan, Start
from sidecar.core.planner import plan
from sidecar.core.renames import counterpart, renamed_model

MOST_ROUNDS = (
    1000  # a plan that is carried out leaves nothing to do (the planner's 7th law); this is no promise of ours
)
LONG_S = 86400.0  # longer than any residency
_RETURNS = ("ManifestChanged", "BetterVariant")  # reasons for which a server leaves only to be started anew


class Settled(msgspec.Struct, frozen=True, kw_only=True):
    """How things are when there is nothing more to do, and all that was done. at_rest: False if that never came."""

    observed: Observed
    actions: tuple[Action, ...]
    conditions: dict[str, tuple[Condition, ...]]
    at_rest: bool = True


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody gets who asks for a model. verdict: serves, starts, evicts, waits or refused.

    victims: the models that go for it. why: in a sentence.
    """

    verdict: str
    variant: str = ""
    victims: tuple[str, ...] = ()
    why: str = ""

    def differs(self, other: Outcome) -> bool:
        """Whether it is another outcome, and not only told otherwise."""
        return (self.verdict, self.variant, self.victims) != (other.verdict, other.variant, other.victims)


def at_ease(observed: Observed, now: float) -> Observed:
    """What is observed when the moment has passed: requests are done, what comes is there, what goes has gone.

    Nobody waits, nothing was loaded a moment ago, and the devices have been read.
    """
    staying = [one for one in observed.servers if one.state not in LEAVING]
    gone: dict[str, int] = {}
    for server in observed.servers:
        for key in _held(server) if server.state in LEAVING else ():
            gone[key] = gone.get(key, 0) + server.would_free_mb(key)
    devices = tuple(msgspec.structs.replace(device, stale=False) for device in observed.devices)
    return msgspec.structs.replace(
        observed,
        servers=tuple(_at_ease(one, now) for one in staying),
        devices=_with_free(devices, gone),
        demands=(),
        failures=(),
        moving=frozenset(),
    )


def _at_ease(server: Server, now: float) -> Server:
    return msgspec.structs.replace(server, state=ServerState.READY, in_flight=0, since=min(server.since, now - LONG_S))


def as_declared(servers: Iterable[Server], declared: Declaration) -> tuple[Server, ...]:
    """The servers of another machine, as far as they are of the declared variants: by name, and by what they reserve.

    There a command may say another path or variable, so that fingerprints cannot be compared. What is not declared so
    has none.
    """
    return tuple(msgspec.structs.replace(one, fingerprint=_declared_fingerprint(one, declared)) for one in servers)


def _declared_fingerprint(server: Server, declared: Declaration) -> str:
    model = declared.models.get(server.model)
    variant = next((one for one in model.variants if one.name == server.variant), None) if model else None
    if variant is None or variant.external:
        return ""
    same = sorted(amount for _, amount in variant.needs()) == sorted(server.reserved_mb.values())
    return variant.fingerprint() if same else ""


def carry_over(observed: Observed, before: Declaration, after: Declaration) -> Observed:
    """What is observed in the moment in which `after` comes into force: servers have their new names."""
    names = before.models.keys() | after.models.keys()
    changed = {name for name in names if before.models.get(name) != after.models.get(name)}
    taken = set(before.models) | {server.model for server in observed.servers}
    auto_started = set(observed.auto_started - changed)
    servers = []
    for server in observed.servers:
        name = server.model
        if name not in after.models and (new := renamed_model(server.fingerprint, after, taken)):
            name = new
            taken.add(new)
        variant = counterpart(server.fingerprint, server.variant, after.models.get(name))
        if variant is not None:
            server = msgspec.structs.replace(server, model=name, variant=variant.name)  # noqa: PLW2901 - as it is now
            if server.state in (ServerState.STARTING, ServerState.READY):
                auto_started.add(name)
        servers.append(server)
    return msgspec.structs.replace(
        observed,
        servers=tuple(servers),
        auto_started=frozenset(auto_started),
        moving=observed.moving - changed,
        failures=tuple(one for one in observed.failures if one.model not in changed),
    )


def settle(declared: Declaration, observed: Observed, now: float) -> Settled:
    """Plan and carry out, until there is nothing more to do."""
    done: list[Action] = []
    for _ in range(MOST_ROUNDS):
        decided = plan(declared, observed, now)
        if not decided.actions:
            return Settled(observed=observed, actions=tuple(done), conditions=decided.conditions)
        done += decided.actions
        for action in decided.actions:
            observed = _carry_out(observed, action, declared, now)
    return Settled(observed=observed, actions=tuple(done), conditions=decided.conditions, at_rest=False)


def asked(declared: Declaration, observed: Observed, model: str, now: float) -> Outcome:
    """What somebody gets who asks for a model that is declared."""
    wanting = msgspec.structs.replace(observed, demands=(*observed.demands, Demand(model, now)))
    decided = plan(concerned(declared, wanting), wanting, now)
    if refusal := decided.refusals.get(model):
        return Outcome(verdict="refused", why=f"{refusal.reason}: {refusal.message}")
    if start := next((one for one in decided.actions if isinstance(one, Start) and one.model == model), None):
        return Outcome(verdict="starts", variant=start.variant, why=start.message)
    if victims := _victims(decided, model):
        told = decided.conditions[model][0].message
        return Outcome(verdict="evicts", victims=victims, why=f"evicts {', '.join(victims)}: {told}")
    ready = decided.conditions[model][0]
    verdict = "serves" if ready.status.value == "true" else "waits"
    return Outcome(verdict=verdict, why=ready.message)


def concerned(declared: Declaration, observed: Observed) -> Declaration:
    """Without the models that nobody asks for and that have no server: of thousands, all would be planned for each."""
    names = {one.model for some in (observed.servers, observed.demands) for one in some} | observed.moving
    models = {name: model for name, model in declared.models.items() if model.auto_start or name in names}
    return msgspec.structs.replace(declared, models=models)


def _victims(decided: Plan, model: str) -> tuple[str, ...]:
    evictions = (one for one in decided.actions if not isinstance(one, Start) and one.reason in ("Evicted", "TurnOver"))
    return tuple(sorted(one.model for one in evictions if one.model != model))


def _carry_out(observed: Observed, action: Action, declared: Declaration, now: float) -> Observed:
    if isinstance(action, Start):
        return _started(observed, action, declared, now)
    server = next(one for one in observed.servers if one.id == action.server)
    returns = action.reason in _RETURNS and (not isinstance(action, Drain) or server.state is ServerState.READY)
    return msgspec.structs.replace(
        observed,
        servers=tuple(one for one in observed.servers if one.id != server.id),
        devices=_with_free(observed.devices, {key: server.would_free_mb(key) for key in _held(server)}),
        moving=observed.moving | {server.model} if returns else observed.moving,
    )


def _started(observed: Observed, start: Start, declared: Declaration, now: float) -> Observed:
    variant = next(one for one in declared.models[start.model].variants if one.name == start.variant)
    server = Server(
        id=f"{start.model}+{variant.fingerprint()}",  # another one if it is started anew in another form
        model=start.model,
        variant=start.variant,
        fingerprint=variant.fingerprint(),
        state=ServerState.READY,
        reserved_mb=start.reserved_mb,
        observed_mb=start.reserved_mb,
        since=now,
        last_used=now,
    )
    return msgspec.structs.replace(
        observed,
        servers=(*observed.servers, server),
        devices=_with_free(observed.devices, {key: -amount for key, amount in start.reserved_mb.items()}),
        auto_started=observed.auto_started | {start.model},
        moving=observed.moving - {start.model},
    )


def _held(server: Server) -> set[str]:
    return server.reserved_mb.keys() | server.observed_mb.keys()


def _with_free(devices: tuple[Device, ...], more: dict[str, int]) -> tuple[Device, ...]:
    """The devices with so much more free memory each; those that share one memory have it in common."""
    pool = {device.id: device.status.shares or device.id for device in devices}
    gained: dict[str, int] = {}
    for key, amount in more.items():
        for also in {key, pool.get(key, key)}:
            gained[also] = gained.get(also, 0) + amount
    return tuple(_gaining(device, gained.get(device.id, 0)) for device in devices)


def _gaining(device: Device, amount: int) -> Device:
    status = device.status
    if not amount or device.unknown:
        return device
    free = min(max(0, status.free_mb + amount), status.total_mb)
    used = None if status.used_mb is None else max(0, status.used_mb - amount)
    return msgspec.structs.replace(device, status=msgspec.structs.replace(status, free_mb=free, used_mb=used))
