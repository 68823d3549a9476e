"""Those who leave: clients, whose answers are to be given up at once, and servers that close idle connections."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial

from tests.benchmarks.dataplane import requests
from tests.benchmarks.dataplane.bench import Arena, Bench, MeasureError
from tests.benchmarks.dataplane.cases.client import Client
from tests.benchmarks.dataplane.proxies import sidecar
from tests.benchmarks.dataplane.rows import Goal, Row, at_most

CLIENTS = 20
AT_ONCE_MS = 50.0
PATIENCE_S = 5.0
BETWEEN_S = 0.005  # two clients that leave

WAYS = {"stream": "in mid-stream", "silent": "before the first byte", "plain": "in an answer that is no stream"}

IDLE_S = 0.02
JITTER_S = 0.002
BURST, BURSTS = 16, 40


def cancels(bench: Bench) -> Iterator[Row]:
    """Clients that leave, in three ways: how many of their answers are given up, and how long the slowest takes."""
    slowest = 0.0
    for during, way in WAYS.items():
        with bench.arena(sidecar()) as arena:
            took_ms = _leave(arena, during)
        slowest = max(slowest, *took_ms, 0.0)
        what = f"of {CLIENTS} clients that leave {way}: cancelled"
        yield Row(
            f"cancels-{during}", what, len(took_ms), "", Goal(CLIENTS), f"within {max(took_ms, default=0):.1f} ms"
        )
    yield Row("cancels-slowest", "the slowest of these", slowest, "ms", at_most(AT_ONCE_MS))


def _leave(arena: Arena, during: str) -> Sequence[float]:
    """Let the clients come and leave: milliseconds until the stub knew of it, for each of which it came to know."""
    (proxy,) = arena.proxies
    before = arena.stub.counts().requests
    left_us: dict[int, int] = {}
    with ExitStack() as stack:
        clients = {requests.SEED + at: stack.enter_context(Client(proxy.port)) for at in range(CLIENTS)}
        for seed, client in clients.items():
            client.send(_request(during, seed))
        _await_requests(arena, before + CLIENTS)
        if during == "stream":
            for client in clients.values():
                client.read_some()
        for seed, client in clients.items():
            left_us[seed] = time.monotonic_ns() // 1000
            client.leave()
            time.sleep(BETWEEN_S)
        return [(at_us - left_us[seed]) / 1e3 for seed, at_us in _cancelled_us(arena, during).items()]


def _request(during: str, seed: int) -> bytes:
    if during == "stream":
        return requests.streamed(100_000, seed=seed)
    build = requests.plain if during == "plain" else partial(requests.streamed, 1)
    return build(seed=seed, stub_silent_us=int(PATIENCE_S * 10e6))


def _await_requests(arena: Arena, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while arena.stub.counts().requests < count:
        if time.monotonic() > deadline:
            raise MeasureError("requests do not reach the stub")
        time.sleep(0.01)


def _cancelled_us(arena: Arena, during: str) -> dict[int, int]:
    """When each answer was given up, by its seed."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        given_up = [one for one in arena.stub.counts().cancelled if one.during == during]
        if len(given_up) >= CLIENTS or time.monotonic() > deadline:
            return {one.seed: one.at_us for one in given_up}
        time.sleep(0.02)


def idle_close(bench: Bench) -> Iterator[Row]:
    """Requests that come just as the server closes the idle connections that they would go over."""
    with bench.arena(sidecar(), *bench.yardsticks.values(), idle_s=IDLE_S) as arena:
        failed = {proxy.name: _race(proxy.port) for proxy in arena.proxies}
        opened = arena.stub.counts().accepted
    others = ", ".join(f"{name}: {count}" for name, count in failed.items() if name != "sidecar")
    what = f"idle connections closed as they are reused, {BURST * BURSTS} requests: failures"
    yield Row("idle-close", what, failed["sidecar"], "", at_most(0), f"{others or 'alone'}; {opened} connections")


def _race(port: int) -> int:
    """Bursts of requests, one every time when connections have been idle for as long as the server lets them."""
    jitter, failed = random.Random(1), 0  # noqa: S311 - the same in each run
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(port)) for _ in range(BURST)]
        for _ in range(BURSTS):
            for client in clients:
                client.send(requests.plain())
            for at, client in enumerate(clients):
                try:
                    failed += not client.read_answer().startswith(b"HTTP/1.1 200")
                except OSError:
                    failed += 1
                    clients[at] = stack.enter_context(Client(port))
            time.sleep(IDLE_S + jitter.uniform(-JITTER_S, JITTER_S))
    return failed
