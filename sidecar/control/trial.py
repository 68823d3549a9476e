"""A merge, tried on a machine: on values, by the planner, until nothing is left to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from sidecar.core.manifest import Declaration
from sidecar.core.observed import ExternalServer, Observed, Server
from sidecar.core.placement import Inventory
from sidecar.core.plan import Start
from sidecar.core.review import Effect, OnRequest, Review
from sidecar.core.whatif import Settled, as_declared, asked, carry_over, settle


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it is done. running: a sidecar runs there, on the first revision. now: its clock."""

    observed: Observed
    running: bool
    now: float


def tried(found: Review, machine: Machine, old: Declaration, new: Declaration, renamed: Mapping[str, str]) -> Review:
    """The review, with what comes of it on the machine, on which `old` is in force. renamed: old name to new one."""
    auto = frozenset(name for name, model in old.models.items() if model.auto_start and machine.running)
    seen = msgspec.structs.replace(
        machine.observed,
        servers=as_declared(machine.observed.servers, old),
        auto_started=machine.observed.auto_started | auto,  # what has not come up by itself was tried, or was stopped
    )
    before = settle(old, _with_externals(seen, old), machine.now)
    over = carry_over(before.observed, old, new)
    after = settle(new, _with_externals(over, new), machine.now)
    called = {now: then for then, now in renamed.items()}
    return msgspec.structs.replace(
        found,
        effects=tuple(_effects(before, over, after, Inventory(after.observed.devices, new.devices))),
        on_request=tuple(_on_request((old, before), (new, after), called, machine.now)),
        at_rest=before.at_rest and after.at_rest,
    )


def _effects(before: Settled, over: Observed, after: Settled, inventory: Inventory) -> Iterator[Effect]:
    called = {server.id: server.model for server in before.observed.servers}
    then = {server.model: server for server in over.servers}
    now = {server.model: server for server in after.observed.servers}
    for name in sorted(then.keys() | now.keys()):
        old, new = then.get(name), now.get(name)
        server = new or old
        was = called.get(old.id, name) if old else name
        if server is None or (old and new and old.id == new.id and was == name):
            continue
        kind, why = _what_happened(name, old, new, after)
        yield Effect(
            kind=kind,
            model=name,
            variant=server.variant,
            devices=tuple(inventory.label(key) for key in server.reserved_mb),
            why=why,
            was="" if was == name else was,
        )


def _on_request(
    before: tuple[Declaration, Settled], after: tuple[Declaration, Settled], called: Mapping[str, str], now: float
) -> Iterator[OnRequest]:
    for name in after[0].models:
        was = called.get(name, name)
        then = asked(before[0], before[1].observed, was, now) if was in before[0].models else None
        outcome = asked(after[0], after[1].observed, name, now)
        if then is None or then.differs(outcome):
            yield OnRequest(model=name, before=then, after=outcome)


def _what_happened(name: str, old: Server | None, now: Server | None, after: Settled) -> tuple[str, str]:
    """The kind of an effect, and why."""
    if old is None:
        start = next(one for one in after.actions if isinstance(one, Start) and one.model == name)
        return "start", start.message
    if now is not None and now.id == old.id:
        return "rename", "the server goes on under its new name"
    ended = next(one for one in after.actions if not isinstance(one, Start) and one.server == old.id)
    if now is not None:
        return "restart", ended.message
    kind = "evict" if ended.reason in ("Evicted", "TurnOver") else "stop"
    ready = after.conditions.get(name, ())
    if kind == "evict" or not ready or ready[0].reason == "Stopped":
        return kind, ended.message
    return kind, f"{ended.message}; it does not come back: {ready[0].reason}: {ready[0].message}"


def _with_externals(observed: Observed, declared: Declaration) -> Observed:
    """Servers that somebody else runs are as they were seen, and healthy where nobody has looked yet."""
    seen = {(one.model, one.variant): one for one in observed.externals}
    probes = [
        seen.get((name, variant.name)) or ExternalServer(model=name, variant=variant.name, healthy=True)
        for name, model in declared.models.items()
        for variant in model.variants
        if variant.external
    ]
    return msgspec.structs.replace(observed, externals=tuple(probes))
