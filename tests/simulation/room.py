"""Memory arithmetic once more, the plain way: what the audit compares the planner's with."""

from __future__ import annotations

from itertools import permutations

import msgspec

from sidecar.core.manifest import Declaration, Variant
from sidecar.core.observed import Device, Observed, Server, ServerState
from sidecar.core.plan import Start


def usable_mb(device: Device, declared: Declaration) -> int:
    """What may be reserved of a device."""
    caps = [declared.devices[name].memory_mb for name in names(device, declared)]
    return min([device.status.total_mb - declared.settings.headroom_mb, *(cap for cap in caps if cap is not None)])


def names(device: Device, declared: Declaration) -> list[str]:
    """What the manifests call a device."""
    return [
        name
        for name, one in declared.devices.items()
        if (one.match.device_class, one.match.index) == (device.device_class, device.status.index)
    ]


def fits(variant: Variant, observed: Observed, declared: Declaration, gone: set[str]) -> bool:
    """Whether the variant fits once those servers have gone: by trying every choice of devices."""
    devices = [device for device in observed.devices if not device.status.problem and not device.stale]
    needs = variant.needs()
    return any(
        all(
            requirement in (device.id, device.device_class, device.label, *names(device, declared))
            and _free_mb(device, observed, declared, gone) >= amount
            for (requirement, amount), device in zip(needs, chosen, strict=True)
        )
        for chosen in permutations(devices, len(needs))
    )


def is_taken_by(start: Start, variant: Variant, observed: Observed, declared: Declaration, gone: set[str]) -> bool:
    """Whether the start leaves no room for the variant, for which there would be some."""
    started = Server(
        id="", model=start.model, variant="", fingerprint="", state=ServerState.STARTING, reserved_mb=start.reserved_mb
    )
    after = msgspec.structs.replace(observed, servers=(*observed.servers, started))
    return fits(variant, observed, declared, gone) and not fits(variant, after, declared, gone)


def _free_mb(device: Device, observed: Observed, declared: Declaration, gone: set[str]) -> int:
    key = device.id
    stay = [server for server in observed.servers if server.id not in gone]
    leave = [server for server in observed.servers if server.id in gone]
    reserved = sum(_charged_mb(server, key) for server in stay)
    live = device.status.free_mb + sum(server.would_free_mb(key) for server in leave)
    live -= declared.settings.headroom_mb + sum(server.yet_to_allocate_mb(key) for server in stay)
    return min(usable_mb(device, declared) - reserved, live)


def _charged_mb(server: Server, key: str) -> int:
    return max(server.reserved_mb.get(key, 0), server.observed_mb.get(key, 0))
