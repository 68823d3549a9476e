"""What a new declaration changes about servers that run: nothing, unless the planner says so for a reason of its own.

Whether a server must restart is decided by its variant's fingerprint (devices, memory, command, env, cwd); all else
(aliases, chain, timeouts, priority, the names themselves) is taken over as it runs.
"""

from __future__ import annotations

from sidecar.control.fleet import Fleet
from sidecar.control.live import LiveServer
from sidecar.core.manifest import Declaration
from sidecar.core.observed import ServerState
from sidecar.core.renames import counterpart, managed, renamed_model


def take_over_changes(fleet: Fleet, before: Declaration, after: Declaration) -> bool:
    """Give changed models a fresh try, and servers their new names and settings; whether a name has changed."""
    for name in before.models.keys() | after.models.keys():
        if before.models.get(name) != after.models.get(name):
            fleet.forgive(name)
            fleet.moving.pop(name, None)
            fleet.auto_started.discard(name)
    renamed = False
    for server in list(fleet.servers.values()):
        model = after.models.get(server.model)
        if model is None and (new := _renamed(server, fleet, before, after)):
            fleet.rename(server, new)
            model, renamed = after.models[new], True
        variant = counterpart(server.fingerprint, server.variant.name, model)
        if variant is not None:
            renamed = renamed or variant.name != server.variant.name
            server.variant = variant
            if server.state in (ServerState.STARTING, ServerState.READY):
                fleet.auto_started.add(server.model)  # it goes on; stopped for another later, it must not come back
    return renamed


def renamed_models(fleet: Fleet, before: Declaration, after: Declaration) -> dict[str, str]:
    """Which models are called otherwise now, with servers or without: those that `take_over_changes` renames, too."""
    taken = before.models.keys() | {server.model for server in fleet.servers.values()}
    prints = [(server.model, [server.fingerprint]) for server in fleet.servers.values()]
    prints += [(name, [one.fingerprint() for one in managed(model)]) for name, model in sorted(before.models.items())]
    found: dict[str, str] = {}
    for name, fingerprints in prints:
        if name not in after.models and name not in found:
            names = (renamed_model(one, after, taken | set(found.values())) for one in fingerprints)
            if new := next(filter(None, names), None):
                found[name] = new
    return found


def _renamed(server: LiveServer, fleet: Fleet, before: Declaration, after: Declaration) -> str | None:
    """The new name of the server's model: the one model that came with this revision and runs exactly so."""
    taken = before.models.keys() | {other.model for other in fleet.servers.values()}
    return renamed_model(server.fingerprint, after, taken)
