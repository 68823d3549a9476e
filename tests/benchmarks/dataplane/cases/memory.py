"""Resident memory: idle, after very many requests, and while clients do not read what comes for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

from tests.benchmarks.dataplane import requests
from tests.benchmarks.dataplane.bench import Arena, Bench, MeasureError
from tests.benchmarks.dataplane.cases.client import Client
from tests.benchmarks.dataplane.load import Asked
from tests.benchmarks.dataplane.machine import rss_mb
from tests.benchmarks.dataplane.proxies import sidecar
from tests.benchmarks.dataplane.rounds import WARM_CONNECTIONS, sound
from tests.benchmarks.dataplane.rows import Row, at_most

STALLED = 20
PENDING_BYTES = 20 * 2**20
EVENT_BYTES = 16384  # of a flood, as the stub has it
RECEIVE_BUFFER = 65536  # of a client that does not read; given, so that the kernel does not make it larger
SETTLED_S, PATIENCE_S = 1.0, 30.0
LONGEST_S = 600.0


def stalled(bench: Bench) -> Iterator[Row]:
    """20 clients that stop reading, with 20 MB each on their way; somebody else is served meanwhile."""
    with bench.arena(sidecar()) as arena, ExitStack() as stack:
        (proxy,) = arena.proxies
        assert proxy.pid is not None
        sound("warm-up", arena.loader.run(proxy.port, proxy.pid, Asked(requests.plain(), WARM_CONNECTIONS, 1.0)))
        before = rss_mb(proxy.pid)
        flood = requests.streamed(0, stub_flood=PENDING_BYTES // EVENT_BYTES)
        clients = [stack.enter_context(Client(proxy.port, RECEIVE_BUFFER)) for _ in range(STALLED)]
        for client in clients:
            client.send(flood)
        most, sent = _until_stuck(arena, proxy.pid)
        run = sound("beside stalled clients", arena.loader.run(proxy.port, proxy.pid, Asked(requests.plain(), 4, 0.5)))
        most = max(most, rss_mb(proxy.pid))
        whole = clients[0].read_stream()
    if whole < PENDING_BYTES:
        raise MeasureError(f"a client that read on got {whole} bytes of {PENDING_BYTES}")
    what = f"{STALLED} clients that stop reading, 20 MB each pending: growth"
    measured = f"{sent / 2**20:.0f} MB left the stub; others were served in {run.seen.whole.p50 / 1e3:.1f} ms"
    yield Row("stalled", what, most - before, "MB", at_most(10, 6), measured, run.others)


def _until_stuck(arena: Arena, pid: int) -> tuple[float, int]:
    """Wait until the stub gets rid of nothing any more: the most memory taken meanwhile, and what it got rid of."""
    deadline, most, last, since = time.monotonic() + PATIENCE_S, 0.0, 0, time.monotonic()
    while time.monotonic() - since < SETTLED_S:
        if time.monotonic() > deadline:
            raise MeasureError("clients that do not read do not stop their servers")
        time.sleep(0.05)
        most = max(most, rss_mb(pid))
        if (sent := arena.stub.counts().events) != last or not sent:
            last, since = sent, time.monotonic()
    return most, last * EVENT_BYTES


def memory(bench: Bench) -> Iterator[Row]:
    """Idle, and what a million requests leave behind."""
    with bench.arena(sidecar()) as arena:
        (proxy,) = arena.proxies
        assert proxy.pid is not None
        idle, count = rss_mb(proxy.pid), bench.scale.requests
        asked = Asked(requests.plain(), WARM_CONNECTIONS, LONGEST_S, answers=count)
        run = sound("sidecar", arena.loader.run(proxy.port, proxy.pid, asked))
        after = rss_mb(proxy.pid)
    yield Row("memory-idle", "resident memory: idle", idle, "MB", at_most(90))
    what = f"resident memory: growth after {run.seen.answers:,} requests"
    yield Row("memory-after", what, after - idle, "MB", at_most(5), f"{after:.1f} MB", run.others)
