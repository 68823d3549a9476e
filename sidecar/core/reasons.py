"""Says why: what a variant lacks, who holds it, what would help. For conditions, refusals and `sidecar explain`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sidecar.core.ledger import Memory
from sidecar.core.manifest import Model, Variant
from sidecar.core.observed import Device, Failure, Measured, Server
from sidecar.core.placement import Inventory, missing, place
from sidecar.core.room import Room
from sidecar.core.suggest import suggestion
from sidecar.core.turns import is_pinned

_NAMED = 4  # devices of a class that are told one by one


class Reasons:
    """Explains one plan's view of the machine."""

    def __init__(self, inventory: Inventory, room: Room, models: Mapping[str, Model]) -> None:
        self._inventory = inventory
        self._room = room
        self._models = models
        self._most: dict[str, int] = {}

    def stale(self, variants: Iterable[Variant]) -> Device | None:
        """A device that one of the variants could use and that has to be read again first."""
        candidates = (one for variant in variants for one in self._candidates(variant))
        memories = (memory for one in candidates for memory in self._inventory.memory_of(one))
        return next((memory for memory in memories if memory.stale), None)

    def hopeless(self, variants: list[Variant]) -> str:
        """Why waiting is no use, as a reason: nothing that could be moved would make room. "" if it would."""
        movable = [server for server in self._room.ledger.servers if not is_pinned(server, self._models)]
        gone = [*self._room.leaving, *(server for server in movable if not self._room.leaves(server))]
        room = self._room.ledger.free(gone)
        if any(place(variant, self._inventory, room) for variant in variants):
            return ""
        if all(missing(variant, self._inventory) for variant in variants):
            return "DeviceUnavailable"
        if not self.fits_machine(variants):
            return "Unplaceable"
        unmeasured = [one for one in self._room.ledger.servers if one.may_grow and not one.measured]
        if any(self._room.on(variant, unmeasured) for variant in variants):
            return ""  # what they have taken, and what they have yet to take, will be known when they are ready
        return "InsufficientMemory"

    def fits_machine(self, variants: Iterable[Variant]) -> bool:
        """Whether the machine could hold one of the variants if nothing else were on it."""
        return any(map(self._fits_machine, variants))

    def _fits_machine(self, variant: Variant) -> bool:
        needs = variant.needs()
        if any(amount > self._largest(name) for name, amount in needs):
            return False  # known without a search, as it is for the many models with one need
        return len(needs) == 1 or place(variant, self._inventory, self._room.ledger.usable) is not None

    def _largest(self, requirement: str) -> int:
        """The most that one of the devices may hold, and that the memory which it uses may."""
        if requirement not in self._most:
            usable, pools = self._room.ledger.usable, self._inventory.pools
            holds = (min(usable[key], usable[pools[key]]) for key in self._inventory.ids(requirement) if key in usable)
            self._most[requirement] = max(holds, default=-1)
        return self._most[requirement]

    def shortage(self, variant: Variant) -> str:
        """What a variant needs and does not find just now."""
        if lacking := missing(variant, self._inventory):
            return f"variant {variant.name}: {lacking}"
        free = self._room.soon()
        needs = variant.needs()
        least = min(amount for _, amount in needs)
        devices = list(dict.fromkeys(self._candidates(variant)))
        lines = [self._room_on(device, free, least) for device in devices[:_NAMED]]
        if len(devices) > _NAMED:
            lines.append(f"and {len(devices) - _NAMED} more")
        wanted = ", ".join(f"{amount} MB on {requirement}" for requirement, amount in needs)
        return f"variant {variant.name} needs {wanted}: {'; '.join(lines)}"

    def remedy(self, variant: Variant) -> str:
        """What would help, in an imperative; "" when nothing is lacking. `free 2,100 MB on nvidia:0; held by ...`."""
        if missing(variant, self._inventory):
            return f"bring {', '.join(sorted(set(variant.required_devices)))} online"
        if not self.fits_machine([variant]):
            most = max((self._room.ledger.usable.get(device.id, 0) for device in self._candidates(variant)), default=0)
            return f"lower memory_mb (the largest device has {most:,} usable MB), or require another device"
        free = self._room.soon()
        if place(variant, self._inventory, free):
            return ""
        return self._lack(sorted(variant.needs(), key=lambda need: -need[1]), free)

    def _lack(self, needs: Sequence[tuple[str, int]], free: Memory) -> str:
        """What to do for the first of the needs for which there is no place, once those before it have theirs."""
        requirement, amount = needs[0]
        candidates = [one for one in self._inventory.candidates(requirement) if one.id in free]
        best = max(candidates, key=lambda device: free[device.id], default=None)
        if best is None:
            return f"wait until {requirement} has been read again"
        if free[best.id] < amount:
            return f"free {amount - max(0, free[best.id]):,} MB on {best.label}{self._held(best)}"
        return self._lack(needs[1:], self._without(free, best, amount))

    def _without(self, free: Memory, device: Device, amount: int) -> Memory:
        """What is free when the device, which is then taken, and those that share its memory have `amount` less."""
        pools = self._inventory.pools
        return {
            key: mb - amount if pools[key] == pools[device.id] else mb for key, mb in free.items() if key != device.id
        }

    def _held(self, device: Device) -> str:
        holders = self._room.ledger.holders(device.id)
        return f"; held by {holders}" if holders else ""

    def _candidates(self, variant: Variant) -> list[Device]:
        return [device for name in variant.required_devices for device in self._inventory.candidates(name)]

    def _room_on(self, device: Device, free: Memory, needed: int) -> str:
        if unknown := self._inventory.unknown(device):
            return f"{device.label} cannot be read ({unknown})"
        if device.id not in free:
            return f"{device.label} has to be read again"
        holders = self._room.ledger.holders(device.id)
        held = f" ({holders})" if holders else ""
        amount = max(0, free[device.id])
        lacks = f", {needed - amount} MB too little" if amount < needed else ""
        return f"{device.label} has {amount} of {self._room.ledger.usable[device.id]} usable MB free{lacks}{held}"


def failed(failure: Failure, now: float) -> str:
    """`variant one-gpu failed (LoadTimeout), tried again in 12 s`."""
    again = f"tried again in {failure.retry_at - now:.0f} s" if failure.retry_at < float("inf") else "given up"
    return f"variant {failure.variant} failed ({failure.reason}), {again}"


def too_low(measured: Measured) -> str:
    """Where a variant has taken more than it declares, and what it should declare; "" if it has not."""
    suggested = suggestion(measured)
    over = [
        f"{declared} MB on {requirement}, has taken {peak} MB, should say {suggested[requirement]}"
        for requirement, declared in measured.declared_mb.items()
        if (peak := measured.peak_mb.get(requirement, 0)) > declared
    ]
    return f"variant {measured.variant} declares {'; '.join(over)} (sidecar calibrate --write)" if over else ""


def listed_models(servers: Iterable[Server]) -> str:
    """`a (2 in flight), b`."""
    return ", ".join(
        f"{server.model} ({server.in_flight} in flight)" if server.in_flight else server.model for server in servers
    )
