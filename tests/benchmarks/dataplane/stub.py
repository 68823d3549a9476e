"""The stub of a server, running."""

from __future__ import annotations

import http.client
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tests.benchmarks.dataplane.processes import await_true, started

_LISTENING = re.compile(r"listening (\d+)")


class Cancelled(msgspec.Struct, frozen=True):
    """An answer that was given up. during: `plain`, `silent` (a stream before its first byte) or `stream`."""

    during: str = msgspec.field(name="while")
    seed: int
    at_us: int  # of CLOCK_MONOTONIC


class Counts(msgspec.Struct, frozen=True):
    """What the stub has seen. traced: requests that traces told of. cancelled: the last 256."""

    requests: int
    events: int
    accepted: int
    traced: int
    cancelled: tuple[Cancelled, ...]


class Stub:
    """A stub that listens on `port`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.pid = process.pid
        self.port = port

    def counts(self) -> Counts:
        """What it has seen so far."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10.0)
        try:
            connection.request("GET", "/counts")
            return msgspec.json.decode(connection.getresponse().read(), type=Counts)
        finally:
            connection.close()


@contextmanager
def stub(program: Path, core: int | None, folder: Path, idle_s: float = 0.0) -> Iterator[Stub]:
    """One that runs. idle_s: connections are closed when they were not used for so long; 0 = never."""
    log = folder / "stub.log"
    with started([program, str(int(idle_s * 1e6))], core, log) as process:
        await_true(lambda: _LISTENING.search(log.read_text()) is not None, process, log)
        found = _LISTENING.search(log.read_text())
        assert found is not None
        yield Stub(process, int(found.group(1)))
