"""How far a server that loads has come with its model: what its processes have read, as the kernel tells (proc(5)).

Three signs of a file that is being read, of which the furthest counts: how much of it a process has in memory by mmap,
the place up to which an open file was read, and, for a file that is open and shows neither (pread, direct I/O), what
the process has read since it was opened. Of several processes the one that has come furthest counts: as a rule each of
them goes through the whole model. What is seen only grows: a server lets go of pages that the GPU has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping

import msgspec

from sidecar.mechanism import procfs
from sidecar.mechanism.procfs import Process

SHARE = 0.05  # of the time that may be spent with looking: page tables of large models take a while to walk
Files = Mapping[str, int]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What was read so far, in bytes, by all processes of a server together but for `model_read`.

    model: the size of the files that its command names, 0 = none is known. model_read: of these; None = nobody has
    been seen to read them. read: by system calls, whatever it was. disk: what really came from disks, not from the page
    cache; None = the kernel does not tell.
    """

    model: int = 0
    model_read: int | None = None
    read: int = 0
    disk: int | None = None


class _Counts(msgspec.Struct, frozen=True):
    """Of one process."""

    read: int
    disk: int


class Loading:
    """One server's load. files: finds what its command names; called once, when it is first looked at."""

    def __init__(self, files: Callable[[], Files]) -> None:
        self.reading = Reading()
        self._find = files
        self._files: Files | None = None
        self._seen: dict[str, int] = {}  # how far each file was read
        self._counts: dict[tuple[int, int], _Counts] = {}  # by pid and start time; those that have ended stay
        self._opened: dict[tuple[int, int], int] = {}  # what a process had read when it was first seen with a file
        self._not_before = 0.0

    def look(self, processes: Collection[Process]) -> Reading:
        """Look at the server's living processes. Reads much of /proc: keep it off the event loop."""
        began = time.monotonic()
        if began < self._not_before:
            return self.reading
        if self._files is None:
            self._files = self._find()
        for process in processes:
            self._look_at(process, self._files)
        self.reading = self._told(self._files)
        now = time.monotonic()
        self._not_before = now + (now - began) / SHARE
        return self.reading

    def _look_at(self, process: Process, files: Files) -> None:
        identity = (process.pid, process.started)
        counted = procfs.io(process.pid)
        if counted is not None:
            self._counts[identity] = _Counts(*counted)
        if not files:
            return
        mapped = procfs.mapped(process.pid, files)
        opened = procfs.positions(process.pid, files)
        for path, place in [*mapped.items(), *opened.items()]:
            self._seen[path] = max(self._seen.get(path, 0), min(place, files[path]))
        if opened and counted is not None:
            self._opened.setdefault(identity, counted[0])

    def _told(self, files: Files) -> Reading:
        total = sum(files.values())
        model_read = sum(self._seen.values()) if self._seen else None
        if model_read == 0:
            model_read = min(total, max(self._since_opened(), default=0))
        return Reading(
            model=total,
            model_read=model_read,
            read=sum(one.read for one in self._counts.values()),
            disk=sum(one.disk for one in self._counts.values()) if self._counts else None,
        )

    def _since_opened(self) -> Iterator[int]:
        for identity, before in self._opened.items():
            if identity in self._counts:
                yield self._counts[identity].read - before
