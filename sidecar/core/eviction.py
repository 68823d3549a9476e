"""Who has to go so that a newcomer fits: idle, unpinned servers only, and none that does not help."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sidecar.core.manifest import Model
from sidecar.core.observed import Server, ServerState


def evictable(servers: Sequence[Server], models: Mapping[str, Model]) -> list[Server]:
    """Servers that may be stopped for another: ready, nothing in flight, not pinned; cheapest first.

    Cheapest = lowest priority, then longest unused. A server whose model is no longer declared costs nothing.
    """

    def cost(server: Server) -> tuple[int, float, str]:
        model = models.get(server.model)
        return (model.priority if model else -(2**31), server.last_used, server.id)

    def allowed(server: Server) -> bool:
        model = models.get(server.model)
        idle = server.state is ServerState.READY and server.in_flight == 0
        return idle and not (model is not None and model.pinned)

    return sorted(filter(allowed, servers), key=cost)


def choose(candidates: Sequence[Server], fits: Callable[[Sequence[Server]], bool]) -> list[Server] | None:
    """A set of candidates (cheapest first) after which the newcomer `fits`, and of which none can be spared.

    None when even all of them do not make room: then nothing is evicted.
    """
    chosen: list[Server] = []
    for candidate in candidates:
        if fits(chosen):
            break
        chosen.append(candidate)
    if not fits(chosen):
        return None
    for candidate in reversed(chosen.copy()):
        spared = [server for server in chosen if server is not candidate]
        if fits(spared):
            chosen = spared
    return chosen
