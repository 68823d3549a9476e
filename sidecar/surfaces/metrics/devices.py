"""Metrics of devices: who holds their memory, and how they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from sidecar.control.controller import Controller
from sidecar.core.ledger import Ledger
from sidecar.core.observed import Device, Server
from sidecar.core.placement import Inventory
from sidecar.mechanism.metrics import Family, Point, gauge, info

MB = 2**20

_DEVICE = "sidecar.device"

INFO = info("sidecar.device", "The devices that there are.", (_DEVICE, "sidecar.class", "sidecar.id", "sidecar.name"))
UP = gauge("sidecar.device.up", "", "Whether the device can be read.", (_DEVICE,))
READABLE = gauge(
    "sidecar.device_plugin.up",
    "",
    "Whether the last probe of a device plugin went well; a plugin may find any number of devices.",
    ("sidecar.plugin",),
)
SIZE = gauge("sidecar.device.memory.size", "By", "Memory of the device.", (_DEVICE,))
USABLE = gauge(
    "sidecar.device.memory.usable",
    "By",
    "What servers may reserve of it in all, after headroom_mb and the cap of [devices.NAME].",
    (_DEVICE,),
)
RESERVED = gauge(
    "sidecar.device.memory.reserved",
    "By",
    "What is reserved for our servers, whether they take it yet or not.",
    (_DEVICE,),
)
USED = gauge(
    "sidecar.device.memory.usage",
    "By",
    "Who holds it now: our servers (ours), others (foreign), nobody (free). Foreign is left out where the use of"
    " one of ours is not known.",
    (_DEVICE, "sidecar.holder"),
)
BUSY = gauge("sidecar.device.utilization", "1", "How busy it is, 0 to 1.", (_DEVICE,))
TEMPERATURE = gauge("sidecar.device.temperature", "Cel", "Its temperature.", (_DEVICE,))
POWER = gauge("sidecar.device.power", "W", "What it draws.", (_DEVICE,))
METRICS = (INFO, UP, READABLE, SIZE, USABLE, RESERVED, USED, BUSY, TEMPERATURE, POWER)


def families(controller: Controller) -> Iterator[Family]:
    """As they were when they were last read."""
    found = controller.devices.devices
    names = names_of(found)
    readable = [device for device in found if not device.unknown]
    servers = tuple(server.view() for server in controller.fleet.servers.values())
    declared = controller.declaration
    ledger = Ledger(found, servers, Inventory(found, declared.devices).caps, declared.settings.headroom_mb)
    yield Family(INFO, [Point((names[one.id], one.device_class, one.id, one.status.name), 1) for one in found])
    yield Family(UP, [Point((names[device.id],), int(not device.unknown)) for device in found])
    yield Family(READABLE, [Point((name,), int(well)) for name, well in controller.devices.plugins().items()])
    yield Family(SIZE, [Point((names[device.id],), device.status.total_mb * MB) for device in readable])
    yield Family(USABLE, [Point((names[device.id],), ledger.usable[device.id] * MB) for device in readable])
    yield Family(RESERVED, [Point((names[one.id],), _sum(servers, one.id) * MB) for one in readable])
    yield Family(USED, [point for device in readable for point in _holders(names[device.id], device.id, ledger)])
    yield Family(BUSY, _known(readable, names, lambda device: device.status.utilisation_pct, 0.01))
    yield Family(TEMPERATURE, _known(readable, names, lambda device: device.status.temperature_c))
    yield Family(POWER, _known(readable, names, lambda device: device.status.power_w))


def names_of(found: Iterable[Device]) -> dict[str, str]:
    """By id, what metrics call the devices: as everything else does, if that is enough to tell them apart."""
    devices = tuple(found)
    taken = Counter(device.label for device in devices)
    return {one.id: one.label if taken[one.label] == 1 else f"{one.label} {one.id}" for one in devices}


def _holders(name: str, device: str, ledger: Ledger) -> Iterator[Point]:
    ours = sum(server.observed_mb.get(device, 0) for server in ledger.servers)
    yield Point((name, "ours"), ours * MB)
    yield Point((name, "free"), ledger.devices[device].status.free_mb * MB)
    foreign = ledger.foreign_mb(device)
    if foreign is not None:
        yield Point((name, "foreign"), foreign * MB)


def _sum(servers: Iterable[Server], device: str) -> int:
    return sum(server.reserved_mb.get(device, 0) for server in servers)


def _known(
    found: list[Device], names: dict[str, str], read: Callable[[Device], float | None], factor: float = 1.0
) -> list[Point]:
    values = [(names[device.id], read(device)) for device in found]
    return [Point((name,), value * factor) for name, value in values if value is not None]
