"""Totals told as what has come since they were told last, for those who want them so (OTLP's delta temporality)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from sidecar.mechanism.metrics import Family, Kind, Labels, Metric, Point, Spread
from sidecar.mechanism.otlp_metrics import Times

_Before = dict[tuple[str, Labels], Point | Spread]


class Deltas:
    """What one receiver has been told. What did not arrive is told again with the next."""

    def __init__(self) -> None:
        self._before: _Before = {}
        self._at: int | None = None

    def since(self, families: Sequence[Family], times: Times) -> tuple[list[Family], Times]:
        """Counters and histograms as what has come since the last delivery; all else as it is."""
        told = [Family(one.metric, list(self._changes(one))) for one in families]
        return told, Times(times.began if self._at is None else self._at, times.now, delta=True)

    def delivered(self, families: Sequence[Family], times: Times) -> None:
        """They have arrived."""
        self._at = times.now
        self._before = {
            (family.metric.name, one.labels): one
            for family in families
            if _counts(family.metric)
            for one in family.series
        }

    def _changes(self, family: Family) -> Iterator[Point | Spread]:
        metric = family.metric
        for one in family.series:
            before = self._before.get((metric.name, one.labels)) if _counts(metric) else None
            yield _less(one, before) if before is not None else one


def _counts(metric: Metric) -> bool:
    return metric.kind in (Kind.COUNTER, Kind.HISTOGRAM)


def _less(now: Point | Spread, before: Point | Spread) -> Point | Spread:
    """What has come. What has become less has begun anew, so that all of it has."""
    if isinstance(now, Spread) and isinstance(before, Spread):
        counts = tuple(one - other for one, other in zip(now.counts, before.counts, strict=True))
        return now if min(counts) < 0 else Spread(now.labels, counts, now.sum - before.sum)
    if isinstance(now, Point) and isinstance(before, Point) and now.value >= before.value:
        return msgspec.structs.replace(now, value=now.value - before.value)
    return now
