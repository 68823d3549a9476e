"""Which devices a variant gets. Pure: requirements and free memory in, an assignment or the reasons against it out."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from sidecar.core.ledger import Memory, pool_of
from sidecar.core.manifest import DeviceDeclaration, DeviceMatch, Variant
from sidecar.core.observed import Device


class Placement(msgspec.Struct, frozen=True):
    """devices: ids in the order of required_devices. reserved_mb: device id to MB."""

    devices: tuple[str, ...]
    reserved_mb: dict[str, int]


class Inventory:
    """The devices that there are, and what the manifests call them.

    named: `[devices.*]` name to id. caps: id to MB. A declared name that no device fits, or several, means none, though
    a class may be called the same.
    """

    def __init__(self, devices: tuple[Device, ...], declared: Mapping[str, DeviceDeclaration]) -> None:
        self.devices = devices
        self._by_id = {device.id: device for device in devices}
        self.named: dict[str, str] = {}
        self.caps: dict[str, int] = {}
        for name, declaration in declared.items():
            found = [device for device in devices if _matches(device, declaration.match)]
            if len(found) != 1:
                continue
            key = self.named[name] = found[0].id
            if declaration.memory_mb is not None:
                self.caps[key] = min(declaration.memory_mb, self.caps.get(key, declaration.memory_mb))
        self._unresolved = frozenset(declared) - self.named.keys()
        self._candidates: dict[str, tuple[Device, ...]] = {}
        self._ids: dict[str, tuple[str, ...]] = {}
        readable = {device.id for device in devices if not device.unknown}
        self.pools = {device.id: pool_of(device, readable) for device in devices}
        self.unified = len(set(self.pools.values())) < len(devices)

    def candidates(self, requirement: str) -> tuple[Device, ...]:
        """The devices that a requirement may mean: a declared name, an id, `class:index`, or a whole class."""
        if requirement not in self._candidates:
            self._candidates[requirement] = self._find(requirement)
        return self._candidates[requirement]

    def ids(self, requirement: str) -> tuple[str, ...]:
        """The ids of those devices."""
        if requirement not in self._ids:
            self._ids[requirement] = tuple(device.id for device in self.candidates(requirement))
        return self._ids[requirement]

    def label(self, device_id: str) -> str:
        """What a person calls the device."""
        device = self._by_id.get(device_id)
        return device.label if device else device_id

    def labels(self, device_ids: Iterable[str]) -> str:
        """`nvidia:0, cpu`, or `no device`."""
        return ", ".join(map(self.label, device_ids)) or "no device"

    def memory_of(self, device: Device) -> tuple[Device, ...]:
        """The devices whose readings tell what the device has free: itself, and the one whose memory it shares."""
        shared = self._by_id.get(device.status.shares)
        return (device, shared) if shared else (device,)

    def unknown(self, device: Device) -> str:
        """Why it is not known what the device has free; "" when it is."""
        return next((one.unknown for one in self.memory_of(device) if one.unknown), "")

    def _find(self, requirement: str) -> tuple[Device, ...]:
        if requirement in self._unresolved:
            return ()
        wanted = self.named.get(requirement, requirement)
        exact = tuple(device for device in self.devices if wanted in (device.id, device.label))
        return exact or tuple(device for device in self.devices if device.device_class == requirement)


def place(variant: Variant, inventory: Inventory, free: Memory) -> Placement | None:
    """Give each requirement a device of its own with enough free memory, or none at all.

    Best fit: the largest need chooses first, and takes the fullest device that holds it, so that big holes stay big.
    A choice is revised when a later need has no other place (Kuhn's algorithm for bipartite matching), so an assignment
    is found whenever there is one.
    """
    needs = variant.needs()
    kinds = {need: _options(*need, inventory, free) for need in dict.fromkeys(needs)}
    options = [kinds[need] for need in needs]
    if len(options) == 1 and options[0] and not inventory.unified:
        return Placement((options[0][0],), {options[0][0]: needs[0][1]})
    by_size = sorted(range(len(needs)), key=lambda need: -needs[need][1])
    taken: dict[str, int] = {}
    if not all(_assign(need, options, taken, set()) for need in by_size):
        return None
    placement = _placement(needs, taken)
    if not inventory.unified or _pools_hold(placement, inventory, free):
        return placement
    others = (_placement(needs, one) for one in _assignments(by_size, options))
    return next((one for one in others if _pools_hold(one, inventory, free)), None)


def _options(name: str, amount: int, inventory: Inventory, free: Memory) -> list[str]:
    """The devices that hold the need, the fullest first."""
    fits = [(free[key], key) for key in inventory.ids(name) if free.get(key, -1) >= amount]
    return [key for _, key in sorted(fits)]


def _placement(needs: Sequence[tuple[str, int]], taken: Mapping[str, int]) -> Placement:
    devices = sorted(taken, key=lambda device: taken[device])
    return Placement(tuple(devices), {device: needs[taken[device]][1] for device in devices})


def _pools_hold(placement: Placement, inventory: Inventory, free: Memory) -> bool:
    """Whether devices that share one memory hold what is placed on all of them together."""
    wanted: Memory = {}
    for device, amount in placement.reserved_mb.items():
        pool = inventory.pools[device]
        wanted[pool] = wanted.get(pool, 0) + amount
    return all(amount <= free.get(pool, 0) for pool, amount in wanted.items())


def _assignments(needs: list[int], options: list[list[str]]) -> Iterator[dict[str, int]]:
    """Every way to give each need a device of its own. Many, but a machine with shared memory has few devices."""
    if not needs:
        yield {}
        return
    for device in options[needs[0]]:
        for others in _assignments(needs[1:], options):
            if device not in others:
                yield {device: needs[0], **others}


def missing(variant: Variant, inventory: Inventory) -> str:
    """The first requirement that no readable device could meet, and why; "" when there are devices for all of them."""
    for name in variant.required_devices:
        candidates = inventory.candidates(name)
        unreadable = [device for device in candidates if inventory.unknown(device)]
        if candidates and len(unreadable) == len(candidates):
            return f"{unreadable[0].label} cannot be read: {inventory.unknown(unreadable[0])}"
        distinct = sum(1 for other in variant.required_devices if other == name)
        if len(candidates) - len(unreadable) < distinct:
            return f'no device "{name}" is online' if not candidates else f"{distinct} {name} devices are needed"
    return ""


def _assign(need: int, options: list[list[str]], taken: dict[str, int], tried: set[str]) -> bool:
    for device in options[need]:
        if device in tried:
            continue
        tried.add(device)
        if device not in taken or _assign(taken[device], options, taken, tried):
            taken[device] = need
            return True
    return False


def _matches(device: Device, match: DeviceMatch) -> bool:
    checks: Iterable[tuple[object, object]] = (
        (match.device_class, device.device_class),
        (match.uuid, device.id),
        (match.index, device.status.index),
    )
    exact = all(wanted is None or wanted == actual for wanted, actual in checks)
    return exact and (match.name is None or fnmatch.fnmatchcase(device.status.name, match.name))
