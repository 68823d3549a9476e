"""What is really there: devices with their memory, processes with their habits, ports, pids, the disk. All of it lies.

The sidecar sees it through `machine.py`, which dies with the sidecar; this here outlives it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from random import Random

import msgspec

from sidecar.mechanism.journal import Record
from sidecar.mechanism.runner import Exit
from tests.simulation.audit import Audit
from tests.simulation.loop import VirtualLoop

FIRST_PID, LAST_PID = 300, 360  # few, so that numbers are soon given to somebody else
CHILD_SHARE = 0.3  # of a server's memory, held by what it has forked


class Habits(msgspec.Struct, kw_only=True):
    """How a server behaves. Times in seconds; inf = never.

    load_s: until it listens. crash_s: after its start. term_s / kill_s: from the signal to the end.
    leak: (after how long, MB on each device). forks: it has a child, which outlives it when it crashes.
    """

    load_s: float = 5.0
    crash_s: float = math.inf
    term_s: float = 0.2
    kill_s: float = 0.01
    leak: tuple[float, int] | None = None
    forks: bool = False
    share: float = 0.9  # of what is declared that it really takes


class Gpu(msgspec.Struct, kw_only=True):
    """A device. foreign: MB by the pid of somebody else's process. disturbed_at: when it last changed unforeseeably."""

    id: str
    device_class: str
    index: int
    total_mb: int
    host: bool = False
    foreign: dict[int, int] = {}
    problem: str = ""
    absent: bool = False
    delay_s: float = 0.0
    hides_pids: bool = False
    disturbed_at: float = -math.inf


class Group:
    """The processes of one server: a leader, and sometimes a child."""

    def __init__(self, server: str, model: str, port: int, declared: dict[str, int], habits: Habits) -> None:
        self.server = server
        self.model = model
        self.port = port
        self.declared = declared
        self.habits = habits
        self.peak = {device: int(amount * habits.share) for device, amount in declared.items()}
        self.pids: dict[int, int] = {}  # pid to start time, of the living
        self.pid = self.started = 0
        self.spawned_at = 0.0
        self.listening = False
        self.exit: Exit | None = None  # of the leader
        self.killed = False  # KILL was sent: it will not run on to allocate more
        self.told_to_go = False
        self.ended_by_itself = False
        self.reaper: Callable[[], bool] = bool  # whether its parent lives; if not, its number is free at once
        self.watchers: list[Callable[[], None]] = []

    @property
    def gone(self) -> bool:
        return not self.pids

    def used_mb(self, device: str, now: float) -> int:
        peak = self.peak.get(device, 0)
        if not peak or not self.pids:
            return 0
        if not self.listening:
            peak = int(peak * min(1.0, (now - self.spawned_at) / max(self.habits.load_s, 0.001)))
        return peak if self.exit is None else int(peak * CHILD_SHARE)

    def by_pid(self, device: str, now: float) -> dict[int, int]:
        """What each of its processes takes."""
        used = self.used_mb(device, now)
        if self.exit is not None or len(self.pids) == 1:
            return dict.fromkeys(self.pids, used)
        child = int(used * CHILD_SHARE)
        return {pid: used - child if pid == self.pid else child for pid in self.pids}

    def news(self) -> None:
        """Tell whoever watches that something has changed."""
        watchers, self.watchers = self.watchers, []
        for watcher in watchers:
            watcher()


class World:
    """Everything that outlives the sidecar."""

    def __init__(self, loop: VirtualLoop, random: Random, audit: Audit, say: Callable[[str], None]) -> None:
        self.loop = loop
        self.random = random
        self.audit = audit
        self.say = say
        self.devices: dict[str, Gpu] = {}
        self.groups: dict[str, Group] = {}  # the living, by server
        self.strangers: dict[int, int] = {}  # other programs' pids, and start times
        self.zombies: set[int] = set()  # pids that were not reaped yet
        self.listeners: set[int] = set()  # ports that strangers listen on
        self.journal: tuple[Record, ...] = ()  # as it is on disk
        self.disk_full = False
        self.healthy: dict[str, bool] = {}  # servers of others, by URL
        self.unix_offset = 1_800_000_000.0
        self.habits: Callable[[], Habits] = Habits
        self.busy: dict[str, int] = {}  # requests in flight, by server
        self.ticks = 0
        self.starts = 0

    @property
    def now(self) -> float:
        return self.loop.now

    def unix(self) -> float:
        return self.unix_offset + self.loop.now

    # --- processes ----------------------------------------------------------------------------------------------

    def spawn(self, server: str, model: str, port: int, declared: dict[str, int]) -> Group:
        self.starts += 1
        habits = self.habits()
        group = Group(server, model, port, declared, habits)
        group.pid, group.started = self._fork(group)
        group.spawned_at = self.now
        if habits.forks:
            self._fork(group)
        self.groups[server] = group
        self.say(f"{server}: pid {group.pid} on port {port}, takes {group.peak}, {habits}")
        if habits.load_s < math.inf:
            self.loop.call_later(habits.load_s, self._loaded, group)
        if habits.crash_s < math.inf:
            self.loop.call_later(habits.crash_s, self.crash, group, Exit(1))
        if habits.leak is not None:
            self.loop.call_later(habits.leak[0], self.leak, group, habits.leak[1])
        return group

    def crash(self, group: Group, how: Exit) -> None:
        """The leader ends by itself. A child may live on."""
        if group.exit is not None:
            return
        self.say(f"{group.server}: {how}")
        if not group.told_to_go:
            group.ended_by_itself = True
            self.audit.died(group)
        group.exit = how
        group.listening = False
        self._leave(group, [group.pid] if group.habits.forks else list(group.pids))

    def lose_child(self, group: Group) -> None:
        """What it has forked ends."""
        children = [pid for pid in group.pids if pid != group.pid]
        if children:
            self.say(f"{group.server}: its child {children[0]} has ended")
            self._leave(group, children)

    def leak(self, group: Group, amount: int) -> None:
        """It takes more than it takes normally, maybe more than was declared."""
        if group.pids and group.listening:
            for device in group.peak:
                group.peak[device] += amount
                self.devices[device].disturbed_at = self.now
            self.say(f"{group.server}: has grown to {group.peak}")

    def deliver(self, pid: int, kill: bool) -> None:
        """A signal reaches a process, whoever it is."""
        if pid in self.strangers:
            self.audit.fail("17", f"pid {pid} got a signal, and is nobody of ours")
            return
        group = next((group for group in self.groups.values() if pid in group.pids), None)
        if group is None:
            return
        self.audit.signalled(group)
        group.told_to_go = True
        group.killed |= kill
        delay = group.habits.kill_s if kill else group.habits.term_s
        if delay < math.inf:
            self.loop.call_later(delay, self._signalled, group, pid, Exit(None, "SIGKILL" if kill else "SIGTERM"))

    def identity(self, pid: int) -> int:
        """The start time of the process that has the pid now; 0 if there is none."""
        if pid in self.strangers:
            return self.strangers[pid]
        return next((group.pids[pid] for group in self.groups.values() if pid in group.pids), 0)

    def stranger_with(self, pid: int) -> None:
        """Another program gets the pid, if it is free."""
        if pid not in self.zombies and not self.identity(pid):
            self.ticks += 1
            self.strangers[pid] = self.ticks

    def reaped(self, pid: int) -> None:
        self.zombies.discard(pid)
        if self.random.random() < 0.8:
            self.stranger_with(pid)

    def _fork(self, group: Group) -> tuple[int, int]:
        taken = self.strangers.keys() | self.zombies
        for other in self.groups.values():
            taken |= other.pids.keys()
        free = [pid for pid in range(FIRST_PID, LAST_PID) if pid not in taken and pid not in group.pids]
        if not free:
            self.strangers.clear()
            return self._fork(group)
        self.ticks += 1
        pid = self.random.choice(free)
        group.pids[pid] = self.ticks
        return pid, self.ticks

    def _signalled(self, group: Group, pid: int, how: Exit) -> None:
        if pid not in group.pids:
            return
        if pid == group.pid:
            group.exit = how
            group.listening = False
        self._leave(group, [pid])

    def _leave(self, group: Group, pids: list[int]) -> None:
        for pid in pids:
            del group.pids[pid]
            if pid == group.pid and group.reaper():
                self.zombies.add(pid)
            else:
                self.reaped(pid)
        if group.gone:
            self.groups.pop(group.server, None)
        group.news()

    def _loaded(self, group: Group) -> None:
        if group.exit is not None:
            return
        group.listening = True
        for device in group.peak:
            if self.used_mb(device) > self.devices[device].total_mb:
                self.audit.out_of_memory(group, self.devices[device])
                self.crash(group, Exit(137))
                return
        if group.port in self.listeners:
            self.crash(group, Exit(98))
            return
        group.news()

    # --- memory -------------------------------------------------------------------------------------------------

    def used_mb(self, device: str) -> int:
        """All that is taken, by whomever."""
        now = self.loop.now
        ours = sum(group.used_mb(device, now) for group in self.groups.values())
        return ours + sum(self.devices[device].foreign.values())

    def foreigner(self, device: str, amount: int) -> None:
        """Somebody else's process takes memory, if it is there."""
        room = self.devices[device].total_mb - self.used_mb(device)
        taken = min(amount, room)
        if taken > 0:
            self.ticks += 1
            one = self.devices[device]
            one.foreign[10_000 + self.ticks] = taken
            one.disturbed_at = self.now
            self.say(f"{device}: a foreign process takes {taken} MB")

    def news_of(self, group: Group) -> asyncio.Future[None]:
        """Done when something happens to the group."""
        future: asyncio.Future[None] = self.loop.create_future()

        def tell() -> None:
            if not future.done():
                future.set_result(None)

        group.watchers.append(tell)
        return future
