"""A machine as a file: what `sidecar devices --json` writes, and `plan --against` and `diff --against` read elsewhere.

It holds what the planner sees of a machine (devices, who holds their memory, servers), and the labels of the node, and
none of what comes and goes in a moment, such as requests. Its form changes only with `version`.
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import Any

import msgspec

from plugin_sdk import DeviceStatus
from sidecar import __version__
from sidecar.control.controller import Controller
from sidecar.core.manifest import Declaration
from sidecar.core.nodes import Node
from sidecar.core.observed import Device, ExternalServer, Measured, Observed, Server
from sidecar.core.whatif import at_ease
from sidecar.surfaces import report
from sidecar.surfaces.report import DeviceReport

KIND = "sidecar/devices"
VERSION = 1
MOST_BYTES = 32 * 2**20
_HOW = "write one with `sidecar devices --json > devices.json` on the machine that is meant"


class SnapshotError(Exception):
    """The file is none, or none that this version reads. The text says which file, and what to do."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One machine at one moment.

    running: whether a sidecar ran there, which has told the rest; revision: of its manifests. now: its clock, in
    seconds, by which times of servers are told.
    """

    kind: str
    version: int
    taken: str
    labels: dict[str, str]
    devices: tuple[DeviceReport, ...]
    sidecar: str = ""
    running: bool = False
    revision: str = ""
    now: float = 0.0
    servers: tuple[Server, ...] = ()
    externals: tuple[ExternalServer, ...] = ()
    measured: tuple[Measured, ...] = ()
    auto_started: frozenset[str] = frozenset()
    pinned: frozenset[str] = frozenset()
    drained: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """What people call the machine."""
        return self.labels.get("hostname") or "a machine without a hostname"

    def observed(self) -> Observed:
        """What the planner sees of it, when the moment has passed."""
        seen = Observed(
            devices=tuple(_device(one) for one in self.devices),
            servers=self.servers,
            externals=self.externals,
            measured=self.measured,
            auto_started=self.auto_started,
            pinned=self.pinned,
            drained=self.drained,
        )
        return at_ease(seen, self.now)


async def running(controller: Controller) -> Snapshot:
    """Of the machine on which this sidecar runs."""
    seen = await controller.reconciler.observe()
    declared = controller.declaration
    return msgspec.structs.replace(
        offline(seen.devices, controller.node, declared, seen.servers),
        running=True,
        revision=declared.revision,
        now=controller.clock.monotonic(),
        servers=seen.servers,
        externals=seen.externals,
        measured=seen.measured,
        auto_started=seen.auto_started,
        pinned=seen.pinned,
        drained=seen.drained,
    )


def offline(
    devices: tuple[Device, ...], node: Node, declared: Declaration | None = None, servers: tuple[Server, ...] = ()
) -> Snapshot:
    """Of a machine on which none runs."""
    return Snapshot(
        kind=KIND,
        version=VERSION,
        taken=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        sidecar=__version__,
        labels=node.labels or {},
        devices=report.devices(devices, servers, declared or Declaration()),
    )


def read(path: Path) -> Snapshot:
    """The snapshot in a file; `-` is standard input. Raises SnapshotError. Blocks."""
    try:
        with sys.stdin.buffer if str(path) == "-" else path.open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
    except OSError as error:
        raise SnapshotError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > MOST_BYTES:
        raise SnapshotError(f"{path}: is larger than {MOST_BYTES // 2**20} MiB, which no snapshot is; {_HOW}")
    try:
        found = _converted(msgspec.json.decode(content))
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise SnapshotError(f"{path}: is no snapshot of a machine: {error}; {_HOW}") from error
    return found


def _converted(raw: Any) -> Snapshot:
    """Raises ValueError."""
    if not isinstance(raw, dict) or raw.get("kind") != KIND:
        raise ValueError(f'expected a table with kind = "{KIND}"')
    if raw.get("version") != VERSION:
        raise ValueError(f"it is of version {raw.get('version')}, and sidecar {__version__} reads version {VERSION}")
    found = msgspec.convert(raw, Snapshot)  # its ValidationError is a ValueError
    ids = [device.status.id for device in found.devices]
    if len(set(ids)) != len(ids) or not all(ids):
        raise ValueError("expected an id for each device, and no id twice")
    for device in found.devices:
        _check(device.label, device.status)
    return found


def _check(label: str, status: DeviceStatus) -> None:
    if not status.problem and not 0 <= status.free_mb <= status.total_mb:
        raise ValueError(f"{label}: expected 0 <= free_mb <= total_mb, got {status.free_mb} of {status.total_mb}")


def _device(told: DeviceReport) -> Device:
    return Device(device_class=told.device_class, status=told.status, host_memory=told.host_memory)
