"""One run of the load against a port, and what it found."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

import msgspec

from tests.benchmarks.dataplane.machine import Cores, Window, pinned


class LoadError(Exception):
    """The load ended without figures."""


class Asked(msgspec.Struct, frozen=True):
    """What to do. events: of each stream, 0 = none. answers: end after so many, 0 = after `seconds` alone."""

    request: bytes
    connections: int
    seconds: float
    warm_s: float = 0.3
    events: int = 0
    answers: int = 0


class Times(msgspec.Struct, frozen=True):
    """Microseconds."""

    count: int
    p50: int
    p90: int
    p99: int
    max: int


class Seen(msgspec.Struct, frozen=True):
    """What the load counted in its window; faults (broken to foreign) since its start.

    whole: the time of a request; first: that to its first event; delay: how long an event was on its way.
    foreign: events of somebody else's stream.
    """

    seconds: float
    answers: int
    events: int
    broken: int
    refused: int
    lost: int
    reordered: int
    foreign: int
    fault: str
    whole: Times
    first: Times
    delay: Times

    @property
    def faults(self) -> int:
        """All of them."""
        return self.broken + self.refused + self.lost + self.reordered + self.foreign


class Run(msgspec.Struct, frozen=True):
    """A run. cpu_s: what the proxy took in the window. others: what other processes took, in cores."""

    seen: Seen
    cpu_s: float
    others: float

    @property
    def per_s(self) -> float:
        """Answers per second."""
        return self.seen.answers / self.seen.seconds

    @property
    def answers_per_cpu_s(self) -> float:
        """Answers for each second of the proxy's CPU time."""
        return self.seen.answers / self.cpu_s if self.cpu_s else 0.0

    @property
    def events_per_cpu_s(self) -> float:
        """Events of streams for each second of the proxy's CPU time."""
        return self.seen.events / self.cpu_s if self.cpu_s else 0.0


class Loader:
    """Runs the load. beside: processes whose work is not that of others."""

    def __init__(self, program: Path, cores: Cores, folder: Path, beside: Iterable[int]) -> None:
        self._program = program
        self._cores = cores
        self._request = folder / "request"
        self._beside = tuple(beside)

    def run(self, port: int, pid: int | None, asked: Asked) -> Run:
        """Load a port. pid: the proxy's process, if there is one. Raises LoadError."""
        self._request.write_bytes(asked.request)
        numbers = (asked.events, asked.connections, asked.warm_s, asked.seconds, asked.answers)
        argv = [str(self._program), str(port), str(self._request), *map(str, numbers)]
        with (
            pinned(self._cores.load),
            subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process,
        ):
            assert process.stdout is not None
            if process.stdout.readline() != "begin\n":
                raise LoadError(f"the load did not begin: {argv}")
            proxy = () if pid is None else (pid,)
            window = Window(self._cores, (process.pid, *self._beside, *proxy))
            if process.stdout.readline() != "end\n":
                raise LoadError(f"the load did not end: {argv}")
            window.close()
            seen = msgspec.json.decode(process.stdout.read(), type=Seen)
        return Run(seen, 0.0 if pid is None else window.cpu[pid], window.others)
