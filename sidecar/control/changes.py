"""What a new declaration changes about servers that run: nothing, unless the planner says so for a reason of its own.

Whether a server must restart is decided by its variant's fingerprint (devices, memory, command, env, cwd); all else
(aliases, chain, timeouts, priority, the names themselves) is taken over as it runs.
"""

from __future__ import annotations

from sidecar.control.fleet import Fleet
from sidecar.control.live import LiveServer
from sidecar.core.manifest import Declaration, Model, Variant
from sidecar.core.observed import ServerState


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
        variant = _counterpart(server, model)
        if variant is not None:
            renamed = renamed or variant.name != server.variant.name
            server.variant = variant
            if server.state in (ServerState.STARTING, ServerState.READY):
                fleet.auto_started.add(server.model)  # it goes on; stopped for another later, it must not come back
    return renamed


def renamed_model(fingerprint: str, after: Declaration, taken: set[str]) -> str | None:
    """The model that runs exactly so, and that has no server yet; None if there is none, or more than one."""
    found = [
        name
        for name, model in after.models.items()
        if name not in taken and any(variant.fingerprint() == fingerprint for variant in _managed(model))
    ]
    return found[0] if len(found) == 1 else None


def _renamed(server: LiveServer, fleet: Fleet, before: Declaration, after: Declaration) -> str | None:
    """The new name of the server's model: the one model that came with this revision and runs exactly so."""
    taken = before.models.keys() | {other.model for other in fleet.servers.values()}
    return renamed_model(server.fingerprint, after, taken)


def _counterpart(server: LiveServer, model: Model | None) -> Variant | None:
    """The variant that the server is of now: by name and fingerprint, or else, if it was renamed, by fingerprint."""
    same = [one for one in _managed(model) if one.fingerprint() == server.fingerprint] if model else []
    return next((one for one in same if one.name == server.variant.name), same[0] if same else None)


def _managed(model: Model) -> list[Variant]:
    return [variant for variant in model.variants if not variant.external]
