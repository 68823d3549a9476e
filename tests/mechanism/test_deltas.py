"""Totals, told as what has come since."""

from __future__ import annotations

from sidecar.mechanism.deltas import Deltas
from sidecar.mechanism.metrics import Family, Kind, Metric, Point, Spread
from sidecar.mechanism.otlp_metrics import Times

COUNTER = Metric(name="c", kind=Kind.COUNTER, help="C.", labels=("a",))
GAUGE = Metric(name="g", kind=Kind.GAUGE, help="G.")
HISTOGRAM = Metric(name="h", kind=Kind.HISTOGRAM, help="H.", bounds=(1.0,))


def families(count: float, gauge: float, counts: tuple[int, int], total: float) -> list[Family]:
    return [
        Family(COUNTER, [Point(("x",), count)]),
        Family(GAUGE, [Point((), gauge)]),
        Family(HISTOGRAM, [Spread((), counts, total)]),
    ]


def told(deltas: Deltas, now: list[Family], at: int, *, arrives: bool = True) -> tuple[list[object], Times]:
    changes, times = deltas.since(now, Times(100, at))
    if arrives:
        deltas.delivered(now, Times(100, at))
    return [next(iter(family.series)) for family in changes], times


def test_counters_and_histograms_are_told_as_what_has_come_and_gauges_as_they_are() -> None:
    deltas = Deltas()
    first = told(deltas, families(5, 7, (1, 2), 3.0), 200)
    second = told(deltas, families(8, 6, (1, 4), 9.5), 300)
    assert first == ([Point(("x",), 5), Point((), 7), Spread((), (1, 2), 3.0)], Times(100, 200, delta=True))
    assert second == ([Point(("x",), 3), Point((), 6), Spread((), (0, 2), 6.5)], Times(200, 300, delta=True))


def test_what_has_not_arrived_is_told_again_with_the_next() -> None:
    deltas = Deltas()
    told(deltas, families(5, 7, (1, 2), 3.0), 200)
    told(deltas, families(8, 6, (1, 4), 9.5), 300, arrives=False)
    third = told(deltas, families(9, 6, (1, 4), 9.5), 400)
    assert third == ([Point(("x",), 4), Point((), 6), Spread((), (0, 2), 6.5)], Times(200, 400, delta=True))


def test_what_begins_anew_is_told_whole() -> None:
    deltas = Deltas()
    told(deltas, families(5, 7, (1, 2), 3.0), 200)
    [count, _, spread], _ = told(deltas, families(2, 7, (1, 0), 0.5), 300)
    assert (count, spread) == (Point(("x",), 2), Spread((), (1, 0), 0.5))


def test_a_series_that_is_new_is_told_whole() -> None:
    deltas = Deltas()
    told(deltas, families(5, 7, (1, 2), 3.0), 200)
    now = [Family(COUNTER, [Point(("x",), 5), Point(("y",), 4)])]
    changes, _ = deltas.since(now, Times(100, 300))
    assert list(changes[0].series) == [Point(("x",), 0), Point(("y",), 4)]
