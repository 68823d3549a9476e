"""Streams: what an event costs, when the first one comes, and whether many streams at once lose any."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.dataplane import requests
from tests.benchmarks.dataplane.bench import Bench
from tests.benchmarks.dataplane.load import Asked, Run
from tests.benchmarks.dataplane.proxies import direct, sidecar
from tests.benchmarks.dataplane.rounds import Rounds, alternate
from tests.benchmarks.dataplane.rows import Goal, Row, at_most

STREAMS, EVENTS, INTERVAL_US = 200, 100, 10_000
WARM_S = 1.5  # each stream lasts a second
GOALS = {"nginx": Goal(0.75, 0.9)}

MANY_EVENTS, MANY_INTERVAL_US = 100, 50_000


def sse(bench: Bench) -> Iterator[Row]:
    """200 streams of 100 events per second each: events per second of CPU time, and the time to the first one."""
    request = requests.streamed(EVENTS, stub_interval_us=INTERVAL_US)
    asked = Asked(request, STREAMS, bench.scale.seconds, WARM_S, EVENTS)
    with bench.arena(sidecar(), direct, *bench.yardsticks.values()) as arena:
        rounds = alternate(bench, arena, arena.proxies, asked)
        for name in bench.yardsticks:
            yield _events(rounds, name)
        yield _first(rounds, "p50", at_most(0.3, 0.15))
        yield _first(rounds, "p99", at_most(2.0, 1.0))


def _events(rounds: Rounds, name: str) -> Row:
    def per_cpu_s(run: Run) -> float:
        return run.events_per_cpu_s

    one, other = rounds.middle("sidecar", per_cpu_s), rounds.middle(name, per_cpu_s)
    return Row(
        f"sse-{name}",
        f"SSE, {STREAMS} streams x {1_000_000 // INTERVAL_US} chunks/s: chunks per CPU-second against {name}",
        rounds.ratio("sidecar", name, per_cpu_s),
        "x",
        GOALS.get(name, Goal()),
        f"{one:,.0f} / {other:,.0f}",
        rounds.others,
    )


def _first(rounds: Rounds, rank: str, goal: Goal) -> Row:
    def ms(run: Run) -> float:
        return float(getattr(run.seen.first, rank)) / 1e3

    one, other = rounds.middle("sidecar", ms), rounds.middle("direct", ms)
    added = rounds.added("sidecar", "direct", ms)
    what = f"the same: added time to the first chunk, {rank}"
    return Row(f"first-{rank}", what, added, "ms", goal, f"{one:.2f} - {other:.2f} ms", rounds.others)


def many(bench: Bench) -> Iterator[Row]:
    """2,000 streams of 20 events per second each: nothing is lost, out of order or in another's stream."""
    streams, seconds = bench.scale.streams, bench.scale.many_s
    request = requests.streamed(MANY_EVENTS, stub_interval_us=MANY_INTERVAL_US)
    with bench.arena(sidecar()) as arena:
        (proxy,) = arena.proxies
        run = arena.loader.run(proxy.port, proxy.pid, Asked(request, streams, seconds, seconds / 2, MANY_EVENTS))
    seen = run.seen
    faults = f"{seen.broken + seen.refused} broken or refused" if seen.broken + seen.refused else ""
    measured = f"{seen.events:,} chunks, on their way {seen.delay.p50 / 1e3:.1f} ms, p99 {seen.delay.p99 / 1e3:.0f} ms"
    what = f"{streams:,} streams x {1_000_000 // MANY_INTERVAL_US} chunks/s: chunks lost or out of order"
    yield Row("many", what, seen.faults, "", at_most(0), f"{measured} {faults}".strip(), run.others)
