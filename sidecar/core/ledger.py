"""How much of each device is free, and for whom.

Two readings, and admission takes the lower: what the ledger says (usable - charged) and what the device says (live
free memory - what starting servers have yet to allocate). Headroom is kept free of both; a cap narrows the ledger only,
since it bounds what is placed, not what others use.

Devices may share one memory (an integrated GPU and the machine's RAM): then both readings hold for the pool, too.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from sidecar.core.observed import Device, Server

Memory = dict[str, int]  # device id to MB


class Ledger:
    """Reservations per device. A device that cannot be read, or was read too long ago, has none free.

    pools: device id to the id of the device whose memory it uses; its own where it has its own. A device that cannot be
    read is in it when the memory that it uses can: what is reserved on it is taken from that.
    """

    def __init__(
        self, devices: Iterable[Device], servers: Iterable[Server], caps: Mapping[str, int], headroom_mb: int
    ) -> None:
        devices = tuple(devices)
        self.devices = {device.id: device for device in devices if not device.unknown}
        self.servers = tuple(servers)
        pools = {device.id: pool_of(device, self.devices) for device in devices}
        self.pools = {key: pool for key, pool in pools.items() if pool in self.devices}
        self._members = {
            pool: [key for key, of in self.pools.items() if of == pool] for pool in set(self.pools.values())
        }
        self.usable: Memory = {
            key: min(max(0, device.status.total_mb - headroom_mb), caps.get(key, device.status.total_mb))
            for key, device in self.devices.items()
        }
        self._charged = dict.fromkeys(self.pools, 0)
        self._yet_to_allocate = dict.fromkeys(self.pools, 0)
        for server in self.servers:
            for key in self._on(server):
                self._charged[key] += server.charged_mb(key)
                self._yet_to_allocate[key] += server.yet_to_allocate_mb(key)
        self._holders: dict[str, str] = {}  # asked for again and again when many wait
        self._live = {key: device.status.free_mb - headroom_mb for key, device in self.devices.items()}
        unsure = {device.id for device in devices if device.unknown or device.stale}
        self._free_now = {
            key: self._free(key, {}, {})
            for key, device in self.devices.items()
            if not unsure & {key, device.status.shares}  # what is not known of a memory holds for all who share it
        }

    def free(self, gone: Iterable[Server] = ()) -> Memory:
        """MB that a newcomer may reserve on each device, once the servers `gone` have gone.

        Stale devices are left out: what is not known now is promised to nobody.
        """
        declared: Memory = {}
        live: Memory = {}
        for server in gone:
            for key in self._on(server):
                freed_declared, freed_live = freed_mb(server, key)
                declared[key] = declared.get(key, 0) + freed_declared
                live[key] = live.get(key, 0) + freed_live
        if not declared:
            return self._free_now.copy()
        touched = {member for key in declared for member in self._members[self.pools[key]]}
        return {
            key: self._free(key, declared, live) if key in touched else amount for key, amount in self._free_now.items()
        }

    def charged_mb(self, device: str) -> int:
        """What all servers are charged for on a device."""
        return self._charged.get(device, 0)

    def readings(self, device: str) -> tuple[int, int]:
        """The two readings of which admission takes the lower: what the ledger leaves, and what the device has."""
        return self._declared_free(device, {}), self._live_free(device, {})

    def holders(self, device: str) -> str:
        """Who holds the memory of a device, for a person: our servers by model, foreign processes by pid."""
        if device not in self._holders:
            self._holders[device] = self._name_holders(device)
        return self._holders[device]

    def _name_holders(self, device: str) -> str:
        ours = [
            f"{server.charged_mb(key)} MB reserved by {server.model} ({server.state.value})"
            for server in self.servers
            for key in self._members[self.pools[device]]
            if server.charged_mb(key)
        ]
        return ", ".join(ours + self._foreign(device))

    def foreign_mb(self, device: str) -> int | None:
        """Memory held by processes that are not ours; None where the use of one of ours is not known."""
        status = self.devices[device].status
        used = status.used_mb if status.used_mb is not None else status.total_mb - status.free_mb
        observed = [
            server.observed_mb.get(key)
            for server in self.servers
            for key in self._members[self.pools[device]]
            if server.charged_mb(key)
        ]
        if None in observed:
            return None
        return max(0, used - sum(amount or 0 for amount in observed))

    def _foreign(self, device: str) -> list[str]:
        foreign = self.foreign_mb(device)
        if not foreign:
            return []  # nothing, or what cannot be told apart from ours
        own = {pid for server in self.servers for pid in server.pids}
        others = sorted(
            (process for process in self.devices[device].status.processes if process.pid not in own),
            key=lambda process: (-(process.used_mb or 0), process.pid),
        )
        named = [
            f"pid {process.pid} {process.name}".rstrip() + (f": {process.used_mb} MB" if process.used_mb else "")
            for process in others
        ]
        return [f"{foreign} MB used by others" + (f" ({', '.join(named[:5])})" if named else "")]

    def _free(self, device: str, declared: Memory, live: Memory) -> int:
        """The lower of the readings, with what is freed by device in each of them."""
        return min(self._declared_free(device, declared), self._live_free(device, live))

    def _declared_free(self, device: str, freed: Memory) -> int:
        own = self.usable[device] - self._charged[device] + freed.get(device, 0)
        pool = self.pools[device]
        if len(self._members[pool]) == 1:
            return own
        return min(own, self.usable[pool] - self._sum(self._charged, pool) + self._sum(freed, pool))

    def _live_free(self, device: str, freed: Memory) -> int:
        pool = self.pools[device]
        live = min(self._live[device], self._live[pool])
        return live - self._sum(self._yet_to_allocate, pool) + self._sum(freed, pool)

    def _sum(self, amounts: Memory, pool: str) -> int:
        return sum(amounts.get(member, 0) for member in self._members[pool])

    def _on(self, server: Server) -> list[str]:
        """The devices with readable memory that a server is charged for."""
        return [key for key in {**server.reserved_mb, **server.observed_mb} if key in self.pools]


def freed_mb(server: Server, device: str) -> tuple[int, int]:
    """What the two readings of a device gain when the server is gone."""
    return server.charged_mb(device), server.would_free_mb(device) + server.yet_to_allocate_mb(device)


def pool_of(device: Device, readable: Container[str]) -> str:
    """The id of the device whose memory this one uses: the one that it shares with, if that can be read."""
    return device.status.shares if device.status.shares in readable else device.id


def less(memory: Memory, *claims: Mapping[str, int]) -> Memory:
    """`memory` without the claims."""
    return {key: amount - sum(claim.get(key, 0) for claim in claims) for key, amount in memory.items()}


def lower(one: Memory, other: Memory) -> Memory:
    """The lower of two readings for each device that both know."""
    return {key: min(amount, other[key]) for key, amount in one.items() if key in other}
