"""Who holds the memory of a device: our servers one by one, others, what is reserved but not taken yet, and nobody."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sidecar.core.ledger import Ledger
from sidecar.core.observed import Server


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What one server has on a device, in MB. used_mb: None = the driver does not tell."""

    model: str
    reserved_mb: int
    used_mb: int | None = None


class Holders(msgspec.Struct, frozen=True, kw_only=True):
    """A device's memory, in MB; ours, foreign, reserved and free add up to the total.

    ours_mb: taken by our servers. foreign_mb: by whatever else, and, where `told` is false, by those of our servers
    whose use is not known. reserved_mb: free, but promised to our servers. free_mb: the rest.
    """

    total_mb: int
    ours_mb: int
    foreign_mb: int
    reserved_mb: int
    free_mb: int
    told: bool
    servers: tuple[Holding, ...] = ()


def holders(ledger: Ledger, device: str, servers: Iterable[Server]) -> Holders | None:
    """Who holds what; None of a device that cannot be read."""
    if device not in ledger.devices or ledger.devices[device].unknown:
        return None
    status = ledger.devices[device].status
    held = tuple(
        Holding(
            model=server.model, reserved_mb=server.reserved_mb.get(device, 0), used_mb=server.observed_mb.get(device)
        )
        for server in servers
        if device in server.reserved_mb or server.observed_mb.get(device)
    )
    total = status.total_mb
    used = min(total, status.used_mb if status.used_mb is not None else total - status.free_mb)
    ours = min(used, sum(one.used_mb or 0 for one in held))
    unused = sum(max(0, one.reserved_mb - one.used_mb) for one in held if one.used_mb is not None)
    unmeasured = sum(one.reserved_mb for one in held if one.used_mb is None)
    foreign = used - ours
    reserved = min(total - used, unused + max(0, unmeasured - foreign))  # what is not told may be among the others'
    return Holders(
        total_mb=total,
        ours_mb=ours,
        foreign_mb=foreign,
        reserved_mb=reserved,
        free_mb=total - used - reserved,
        told=all(one.used_mb is not None for one in held),
        servers=held,
    )
