"""How much of each device is free, and for whom.

Two readings, and admission takes the lower: what the ledger says (usable - charged) and what the device says (live
free memory - what starting servers have yet to allocate). Headroom is kept free of both; a cap narrows the ledger only,
since it bounds what is placed, not what others use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sidecar.core.observed import Device, Server

Memory = dict[str, int]  # device id to MB


class Ledger:
    """Reservations per device. A device that cannot be read, or was read too long ago, has none free."""

    def __init__(
        self, devices: Iterable[Device], servers: Iterable[Server], caps: Mapping[str, int], headroom_mb: int
    ) -> None:
        self.devices = {device.id: device for device in devices if not device.unknown}
        self.servers = tuple(servers)
        self.usable: Memory = {
            key: min(max(0, device.status.total_mb - headroom_mb), caps.get(key, device.status.total_mb))
            for key, device in self.devices.items()
        }
        self._declared_free = {
            key: self.usable[key] - sum(server.charged_mb(key) for server in self.servers) for key in self.devices
        }
        self._live_free = {
            key: device.status.free_mb - headroom_mb - sum(server.yet_to_allocate_mb(key) for server in self.servers)
            for key, device in self.devices.items()
        }

    def free(self, gone: Iterable[Server] = ()) -> Memory:
        """MB that a newcomer may reserve on each device, once the servers `gone` have gone.

        Stale devices are left out: what is not known now is promised to nobody.
        """
        gone = tuple(gone)
        return {
            key: min(
                self._declared_free[key] + sum(server.charged_mb(key) for server in gone),
                self._live_free[key]
                + sum(server.would_free_mb(key) + server.yet_to_allocate_mb(key) for server in gone),
            )
            for key, device in self.devices.items()
            if not device.stale
        }

    def holders(self, device: str) -> str:
        """Who holds the memory of a device, for a person: our servers by model, foreign processes by pid."""
        ours = [
            f"{server.charged_mb(device)} MB reserved by {server.model} ({server.state.value})"
            for server in self.servers
            if server.charged_mb(device)
        ]
        return ", ".join(ours + self._foreign(device))

    def _foreign(self, device: str) -> list[str]:
        status = self.devices[device].status
        used = status.used_mb if status.used_mb is not None else status.total_mb - status.free_mb
        observed = [server.observed_mb.get(device) for server in self.servers if server.charged_mb(device)]
        foreign = used - sum(amount or 0 for amount in observed)
        if None in observed or foreign <= 0:
            return []  # what is not attributed cannot be told apart from ours
        named = [f"pid {process.pid} {process.name}".rstrip() for process in status.processes]
        return [f"{foreign} MB used by others" + (f" ({', '.join(named[:5])})" if named else "")]


def less(memory: Memory, *claims: Mapping[str, int]) -> Memory:
    """`memory` without the claims."""
    return {key: amount - sum(claim.get(key, 0) for claim in claims) for key, amount in memory.items()}


def lower(one: Memory, other: Memory) -> Memory:
    """The lower of two readings for each device that both know."""
    return {key: min(amount, other[key]) for key, amount in one.items() if key in other}
