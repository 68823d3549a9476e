"""Where a request can go, as route plugins see it; and the lease that belongs to what they choose."""

from __future__ import annotations

import msgspec

from plugin_sdk import Target
from sidecar.control import leases
from sidecar.control.fleet import Fleet
from sidecar.control.leases import Lease
from sidecar.control.live import LiveServer
from sidecar.core.manifest import Model, Variant
from sidecar.core.observed import ServerState


def targets(fleet: Fleet, name: str, model: Model, tried: frozenset[str]) -> tuple[Target, ...]:
    """What a model has: its own server, and the healthy ones that somebody else runs, but for those that were tried.

    A server that has to be started is one only where there is no other: while another is healthy, none is started.
    """
    found = [
        _external(fleet, name, variant) for variant in fleet.healthy_externals(name, model) if variant.name not in tried
    ]
    server = _ready(fleet, name)
    if server is not None:
        found.insert(0, _managed(server))
    elif not found:
        found = [_cold(name, variant) for variant in model.variants if not variant.external][:1]
    return tuple(found)


def lease(fleet: Fleet, name: str, model: Model, chosen: Target) -> Lease | None:
    """The lease for a choice, which may be a target of the plugin's own; None if a server has to be waited for."""
    server = _ready(fleet, name)
    found: Lease | None
    if server is not None and (chosen.name, chosen.base_url) == (server.variant.name, server.base_url):
        found = fleet.admit(server, cold=False)
    elif not chosen.base_url:
        return None
    else:
        found = next(
            (
                fleet.external_lease(name, variant)
                for variant in fleet.healthy_externals(name, model)
                if (chosen.name, chosen.base_url) == (variant.name, variant.url.rstrip("/"))
            ),
            None,
        ) or own_lease(fleet, name, chosen)
    found.target = msgspec.structs.replace(
        found.target,
        upstream_model=chosen.model or found.target.upstream_model,
        api_key=chosen.api_key,
        timeout_s=chosen.timeout_s,
    )
    return found


def own_lease(fleet: Fleet, name: str, chosen: Target) -> Lease:
    """The lease for a target of a plugin's own, whose server nobody here starts, watches or stops."""
    target = leases.Target(
        model=name,
        variant=chosen.name,
        base_url=chosen.base_url.rstrip("/"),
        upstream_model=chosen.model or name,
        origin="external",
        api_key=chosen.api_key,
        timeout_s=chosen.timeout_s,
    )
    return Lease(None, target, fleet.released)


def _ready(fleet: Fleet, name: str) -> LiveServer | None:
    server = fleet.server_of(name)
    return server if server is not None and server.state is ServerState.READY else None


def _managed(server: LiveServer) -> Target:
    return Target(
        name=server.variant.name,
        base_url=server.base_url,
        model=server.variant.model_name or server.model,
        api_key=server.variant.api_key,
        in_flight=server.in_flight,
    )


def _cold(name: str, variant: Variant) -> Target:
    return Target(name=variant.name, base_url="", model=variant.model_name or name, ready=False)


def _external(fleet: Fleet, name: str, variant: Variant) -> Target:
    return Target(
        name=variant.name,
        base_url=variant.url.rstrip("/"),
        model=variant.model_name or name,
        api_key=variant.api_key,
        weight=variant.weight,
        in_flight=fleet.external_in_flight[name, variant.name],
    )
