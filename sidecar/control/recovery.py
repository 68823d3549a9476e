"""What a sidecar does first: take over the servers of the one before, and clear away what else it left."""

from __future__ import annotations

import asyncio
import logging

from sidecar.control.changes import renamed_model
from sidecar.control.live import LiveServer
from sidecar.control.machine import Machine
from sidecar.control.reconciler import Reconciler
from sidecar.control.servers import Servers
from sidecar.core.manifest import Declaration
from sidecar.core.observed import Device
from sidecar.core.plan import Start
from sidecar.mechanism.journal import Record

log = logging.getLogger(__name__)

ORPHAN_GRACE_S = 10.0


class Recovery:
    """Takes over servers that still are what is declared."""

    def __init__(self, machine: Machine, servers: Servers, reconciler: Reconciler) -> None:
        self._machine = machine
        self._servers = servers
        self._reconciler = reconciler

    async def run(self, declaration: Declaration, devices: tuple[Device, ...]) -> None:
        """Until nothing of the sidecar before is left that is not ours now."""
        fleet = self._servers.fleet
        for record in await self._machine.recorded():
            server = self._recorded(record, declaration)
            if server is not None and self._servers.take_over(server, record):
                log.info("%s: taken over (pid %d, port %d)", server.id, record.pid, record.port)
                self._servers.begin(server, self._reconciler.order(server, devices), "from the sidecar before")
        stops = []
        for server_id in sorted(await self._machine.left_behind() - fleet.servers.keys()):
            log.warning("%s: left behind by another sidecar, and not what is declared: stopped", server_id)
            stops.append(self._machine.stop_left_behind(server_id, ORPHAN_GRACE_S))
        await asyncio.gather(*stops)

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
