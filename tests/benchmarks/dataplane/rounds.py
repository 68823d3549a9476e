"""Turns: each proxy once in each round, so that what disturbs the machine disturbs them alike; and the medians."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import msgspec

from tests.benchmarks.dataplane.bench import Arena, Bench, MeasureError
from tests.benchmarks.dataplane.load import Asked, Run
from tests.benchmarks.dataplane.proxies import Proxy

DISTURBED = 0.04  # of a core, taken by other processes: such a round is thrown away while there is another try
WARM_CONNECTIONS = 64

Figure = Callable[[Run], float]
Round = Mapping[str, Run]  # by the proxy's name


class Rounds(msgspec.Struct, frozen=True):
    """Those that were kept. others: the most that other processes took in one of them, in cores."""

    kept: Sequence[Round]

    @property
    def others(self) -> float:
        return max(run.others for one in self.kept for run in one.values())

    def middle(self, name: str, figure: Figure) -> float:
        """A figure's median."""
        return median(figure(one[name]) for one in self.kept)

    def ratio(self, name: str, against: str, figure: Figure) -> float:
        """The median of each round's ratio: nearer to the truth on a noisy machine than that of the medians."""
        return median(figure(one[name]) / figure(one[against]) for one in self.kept)

    def added(self, name: str, to: str, figure: Figure) -> float:
        """The median of each round's difference."""
        return median(figure(one[name]) - figure(one[to]) for one in self.kept)


def alternate(bench: Bench, arena: Arena, proxies: Sequence[Proxy], asked: Asked) -> Rounds:
    """Rounds until enough were undisturbed, or all the tries are used up. Raises MeasureError, LoadError."""
    rounds: list[Round] = []
    while len(quiet := [one for one in rounds if _is_quiet(one)]) < bench.scale.rounds:
        if len(rounds) == bench.scale.most_rounds:
            return Rounds(
                (quiet + sorted((one for one in rounds if one not in quiet), key=_noise))[: bench.scale.rounds]
            )
        rounds.append({proxy.name: _run(arena, proxy, asked) for proxy in proxies})
    return Rounds(quiet)


def warm_up(bench: Bench, arena: Arena, proxies: Sequence[Proxy], request: bytes) -> None:
    """Let each proxy open its connections and get into its stride."""
    for proxy in proxies:
        _run(arena, proxy, Asked(request, WARM_CONNECTIONS, seconds=bench.scale.seconds / 2))


def sound(name: str, run: Run) -> Run:
    """A run without faults. Raises MeasureError for any other."""
    if run.seen.faults:
        raise MeasureError(f"{name}: {run.seen.faults} faults in {run.seen.answers} answers: {run.seen.fault}")
    if not run.seen.answers + run.seen.events:
        raise MeasureError(f"{name}: nothing came in {run.seen.seconds:.1f} s")
    return run


def _run(arena: Arena, proxy: Proxy, asked: Asked) -> Run:
    return sound(proxy.name, arena.loader.run(proxy.port, proxy.pid, asked))


def _noise(one: Round) -> float:
    return max(run.others for run in one.values())


def _is_quiet(one: Round) -> bool:
    return _noise(one) <= DISTURBED
