"""Whose turn it is, and who may be asked to go for it.

A model that waits starts as soon as there is room, at the cost of servers that nobody uses. One that has waited for
`max_wait` is *overdue*: it comes before all others, and servers in use are drained for it, so that no incumbent keeps
it out for ever. A server that has just become ready is left alone for `min_residency`, so that two models that want the
same memory do not push each other out at every request.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping

from sidecar.core.manifest import Model
from sidecar.core.observed import Demand, Server, ServerState


def overdue_at(demand: Demand, models: Mapping[str, Model]) -> float:
    """When the model will have waited for `max_wait`."""
    return demand.since + models[demand.model].max_wait


def in_turn(names: Iterable[str], models: Mapping[str, Model], demands: Mapping[str, Demand], now: float) -> list[str]:
    """Models in the order in which they are served: the overdue by when they became so, then by priority, then by age.

    A model without demand (auto_start) comes after all that somebody waits for: others have not gone for it.
    """

    def key(name: str) -> tuple[int, float, float, str]:
        demand = demands.get(name)
        if demand is None:
            return (2, -models[name].priority, 0, name)
        if (turn := overdue_at(demand, models)) <= now:
            return (0, turn, 0, name)  # not by age: whoever becomes overdue takes no room that was made for another
        return (1, -models[name].priority, demand.since, name)

    return sorted(names, key=key)


def resident_until(server: Server, models: Mapping[str, Model]) -> float:
    """Until when a ready server is left alone by evictions; one whose model is not declared any more has no such right.

    `since` of a ready server is the moment at which it became ready.
    """
    model = models.get(server.model)
    return server.since + model.min_residency if model else -math.inf


def is_pinned(server: Server, models: Mapping[str, Model]) -> bool:
    """Whether the server's model is never evicted."""
    model = models.get(server.model)
    return model is not None and model.pinned


def may_go(server: Server, models: Mapping[str, Model], wanted: Container[str], now: float, *, overdue: bool) -> bool:
    """Whether the server may be evicted for a model that waits, or drained for one that is overdue."""
    if server.state is not ServerState.READY or server.model in wanted or is_pinned(server, models):
        return False
    return resident_until(server, models) <= now and (overdue or server.in_flight == 0)
