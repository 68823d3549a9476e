"""The world as one sidecar sees it (`sidecar.control.machine.Machine`, `Running`, the client), until it dies.

Each asynchronous step may be its last, before or after the step has had its effect. Once dead, nothing that it still
does reaches the world.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from plugin_sdk import Reply
from plugin_sdk.messages import RawHeaders
from sidecar.core.manifest import PortRange
from sidecar.mechanism.journal import Record
from sidecar.mechanism.machine import Families, Job
from sidecar.mechanism.ports import NoPortError
from sidecar.mechanism.readiness import NeverReadyError, Wait
from sidecar.mechanism.runner import Exit, SpawnError
from sidecar.mechanism.upstream import Client
from tests.simulation.world import Group, World

_LEAST_PAUSE_S = 0.05
_MOST_PAUSE_S = 1.0


class VirtualMachine:
    """fuse: after how many more steps it dies; None = not by itself. died: called then."""

    def __init__(self, world: World, died: Callable[[], None]) -> None:
        self.world = world
        self.dead = False
        self.fuse: int | None = None
        self._died = died
        self._taken: set[int] = set()
        self._last_port = 0
        self._writing = asyncio.Lock()

    async def step(self, what: str, takes_s: float = 0.0) -> None:
        """A point at which the sidecar may be killed, or at which a step takes its time."""
        if not self.dead and self.fuse is not None:
            self.fuse -= 1
            if self.fuse < 0:
                self.world.say(f"the sidecar is killed: {what}")
                self.dead = True
                self._died()
        if takes_s and not self.dead:
            await asyncio.sleep(takes_s)
        if self.dead:
            raise asyncio.CancelledError
        self.world.audit.look()

    def latency_s(self) -> float:
        """Mostly none, sometimes a disk that is busy."""
        return self.world.random.random() * 0.2 if self.world.random.random() < 0.2 else 0.0

    async def recorded(self) -> tuple[Record, ...]:
        await self.step("before it reads what is recorded")
        return self.world.journal

    async def record(self, records: Iterable[Record]) -> None:
        records = tuple(records)
        async with self._writing:
            await self.step("before it has written", self.latency_s())
            if self.world.disk_full:
                raise OSError(28, "No space left on device")
            self.world.journal = records
            await self.step("after it has written")

    def take_port(self, allowed: PortRange) -> int:
        size = allowed.last - allowed.first + 1
        for offset in range(1, size + 1):
            port = allowed.first + (self._last_port - allowed.first + offset) % size
            if port not in self._taken and not self._in_use(port):
                self._taken.add(port)
                self._last_port = port
                self.world.audit.port_taken(port)
                return port
        raise NoPortError("every port is taken")

    def hold_port(self, port: int) -> None:
        self._taken.add(port)

    def give_back_port(self, port: int) -> None:
        self._taken.discard(port)

    def _in_use(self, port: int) -> bool:
        ours = any(group.port == port and group.listening for group in self.world.groups.values())
        return ours or port in self.world.listeners

    async def spawn(self, job: Job) -> VirtualRunning:
        await self.step(f"before {job.server} is spawned", self.latency_s())
        if job.argv[0] == "missing":
            raise SpawnError('command not found: "missing" is neither a path nor on PATH')
        _, port, devices, amounts, *_ = job.argv
        declared = dict(zip(devices.split(","), map(int, amounts.split(",")), strict=True)) if devices else {}
        self.world.audit.spawns(job.server, job.model)
        group = self.world.spawn(job.server, job.model, int(port), declared)
        group.reaper = self._alive
        await self.step(f"after {job.server} was spawned")
        return VirtualRunning(self, group.server, group.pid, group.started, group, child=True)

    def _alive(self) -> bool:
        return not self.dead

    def take_over(self, record: Record) -> VirtualRunning | None:
        """As the real one: pid, start time and marker must all say that it is this very server."""
        group = self.world.groups.get(record.id)
        proven = group is not None and group.exit is None and record.pid in group.pids
        if self.dead or not proven or self.world.identity(record.pid) != record.started:
            return None
        return VirtualRunning(self, record.id, record.pid, record.started, group, child=False)

    async def rename_log(self, old: str, new: str) -> None:
        await self.step(f"before it renames the log of {old}")

    async def left_behind(self) -> set[str]:
        await self.step("before it looks for what was left behind")
        return set(self.world.groups)

    async def stop_left_behind(self, server_id: str, grace_s: float) -> None:
        await self.end(server_id, grace_s, kill=False)
        await self.end(server_id, None, kill=True)

    async def families(self, leaders: set[int]) -> Families:
        await self.step("before it looks at processes")
        families: Families = {leader: {} for leader in leaders}
        now = self.world.now
        host = next((one.id for one in self.world.devices.values() if one.host), "")
        for group in self.world.groups.values():
            if group.pid in families:
                families[group.pid] = group.by_pid(host, now) if host in group.peak else dict.fromkeys(group.pids, 0)
        return families

    async def end(self, server_id: str, patience_s: float | None, *, kill: bool) -> None:
        """Signal the server's processes, newcomers too, until there is none or patience is at an end."""
        deadline = None if patience_s is None else self.world.now + patience_s
        signalled: set[tuple[int, int]] = set()
        pause_s = _LEAST_PAUSE_S
        while (group := self.world.groups.get(server_id)) is not None:
            await self.step(f"before it signals {server_id}")
            seen = set(group.pids.items())
            await self.step(f"as it signals {server_id}", 0.1 * self.world.random.random())
            for pid, started in sorted(seen - signalled):
                send(self.world, pid, started, kill=kill)
            signalled |= seen
            left_s = None if deadline is None else deadline - self.world.now
            if left_s is not None and left_s <= 0:
                return
            await asyncio.wait([self.world.news_of(group)], timeout=pause_s)
            pause_s = min(pause_s * 2, _MOST_PAUSE_S)
        await self.step(f"after {server_id} was found gone")


class VirtualRunning:
    """A server's processes, in the hands of one sidecar. child: this sidecar has started it, and must reap it."""

    def __init__(
        self, machine: VirtualMachine, server: str, pid: int, started: int, group: Group | None, *, child: bool
    ) -> None:
        self.pid = pid
        self.started = started
        self.exited: asyncio.Future[Exit] = machine.world.loop.create_future()
        self._machine = machine
        self._server = server
        self._group = group
        self._child = child
        self._watch()

    def _watch(self) -> None:
        if self._group is None or self._machine.dead or self.exited.done():
            return
        if self._group.exit is not None:
            self.exited.set_result(self._group.exit if self._child else Exit(None, "an unknown cause"))
        else:
            self._group.watchers.append(self._watch)

    async def until_ready(self, wait: Wait) -> None:
        world = self._machine.world
        try:
            async with asyncio.timeout(wait.timeout_s):
                while not self.exited.done():
                    if wait.port in world.listeners:
                        raise NeverReadyError("PortTaken", f"another program listens on port {wait.port}")
                    await self._machine.step(f"before it probes {self._server}")
                    if self._group is None or (self._group.listening and await wait.ready()):
                        world.audit.serves(self._server)
                        return
                    if not self.exited.done() and self._group is not None:
                        await world.news_of(self._group)
        except TimeoutError:
            raise NeverReadyError("LoadTimeout", f"not ready within {wait.timeout_s:g} s") from None
        raise NeverReadyError("Exited", f"the server {self.exited.result()} before it was ready")

    async def stop(self, grace_s: float) -> None:
        machine = self._machine
        if machine.world.random.random() < 0.01:
            raise OSError(24, "Too many open files")
        machine.world.audit.stops(self._server)
        await machine.end(self._server, grace_s, kill=False)
        await machine.end(self._server, None, kill=True)
        if self._child:
            machine.world.reaped(self.pid)

    async def reading(self) -> None:
        """Nothing is read here."""

    def let_go(self) -> None:
        """Nothing of it is held here."""

    async def last_lines(self) -> list[str]:
        await self._machine.step(f"before it reads the log of {self._server}")
        return ["boom"]

    async def cap_log(self, model: str, limit_bytes: int) -> None:
        await self._machine.step(f"before it caps the log of {self._server}")


def send(world: World, pid: int, started: int, *, kill: bool) -> None:
    """Signal exactly the process that was seen."""
    if world.identity(pid) == started:
        world.deliver(pid, kill)


class VirtualClient(Client):
    """Probes of servers: ours by port, those of others by URL."""

    def __init__(self, world: World) -> None:
        self._world = world

    def probe(self, base_url: str, headers: RawHeaders = ()) -> VirtualUpstream:  # type: ignore[override] # no HTTP here
        return VirtualUpstream(self._world, base_url)


class VirtualUpstream:
    """What answers at an address."""

    def __init__(self, world: World, base_url: str) -> None:
        self._world = world
        self._base_url = base_url

    async def get(self, path: str) -> Reply:
        healthy = self._world.healthy.get(self._base_url)
        if healthy is None:
            port = int(self._base_url.rpartition(":")[2])
            healthy = any(group.port == port and group.listening for group in self._world.groups.values())
        if not healthy:
            raise OSError(f"{self._base_url} does not answer: connection refused")
        return Reply(200)

    async def post(self, path: str, body: bytes) -> Reply:
        return await self.get(path)
