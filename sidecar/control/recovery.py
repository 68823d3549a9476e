"""What a sidecar does first: take over the servers of the one before, and have the rest of what it left stopped."""

from __future__ import annotations

import logging

from plugin_sdk import Duration
from sidecar.control.live import LiveServer
from sidecar.control.machine import Machine
from sidecar.control.reconciler import Reconciler
from sidecar.control.servers import Servers
from sidecar.core.manifest import Declaration, Variant
from sidecar.core.observed import Device
from sidecar.core.plan import Start
from sidecar.core.renames import renamed_model
from sidecar.mechanism.journal import Record

log = logging.getLogger(__name__)

STOP_S = Duration(10)  # after TERM; what was declared for it may not be known any more


class Recovery:
    """Takes over servers that still are what is declared."""

    def __init__(self, machine: Machine, servers: Servers, reconciler: Reconciler) -> None:
        self._machine = machine
        self._servers = servers
        self._reconciler = reconciler

    async def run(self, declaration: Declaration, devices: tuple[Device, ...]) -> None:
        """Everything that the sidecar before has left is a server of ours, with its reservation, when this returns.

        What is not to go on may take its time to end: that holds up nobody but the model that it belongs to.
        """
        fleet = self._servers.fleet
        records = {record.id: record for record in await self._machine.recorded()}
        for record in records.values():
            server = self._recorded(record, declaration)
            if server is not None and self._servers.take_over(server, record):
                log.info("%s: taken over (pid %d, port %d)", server.id, record.pid, record.port)
                self._servers.begin(server, self._reconciler.order(server, devices), "from the sidecar before")
        for server_id in sorted(await self._machine.left_behind() - fleet.servers.keys()):
            log.warning("%s: left behind by another sidecar, and not what is declared: stopped", server_id)
            self._servers.clear_away(self._leftover(server_id, records.get(server_id)))

    def _leftover(self, server_id: str, record: Record | None) -> LiveServer:
        """A server that only has to be stopped. What it reserved without being recorded shows as memory of others."""
        fleet = self._servers.fleet
        model = record.model if record else server_id.rpartition("-")[0]
        start = Start(
            model=server_id if fleet.server_of(model) else model,  # one server to a model
            variant=record.variant if record else "",
            devices=record.devices if record else (),
            reserved_mb=record.reserved_mb if record else {},
        )
        server = LiveServer(server_id, start, Variant(name=start.variant, stop_timeout=STOP_S), fleet.clock)
        server.port = record.port if record else 0
        return server

    def _recorded(self, record: Record, declaration: Declaration) -> LiveServer | None:
        """The recorded server, if it would have to be started just so today, under whatever name."""
        fleet = self._servers.fleet
        name: str | None = record.model
        if record.model not in declaration.models:
            name = renamed_model(record.fingerprint, declaration, {server.model for server in fleet.servers.values()})
        if name is None or fleet.server_of(name) is not None:
            return None
        model = declaration.models.get(name)
        variants = model.variants if model is not None else ()
        variant = next((one for one in variants if one.fingerprint() == record.fingerprint), None)
        if variant is None or record.pid == 0:
            return None
        start = Start(model=name, variant=variant.name, devices=record.devices, reserved_mb=record.reserved_mb)
        return LiveServer(record.id, start, variant, fleet.clock)
