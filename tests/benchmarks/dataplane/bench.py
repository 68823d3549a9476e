"""What every measurement is given: the programs, the cores, what there is to compare with, and how long it may take."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from tests.benchmarks.dataplane.load import Loader
from tests.benchmarks.dataplane.machine import Cores
from tests.benchmarks.dataplane.programs import Programs
from tests.benchmarks.dataplane.proxies import Proxy, Starting
from tests.benchmarks.dataplane.stub import Stub, stub

LAST_BYTES = 1000  # of a log


class MeasureError(Exception):
    """A measurement came to nothing, because what was measured did not work."""


class Scale(msgspec.Struct, frozen=True):
    """How much is done. rounds: so many undisturbed ones are wanted, and no more than `most_rounds` are tried."""

    seconds: float
    rounds: int
    most_rounds: int
    streams: int  # at once, in the measurement of many
    many_s: float
    requests: int  # after which memory is looked at


FULL = Scale(seconds=4.0, rounds=3, most_rounds=6, streams=2000, many_s=10.0, requests=1_000_000)
QUICK = Scale(seconds=1.0, rounds=3, most_rounds=3, streams=400, many_s=3.0, requests=50_000)


class Arena(msgspec.Struct, frozen=True):
    """A stub with the proxies in front of it."""

    stub: Stub
    loader: Loader
    proxies: tuple[Proxy, ...]


class Bench(msgspec.Struct, frozen=True):
    """yardsticks: those that were found."""

    programs: Programs
    cores: Cores
    scale: Scale
    yardsticks: Mapping[str, Starting]

    @contextmanager
    def arena(self, *starting: Starting, idle_s: float = 0.0) -> Iterator[Arena]:
        """A stub and proxies of their own, for one measurement. idle_s: see `stub`."""
        folder = Path(tempfile.mkdtemp(prefix="llm-sidecar-benchmark-"))
        try:
            with ExitStack() as stack:
                server = stack.enter_context(stub(self.programs.stub, self.cores.load, folder, idle_s))
                proxies = [stack.enter_context(start(folder, server.port, self.cores.proxy)) for start in starting]
                yield Arena(server, Loader(self.programs.load, self.cores, folder, [server.pid]), tuple(proxies))
        except MeasureError as error:
            raise MeasureError(f"{error}{_last_words(folder)}") from None
        finally:
            shutil.rmtree(folder)


def _last_words(folder: Path) -> str:
    """How the logs below a folder end."""
    texts = {log.parent.name: log.read_text(errors="replace")[-LAST_BYTES:] for log in sorted(folder.glob("*/log"))}
    return "".join(f"\n\n{name} said:\n{text}" for name, text in texts.items() if text)
