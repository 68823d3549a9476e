"""The machine that the sidecar runs on: processes, ports, logs and what is written down, for the control floor to use.

It decides nothing. `sidecar.control.machine` says what is asked of it; a simulation answers in its place.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec

from sidecar.core.manifest import PortRange
from sidecar.mechanism import modelfiles, procfs, readiness, runner
from sidecar.mechanism.calls import Threads
from sidecar.mechanism.family import MARKER, Family, members
from sidecar.mechanism.journal import Journal, Record
from sidecar.mechanism.loading import Loading, Reading
from sidecar.mechanism.lock import StateDir
from sidecar.mechanism.ports import Ports
from sidecar.mechanism.readiness import Wait
from sidecar.mechanism.redaction import Redactor
from sidecar.mechanism.runner import Exit, Launch, ServerProcess, child_environment, is_server, stop_marked
from sidecar.mechanism.serverlog import ServerLog

LOOKS = 2  # at servers that load, at a time
Families = dict[int, dict[int, int]]  # leader's pid to its living processes, with their RAM in MB


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What to run for a server. env: what it gets beside the sidecar's own environment."""

    server: str
    model: str
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: Path


class LocalServer:
    """A server's processes on this machine. pid and started identify the leader; exited resolves when it has ended."""

    def __init__(self, process: ServerProcess, threads: Threads, loading: Loading | None) -> None:
        self.pid = process.pid
        self.started = process.started
        self.exited: asyncio.Future[Exit] = process.exited
        self._process = process
        self._threads = threads
        self._loading = loading

    async def until_ready(self, wait: Wait) -> None:
        """Return once it serves. Raises NeverReadyError."""
        await readiness.until_ready(self._process, wait)

    async def stop(self, grace_s: float) -> None:
        """TERM, after `grace_s` KILL; returns when the whole group is gone. Raises OSError."""
        await self._process.stop(grace_s)

    def let_go(self) -> None:
        """Watch it no more, and leave it running."""
        self._process.let_go()

    async def reading(self) -> Reading | None:
        """What it has read so far; None if it was started by another sidecar. A kernel that hangs costs a thread."""
        loading, process = self._loading, self._process
        if loading is None:
            return None
        return await asyncio.wrap_future(self._threads.submit(lambda: loading.look(process.family())))

    async def last_lines(self) -> list[str]:
        """The end of its output."""
        return await asyncio.to_thread(self._process.log.tail)

    async def cap_log(self, model: str, limit_bytes: int) -> None:
        """Have its output under the model's name, and shorten it if it has outgrown the limit. Raises OSError."""
        await asyncio.to_thread(self._cap_log, model, limit_bytes)

    def _cap_log(self, model: str, limit_bytes: int) -> None:
        if self._process.log.name != model:
            self._process.log = self._process.log.renamed(model)
        self._process.log.look(limit_bytes)


class LocalMachine:
    """This machine, with a state directory of this sidecar's own."""

    def __init__(self, state: StateDir) -> None:
        self._logs = state.logs
        self._journal = Journal(state.path)
        self._ports = Ports()
        self._found: dict[str, Record] = {}  # what the sidecar before has written down
        self._looks = Threads("loading", most=LOOKS)
        self._running: WeakValueDictionary[int, ServerProcess] = WeakValueDictionary()  # by pid

    async def recorded(self) -> tuple[Record, ...]:
        """The servers that the sidecar before has written down."""
        records = await asyncio.to_thread(self._journal.read)
        self._found = {record.id: record for record in records if record.pid}
        return records

    async def record(self, records: Iterable[Record]) -> None:
        """Write down the servers that there are, in place of those before; on disk when it returns. Raises OSError."""
        await self._journal.write(records)

    def take_port(self, allowed: PortRange) -> int:
        """A port for a server, on which nothing listens. Raises NoPortError."""
        return self._ports.take(allowed)

    def hold_port(self, port: int) -> None:
        """A server that was taken over has the port already."""
        self._ports.hold(port)

    def give_back_port(self, port: int) -> None:
        """The server on the port is gone."""
        self._ports.give_back(port)

    async def spawn(self, job: Job) -> LocalServer:
        """Start a server. Raises SpawnError."""
        environment = child_environment(os.environ, job.env, self._marker(job.server))
        launch = Launch(
            argv=job.argv,
            env=environment,
            cwd=job.cwd.expanduser(),
            marker=self._marker(job.server),
            log=ServerLog(self._logs, job.model, Redactor(environment)),
        )
        loading = Loading(partial(modelfiles.named, job.argv, launch.cwd, launch.env))
        return self._watched(await runner.spawn(launch), loading)

    def take_over(self, record: Record) -> LocalServer | None:
        """The recorded server if it still runs and is proven to be the one, else None."""
        process = runner.take_over(record.pid, record.started, self._marker(record.id), self._log_of(record))
        return None if process is None else self._watched(process)

    async def rename_log(self, old: str, new: str) -> None:
        """A model without a server is called otherwise now, and so is its log. Raises OSError."""
        await asyncio.to_thread(ServerLog(self._logs, old).renamed, new)

    async def left_behind(self) -> set[str]:
        """The ids of all servers of this sidecar, and of those before it, that have living processes."""
        return await asyncio.to_thread(self._left_behind)

    async def stop_left_behind(self, server_id: str, grace_s: float) -> None:
        """Stop whatever carries the server's mark, and the recorded process with all its family if it still runs."""
        record = self._found.get(server_id)
        leader = None
        if record is not None and await asyncio.to_thread(self._runs, record):
            leader = (record.pid, record.started)
        await stop_marked(self._marker(server_id), grace_s, leader)

    async def families(self, leaders: set[int]) -> Families:
        """Who belongs to each leader, in one look at all processes."""
        kin = {pid: process.kin for pid, process in list(self._running.items()) if pid in leaders}
        return {leader: {} for leader in leaders} | await asyncio.to_thread(_memory, kin)

    def _watched(self, process: ServerProcess, loading: Loading | None = None) -> LocalServer:
        self._running[process.pid] = process
        return LocalServer(process, self._looks, loading)

    def _log_of(self, record: Record) -> ServerLog:
        """The files that a recorded server writes, as far as can be told: its model may have got another name since."""
        names = (record.model, record.id.rpartition("-")[0])
        logs = [ServerLog(self._logs, name, Redactor(os.environ)) for name in names]
        return next((one for one in logs if one.is_written_by(record.pid)), logs[0])

    def _left_behind(self) -> set[str]:
        marked = procfs.marked(f"{MARKER}={self._marker('')}").keys()
        return {*marked, *(record.id for record in self._found.values() if self._runs(record))}

    def _runs(self, record: Record) -> bool:
        return is_server(record.pid, record.started, self._marker(record.id))

    def _marker(self, server_id: str) -> str:
        """What the processes of a server carry: whose they are, and which they are."""
        return f"{self._journal.sidecar_id}:{server_id}"


def _memory(kin: dict[int, Family]) -> Families:
    found = members(list(kin.values()))
    return {
        leader: {process.pid: procfs.private_mb(process.pid) for process in family}
        for leader, family in zip(kin, found, strict=True)
    }
