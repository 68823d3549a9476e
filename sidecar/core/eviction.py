"""What it costs when servers go so that a newcomer fits, and what that frees. `cover` finds the cheapest set.

Sets of victims are compared

1. by how many of them are of the highest priority and busy, then of the highest priority and used within the last 1, 2,
   4, 8, ... milliseconds, so that what has been idle for about as long (one not twice as long as the other) counts the
   same; then by the same of the next lower priority, and so on; servers of models that are not declared come last;
2. then by the milliseconds that it takes to load all of them again;
3. then by the MB that all of them hold;
4. then by their ids.

That order is additive: a server's cost is a whole number with a digit for each of these questions, the first one
highest, and the cost of a set is the sum.

    cost = 2**at(priority, idle class) + load_ms * 2**bits(all held_mb) + held_mb

at() is where the digit of that idle class within that priority begins. Those digits count victims and are 7 bits wide,
enough for 127 (wider if there are more candidates), and milliseconds and MB have room for all candidates together, so
that no digit ever carries into the next. The ids are the lowest digit of all, which `cover` adds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from sidecar.core.cover import Candidate, Limit
from sidecar.core.ledger import Ledger, freed_mb
from sidecar.core.manifest import Model
from sidecar.core.observed import Server

COUNT_BITS = 7

Level = tuple[bool, int]  # whether the model is declared, and its priority


def priced(
    servers: Collection[Server], models: Mapping[str, Model], now: float, load_s: Mapping[str, float]
) -> tuple[Candidate, ...]:
    """The servers with their costs. load_s: server id to measured seconds; a server that is missing there takes none.

    Costs can be compared within one result only.
    """
    classes = {server.id: (_level(models.get(server.model)), -_idle_class(server, now)) for server in servers}
    load_ms = {server.id: round(1000 * load_s.get(server.id, 0)) for server in servers}
    held_mb = {server.id: sum(map(server.charged_mb, _devices(server))) for server in servers}

    bits = max(COUNT_BITS, len(servers).bit_length())
    ms_at = sum(held_mb.values()).bit_length()
    classes_at = ms_at + sum(load_ms.values()).bit_length()
    class_at = {one: classes_at + rank * bits for rank, one in enumerate(sorted(set(classes.values())))}

    def cost(key: str) -> int:
        return (1 << class_at[classes[key]]) + (load_ms[key] << ms_at) + held_mb[key]

    return tuple(Candidate(server, cost(server.id)) for server in servers)


def limits(
    ledger: Ledger, servers: Collection[Server], gone: Iterable[Server] = (), taken: Mapping[str, int] | None = None
) -> tuple[Limit, ...]:
    """Both readings of each device, and of each memory that devices share, with what the servers free by going.

    gone: those who leave anyhow. taken: device id to MB that others have claimed there; a claim on a shared memory is
    to be named for each device that shares it. Devices that `Ledger.free` leaves out have no limits.
    """
    taken, known = taken or {}, list(ledger.free())
    sharing: dict[str, list[str]] = {}
    for device, pool in ledger.pools.items():
        sharing.setdefault(pool, []).append(device)
    frees, leaves = _freed(servers), _freed(gone)

    def limit(scope: Iterable[str], device: str, reading: int, free_mb: int, counted: list[str]) -> Limit:
        freed: dict[str, int] = {}
        for key in counted:
            for server, amounts in frees.get(key, {}).items():
                freed[server] = freed.get(server, 0) + amounts[reading]
            free_mb += sum(amounts[reading] for amounts in leaves.get(key, {}).values())
        return Limit(frozenset(scope), free_mb - taken.get(device, 0), freed)

    found = []
    for device in known:
        declared_mb = ledger.usable[device] - ledger.charged_mb(device)
        found.append(limit([device], device, 0, declared_mb, [device]))
        found.append(limit([device], device, 1, ledger.readings(device)[1], sharing[ledger.pools[device]]))
    for pool, members in sharing.items():
        scope = [device for device in members if device in known]
        if len(members) > 1 and scope:
            declared_mb, live_mb = ledger.readings(pool)
            found.append(limit(scope, pool, 0, declared_mb, members))
            found.append(limit(scope, pool, 1, live_mb, members))
    return tuple(found)


def _freed(servers: Iterable[Server]) -> dict[str, dict[str, tuple[int, int]]]:
    """By device, what each server frees there, in both readings."""
    freed: dict[str, dict[str, tuple[int, int]]] = {}
    for server in servers:
        for device in _devices(server):
            freed.setdefault(device, {})[server.id] = freed_mb(server, device)
    return freed


def _level(model: Model | None) -> Level:
    return (False, 0) if model is None else (True, model.priority)


def _idle_class(server: Server, now: float) -> int:
    """0: busy; 1: used within the last millisecond; 2: within two; 3: within four, and so on."""
    return 0 if server.in_flight else 1 + int(1000 * max(0.0, now - server.last_used)).bit_length()


def _devices(server: Server) -> set[str]:
    return server.reserved_mb.keys() | server.observed_mb.keys()
