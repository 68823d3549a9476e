"""One server of ours, from its reservation to the confirmed end of its process group."""

from __future__ import annotations

import asyncio

from sidecar.control.clock import Clock
from sidecar.control.machine import Running
from sidecar.core.manifest import Variant
from sidecar.core.observed import Server, ServerState
from sidecar.core.plan import Start
from sidecar.mechanism.journal import Record
from sidecar.mechanism.loading import Reading


class LiveServer:
    """A server. Only the fleet changes its state."""

    def __init__(self, server_id: str, start: Start, variant: Variant, clock: Clock) -> None:
        self.id = server_id
        self.model = start.model
        self.variant = variant
        self.fingerprint = variant.fingerprint()
        self.devices = start.devices
        self.reserved_mb = start.reserved_mb
        self.observed_mb: dict[str, int] = {}
        self.pids: frozenset[int] = frozenset()  # its living processes, as last seen
        self.state = ServerState.STARTING
        self.in_flight = 0
        self.port = 0
        self.process: Running | None = None
        self.reading: Reading | None = None  # while it loads, how far it has come with that
        self.leave = asyncio.Event()  # set: stop it, whatever state it is in
        self.left_because = ""
        self.last_words = ""  # how it ended, when it ended by itself, with the last lines of its output
        self.told = asyncio.Event()  # set when there are last words
        self.idle = asyncio.Event()  # set while nothing is in flight
        self.idle.set()
        self.kept = False  # it outlives this sidecar
        self.returns = False  # it is stopped only to be started anew, as it is declared now
        self.ended = asyncio.Event()  # set when its process group is gone
        self.created_unix = clock.unix()
        self.ready_unix = 0.0
        self.since = self.last_used = clock.monotonic()

    @property
    def base_url(self) -> str:
        """Where the server listens."""
        return f"http://127.0.0.1:{self.port}"

    def record(self) -> Record:
        """The server as it is written down."""
        process = self.process
        return Record(
            id=self.id,
            model=self.model,
            variant=self.variant.name,
            fingerprint=self.fingerprint,
            devices=self.devices,
            reserved_mb=self.reserved_mb,
            port=self.port,
            pid=process.pid if process else 0,
            started=process.started if process else 0,
            created_unix=self.created_unix,
        )

    def view(self) -> Server:
        """The server as the planner sees it."""
        return Server(
            id=self.id,
            model=self.model,
            variant=self.variant.name,
            fingerprint=self.fingerprint,
            state=self.state,
            reserved_mb=self.reserved_mb,
            observed_mb=self.observed_mb,
            in_flight=self.in_flight,
            since=self.since,
            last_used=self.last_used,
            pids=self.pids,
            exclusive=self.variant.exclusive_start,
            never_ready=self.ready_unix == 0.0,
        )
