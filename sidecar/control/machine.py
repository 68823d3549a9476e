"""What the control floor asks of the world outside it: the machine, and the place that manifests come from.

Every reach for the operating system goes through here. The real ones are `sidecar.mechanism.machine.LocalMachine` and
`sidecar.mechanism.manifests.Manifests`; the simulation in `tests/simulation` has its own, on a clock of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from random import Random, SystemRandom
from typing import Protocol

import msgspec
from opentelemetry.trace import Tracer

from sidecar.control.clock import Clock, Timing
from sidecar.core.manifest import Declaration, PortRange
from sidecar.core.nodes import EVERY_NODE, Node
from sidecar.mechanism.journal import Record
from sidecar.mechanism.loader import Loaded
from sidecar.mechanism.loading import Reading
from sidecar.mechanism.machine import Families, Job
from sidecar.mechanism.readiness import Wait
from sidecar.mechanism.redaction import NOTHING, Redactor
from sidecar.mechanism.runner import Exit
from sidecar.mechanism.upstream import Client


class Running(Protocol):
    """A server's processes. pid and started (clock ticks since boot) identify the leader.

    exited: resolves the moment that the leader ends, whether or not others of its group live on.
    """

    @property
    def pid(self) -> int: ...

    @property
    def started(self) -> int: ...

    @property
    def exited(self) -> asyncio.Future[Exit]: ...

    async def until_ready(self, wait: Wait) -> None:
        """Return once it serves. Raises NeverReadyError."""

    async def stop(self, grace_s: float) -> None:
        """TERM, after `grace_s` KILL; returns when the whole group is gone, not before. Raises OSError."""

    def let_go(self) -> None:
        """Watch it no more, and leave it running."""

    async def reading(self) -> Reading | None:
        """How far it has come with reading its model; None if that is not known."""

    async def last_lines(self) -> list[str]:
        """The end of its output."""

    async def cap_log(self, model: str, limit_bytes: int) -> None:
        """Have its output under the model's name, and shorten it if it has outgrown the limit. Raises OSError."""


class Machine(Protocol):
    """Where servers run, and where it is written down which there are."""

    async def recorded(self) -> tuple[Record, ...]:
        """The servers that the sidecar before has written down."""

    async def record(self, records: Iterable[Record]) -> None:
        """Write down the servers that there are, in place of those before; on disk when it returns. Raises OSError."""

    def take_port(self, allowed: PortRange) -> int:
        """A port for a server, on which nothing listens. Raises NoPortError."""

    def hold_port(self, port: int) -> None:
        """A server that was taken over has the port already."""

    def give_back_port(self, port: int) -> None:
        """The server on the port is gone."""

    async def spawn(self, job: Job) -> Running:
        """Start a server. Raises SpawnError."""

    def take_over(self, record: Record) -> Running | None:
        """The recorded server if it still runs and is proven to be the one, else None."""

    async def rename_log(self, old: str, new: str) -> None:
        """A model without a server is called otherwise now, and so is its log. Raises OSError."""

    async def left_behind(self) -> set[str]:
        """The ids of all servers of this sidecar, and of those before it, that have living processes."""

    async def stop_left_behind(self, server_id: str, grace_s: float) -> None:
        """Stop whatever carries the server's mark."""

    async def families(self, leaders: set[int]) -> Families:
        """Who belongs to each leader: pids, with the RAM in MB that is theirs alone."""


class Source(Protocol):
    """Where revisions of the manifests come from."""

    async def changed(self, look_now: asyncio.Event) -> None:
        """Wait until it is worth looking; `look_now` is set when somebody knows that it is."""

    async def read(self, before: Declaration, *, anew: bool = False) -> Loaded | None:
        """The next revision, whole, if there is one; with `anew`, also if nothing seems to have changed.

        before: what is in force. Raises SourceError.
        """

    async def close(self) -> None:
        """Nobody will ask any more."""


class Outside(msgspec.Struct, frozen=True, kw_only=True):
    """All that the control floor is handed. random: for ids, and for waiting times that should not be in step.

    state: the folder for events and measurements; None = they are held in memory alone. node: this machine's labels.
    hide: what nobody is shown of servers' output.
    """

    machine: Machine
    source: Source
    client: Client
    tracer: Tracer
    node: Node = EVERY_NODE
    state: Path | None = None
    hide: Redactor = NOTHING
    clock: Clock = Clock()
    timing: Timing = Timing()
    random: Random = msgspec.field(default_factory=SystemRandom)
