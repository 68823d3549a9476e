"""The memory that a plan in the making has to give away: now, and once the stops under way are done."""

from __future__ import annotations

from collections.abc import Iterable

from sidecar.core.cover import Candidate, Problem, cheapest
from sidecar.core.eviction import limits
from sidecar.core.ledger import Ledger, Memory, less, lower
from sidecar.core.manifest import Variant
from sidecar.core.observed import LEAVING, Server, ServerState
from sidecar.core.placement import Inventory, Placement, place


class Room:
    """Free memory, less what this plan has claimed for starts and promised to those who wait.

    leaving: servers that go, by what was observed or by this plan. Devices on which an engine sizes itself by what is
    free (`exclusive_start`) are closed until it is ready.
    """

    def __init__(self, ledger: Ledger, inventory: Inventory) -> None:
        self.ledger = ledger
        self.leaving = [server for server in ledger.servers if server.state in LEAVING]
        self._leaving_ids = {server.id for server in self.leaving}
        self._inventory = inventory
        self._claimed: Memory = {}
        self._promised: Memory = {}
        self._closed: set[str] = set()
        self._moving: set[str] = set()  # devices on which something comes or goes just now
        self.loading = [server for server in ledger.servers if server.state is ServerState.STARTING]
        for server in ledger.servers:
            if server.state in (ServerState.STARTING, ServerState.STOPPING):
                self._moving.update(self._beside(server.reserved_mb))
        for server in self.loading:
            if server.exclusive:
                self._closed.update(self._beside(server.reserved_mb))

    def place_now(self, variant: Variant) -> Placement | None:
        """Where the variant can start at once, on memory that is free now and promised to nobody."""
        now = less(self.ledger.free(), self._claimed)
        free = lower(now, self.soon())
        shut = self._closed | self._moving if variant.exclusive_start else self._closed
        if shut:
            free = {device: amount for device, amount in free.items() if device not in shut}
        return place(variant, self._inventory, free)

    def place_soon(self, variant: Variant, gone: Iterable[Server] = ()) -> Placement | None:
        """Where the variant can start once all who leave, and `gone`, have gone, and what loads is ready."""
        return place(variant, self._inventory, self.soon(gone))

    def cheapest(self, variant: Variant, candidates: tuple[Candidate, ...]) -> tuple[Server, ...] | None:
        """The cheapest of the candidates whose going lets the variant start soon; None if no going does."""
        needs = tuple((self._inventory.ids(name), amount) for name, amount in variant.needs())
        readings = limits(self.ledger, [one.server for one in candidates], self.leaving, self.taken)
        found = cheapest(Problem(needs, readings, candidates))
        return found if found and self.place_soon(variant, found) else None

    def soon(self, gone: Iterable[Server] = ()) -> Memory:
        """What is free then, and promised to nobody."""
        return less(self.ledger.free([*self.leaving, *gone]), self._claimed, self._promised)

    @property
    def taken(self) -> Memory:
        """What this plan has claimed and promised."""
        return {
            device: self._claimed.get(device, 0) + self._promised.get(device, 0) for device in self._inventory.pools
        }

    def claim(self, variant: Variant, placement: Placement) -> None:
        """A server of the variant starts there."""
        self._charge(self._claimed, placement)
        self._moving.update(self._beside(placement.devices))
        if variant.exclusive_start:
            self._closed.update(self._beside(placement.devices))

    def promise(self, variant: Variant, placement: Placement) -> None:
        """A server of the variant will start there as soon as it can: whoever comes later finds less."""
        self._charge(self._promised, placement)
        if variant.exclusive_start:
            self._closed.update(self._beside(placement.devices))  # or one start after the other could keep it waiting

    def leave(self, server: Server) -> None:
        """The plan has the server go."""
        if server.id not in self._leaving_ids:
            self._leaving_ids.add(server.id)
            self.leaving.append(server)

    def stop(self, server: Server) -> None:
        """The plan has the server go at once."""
        self.leave(server)
        self._moving.update(self._beside(server.reserved_mb))

    def leaves(self, server: Server) -> bool:
        """Whether the server goes, by what was observed or by this plan."""
        return server.id in self._leaving_ids

    def closed(self, server: Server) -> bool:
        """Whether the server must stay because an engine beside it is sizing itself by what is free."""
        return any(device in self._closed for device in server.reserved_mb)

    def on(self, variant: Variant, servers: Iterable[Server]) -> list[str]:
        """The models of those servers that use memory which the variant could have."""
        devices = [key for name in variant.required_devices for key in self._inventory.ids(name)]
        beside = self._beside(devices)
        return sorted({server.model for server in servers if beside & self._beside(server.reserved_mb)})

    def _beside(self, devices: Iterable[str]) -> set[str]:
        """These devices, and those that share their memory."""
        pools = self._inventory.pools
        if not self._inventory.unified:
            return set(devices)
        used = {pools.get(device, device) for device in devices}
        return used | {device for device, pool in pools.items() if pool in used}

    def _charge(self, claims: Memory, placement: Placement) -> None:
        for member in self._beside(placement.devices):
            pool = self._inventory.pools[member]
            amounts = (mb for device, mb in placement.reserved_mb.items() if self._inventory.pools[device] == pool)
            claims[member] = claims.get(member, 0) + sum(amounts)
