"""Which processes a server consists of: the one rule for counting its memory, proving its port, and signalling it.

A process is a server's if any of these is so, and nothing else is:
- it is the leader, or was seen to be the server's before: the same pid with the same start time;
- it is of the leader's session or group, while that number is known to be the leader's still;
- its environment has the server's mark. A mark of another server says that it is that one's, whoever forked it;
- its parent is the server's, and its environment, which programs that set their title overwrite, has no mark.
"""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.mechanism import procfs
from sidecar.mechanism.procfs import Process

MARKER = "SIDECAR_SERVER"  # in the environment of every process that a server consists of

Identity = tuple[int, int]  # pid and start time


class Family:
    """One server's processes. Remembers who was seen, so that they still count when nothing else proves them.

    marker: the value of the mark, unique to the server. leader: None if it is not known.
    """

    def __init__(self, marker: str, leader: Identity | None) -> None:
        self.marker = marker
        self.leader = leader
        self.known = {leader} if leader is not None else set()

    def members(self) -> list[Process]:
        """The living ones. Reads all of /proc: keep it off the event loop."""
        return members([self])[0]


def members(families: Sequence[Family]) -> list[list[Process]]:
    """The living processes of each family, in one look at all processes."""
    return _Look(families).sort()


class _Look:
    """All processes at one time. Families are meant by their place in the sequence."""

    def __init__(self, families: Sequence[Family]) -> None:
        self._families = families
        self._before = [frozenset(family.known) for family in families]
        self._everyone = {process.pid: process for process in procfs.processes() if process.alive}
        self._known = {identity: index for index, known in enumerate(self._before) for identity in known}
        self._sessions = {number: index for index in range(len(families)) if (number := self._session(index))}
        self._marks = {family.marker: index for index, family in enumerate(families)}
        self._owners: dict[int, int | None] = {}

    def sort(self) -> list[list[Process]]:
        found: list[list[Process]] = [[] for _ in self._families]
        for process in self._everyone.values():
            owner = self._owner(process)
            if owner is not None:
                found[owner].append(process)
        for family, before, now in zip(self._families, self._before, found, strict=True):
            identities = {(process.pid, process.started) for process in now}
            family.known |= identities
            family.known -= before - identities  # but not whom another look has found meanwhile
        return found

    def _session(self, index: int) -> int:
        """The leader's number if it still stands for the leader's session, else 0.

        The kernel gives a number to nobody else for as long as a process has it, or is in a session of that number. So
        one whom we know is enough, if it is there even now that everybody has been looked at.
        """
        leader = self._families[index].leader
        if leader is None:
            return 0
        number = leader[0]
        witnesses = [leader, *(known for known in self._before[index] if self._is_of_session(known, number))]
        return number if any(procfs.still_there(*witness) for witness in witnesses) else 0

    def _is_of_session(self, known: Identity, number: int) -> bool:
        process = self._everyone.get(known[0])
        return process is not None and process.started == known[1] and process.session == number

    def _owner(self, process: Process) -> int | None:
        path: list[int] = []
        current: Process | None = process
        decided, owner = False, None
        while current is not None and not decided and current.pid not in self._owners:
            self._owners[current.pid] = None  # a pid that was given away while we looked may close a circle
            path.append(current.pid)
            decided, owner = self._by_itself(current)
            if not decided:
                current = self._parent(current)
        if not decided and current is not None:
            owner = self._owners[current.pid]
        self._owners.update(dict.fromkeys(path, owner))
        return owner

    def _by_itself(self, process: Process) -> tuple[bool, int | None]:
        """Whether the process itself says whose it is, and whose that is."""
        identity = (process.pid, process.started)
        for owner in (
            self._known.get(identity),
            self._sessions.get(process.session),
            self._sessions.get(process.group),
        ):
            if owner is not None:
                return True, owner
        marks = procfs.variable(process.pid, MARKER)
        return bool(marks), next((self._marks[mark] for mark in marks or () if mark in self._marks), None)

    def _parent(self, process: Process) -> Process | None:
        parent = self._everyone.get(process.parent)
        if parent is None or parent.started > process.started:
            return None  # the parent has ended since, and its number is another's
        return parent
