"""Answers that are one JSON object: how many in a second, what traces cost, and what a long prompt costs."""

from __future__ import annotations

import time
from collections.abc import Iterator

from tests.benchmarks.dataplane import requests
from tests.benchmarks.dataplane.bench import Arena, Bench
from tests.benchmarks.dataplane.load import Asked, Run
from tests.benchmarks.dataplane.proxies import SPANS_WAIT_S, direct, sidecar
from tests.benchmarks.dataplane.rounds import Figure, Rounds, alternate, warm_up
from tests.benchmarks.dataplane.rows import Goal, Row, at_most

CONNECTIONS = (16, 64)
GOALS = {"nginx": Goal(0.45, 0.65), "envoy": Goal(1.0, 2.0)}
PROMPT_BYTES = 400_000
ARRIVE_S = 10.0


def per_s(run: Run) -> float:
    """Answers per second."""
    return run.per_s


def per_cpu_s(run: Run) -> float:
    """Answers for each second of the proxy's CPU time, which a busy machine changes less."""
    return run.answers_per_cpu_s


def json(bench: Bench) -> Iterator[Row]:
    """Requests per second, and per second of the proxy's CPU time, against each yardstick."""
    with bench.arena(sidecar(), *bench.yardsticks.values()) as arena:
        warm_up(bench, arena, arena.proxies, requests.plain())
        for connections in CONNECTIONS:
            rounds = alternate(bench, arena, arena.proxies, Asked(requests.plain(), connections, bench.scale.seconds))
            for name in bench.yardsticks:
                what = f"JSON, 1 KB, {connections} connections: req/s against {name}"
                yield _against(rounds, name, f"json-{connections}-{name}", what, per_s, GOALS[name])
                what = f"the same per CPU-second, against {name}"
                yield _against(rounds, name, f"json-{connections}-{name}-cpu", what, per_cpu_s, Goal())


def _against(rounds: Rounds, name: str, row: str, what: str, figure: Figure, goal: Goal) -> Row:
    one, other = rounds.middle("sidecar", figure), rounds.middle(name, figure)
    ratio = rounds.ratio("sidecar", name, figure)
    return Row(row, what, ratio, "x", goal, f"{one:,.0f} / {other:,.0f}", rounds.others)


def traced(bench: Bench) -> Iterator[Row]:
    """Every request traced and sent to a collector, against none; and whether all of it arrived."""
    with bench.arena(sidecar("untraced", traced=""), sidecar("traced", traced="1")) as arena:
        warm_up(bench, arena, arena.proxies, requests.plain())
        asked = Asked(requests.plain(), 16, bench.scale.seconds)
        rounds = alternate(bench, arena, arena.proxies, asked)
        yield Row(
            "traced",
            "every request traced and sent by OTLP: req/s against untraced",
            rounds.ratio("traced", "untraced", per_s),
            "x",
            Goal(0.5, 0.75),
            f"{rounds.middle('traced', per_s):,.0f} / {rounds.middle('untraced', per_s):,.0f}",
            rounds.others,
        )
        yield _arrived(arena, asked)


def _arrived(arena: Arena, asked: Asked) -> Row:
    traced = arena.proxies[1]
    time.sleep(2 * SPANS_WAIT_S)  # for what is still on its way
    before = arena.stub.counts()
    run = arena.loader.run(traced.port, traced.pid, asked)
    deadline = time.monotonic() + ARRIVE_S
    while (now := arena.stub.counts()).traced - before.traced < now.requests - before.requests:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    arrived, made = now.traced - before.traced, now.requests - before.requests
    what = "the same: requests whose spans arrived"
    return Row("traced-arrived", what, arrived / made, "x", Goal(0.999), f"{arrived:,} / {made:,}", run.others)


def prompt(bench: Bench) -> Iterator[Row]:
    """What is added to the time of a request with a prompt of 400 KB."""

    def p50_ms(run: Run) -> float:
        return run.seen.whole.p50 / 1e3

    with bench.arena(sidecar(), direct) as arena:
        asked = Asked(requests.plain(prompt_bytes=PROMPT_BYTES), 1, bench.scale.seconds)
        rounds = alternate(bench, arena, arena.proxies, asked)
        one, other = rounds.middle("sidecar", p50_ms), rounds.middle("direct", p50_ms)
        added = rounds.added("sidecar", "direct", p50_ms)
        what, measured = "400 KB prompt: added, p50", f"{one:.2f} - {other:.2f} ms"
        yield Row("prompt", what, added, "ms", at_most(2.0, 1.0), measured, rounds.others)
