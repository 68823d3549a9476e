"""Metrics of plugins: what they cost, and what they count by themselves (`self.metrics`)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from sidecar.control.controller import Controller
from sidecar.mechanism.instance import Instance
from sidecar.mechanism.metrics import Family, Kind, Labels, Metric, Point, Spread, counter, gauge, label_name
from sidecar.mechanism.services import BUCKETS, Counter, Distribution, Numbers

PREFIX = "plugin."
MOST_NAMES = 200  # of metrics of all plugins together
MOST_LABELS = 16
MOST_NAME_CHARS = 150

_PLUGIN = "sidecar.plugin"
_WHICH = (_PLUGIN, "sidecar.kind")
_PERCENTILES = (50, 95, 99)

CALLS = counter(
    "sidecar.plugin.calls",
    "{call}",
    "Calls of a plugin's methods, probes included. What is told of a plugin begins anew when it is made anew.",
    (*_WHICH, "sidecar.result"),
)
TIME = counter("sidecar.plugin.time", "s", "What the calls that went well took in all.", _WHICH)
LATENCY = gauge(
    "sidecar.plugin.latency",
    "s",
    "What the latest calls took, up to 512 of them, by percentile.",
    (*_WHICH, "sidecar.percentile"),
)
UP = gauge("sidecar.plugin.up", "", "Whether the plugin can be used.", _WHICH)
BEHIND = gauge(
    "sidecar.plugin.behind",
    "",
    "Whether it is still the one before, since the newer one cannot be loaded or opened.",
    _WHICH,
)
DROPPED = counter(
    "sidecar.plugin.outcomes.dropped",
    "{request}",
    "Outcomes that a stats plugin was not told, since it does not keep up.",
    _WHICH,
)
BLOCKED = counter(
    "sidecar.plugin.blocked", "{call}", "How often a plugin held up the event loop for longer than it may.", _WHICH
)
LOST = counter(
    "sidecar.plugin.series.dropped",
    "{value}",
    "Values of plugins' own metrics that were not counted, since they had too many series or names.",
    (_PLUGIN,),
)
METRICS = (CALLS, TIME, LATENCY, UP, BEHIND, DROPPED, BLOCKED, LOST)

_not_in_names = re.compile(r"[^a-zA-Z0-9]+")


def families(controller: Controller) -> Iterator[Family]:
    """As they stand."""
    generation = controller.generation
    instances = sorted(generation.instances.values(), key=lambda instance: instance.name)
    which = [((one.name, one.loaded.kind if one.loaded is not None else "unknown"), one) for one in instances]
    yield Family(CALLS, _calls(which))
    yield Family(TIME, [Point(labels, one.busy_s) for labels, one in which if one.runs])
    yield Family(LATENCY, _latency(which))
    yield Family(UP, [Point(labels, int(not one.problem)) for labels, one in which])
    yield Family(BEHIND, [Point(labels, int(one.name in generation.behind)) for labels, one in which])
    yield Family(DROPPED, [Point(labels, one.sink.dropped) for labels, one in which if one.sink is not None])
    yield Family(BLOCKED, [Point(labels, one.marker.blocked) for labels, one in which])
    host = controller.generations.host
    numbers = {one.name: host.numbers(one.name) for one in instances}
    own = Own(numbers)
    yield Family(LOST, [Point((name,), found.dropped + own.left_out.get(name, 0)) for name, found in numbers.items()])
    yield from own.families()


def _calls(which: Sequence[tuple[Labels, Instance]]) -> Iterator[Point]:
    for labels, one in which:
        yield Point((*labels, "ok"), one.runs)
        yield Point((*labels, "failed"), one.failed)


def _latency(which: Sequence[tuple[Labels, Instance]]) -> Iterator[Point]:
    for labels, one in which:
        durations = sorted(one.durations_s)
        if durations:
            for percentile in _PERCENTILES:  # by the nearest rank
                yield Point((*labels, str(percentile)), durations[math.ceil(percentile * len(durations) / 100) - 1])


class Own:
    """Plugins' own metrics, under names that are fit for all receivers. left_out: series, by plugin.

    Two plugins may count under the same name: they share the metric. If one counts and the other measures, the first in
    the alphabet has the name, and the other is left out.
    """

    def __init__(self, numbers: Mapping[str, Numbers]) -> None:
        self.left_out: dict[str, int] = {}
        self._found: dict[str, tuple[Kind, list[tuple[dict[str, str], Counter | Distribution]]]] = {}
        for plugin, counted in sorted(numbers.items()):
            found: tuple[Counter | Distribution, ...] = (*counted.counters(), *counted.distributions())
            for one in found:
                self._take(plugin, one)

    def _take(self, plugin: str, one: Counter | Distribution) -> None:
        kind = Kind.COUNTER if isinstance(one, Counter) else Kind.HISTOGRAM
        name = own_name(one.name)
        known = self._found.get(name)
        if (known is not None and known[0] is not kind) or (known is None and len(self._found) >= MOST_NAMES):
            self.left_out[plugin] = self.left_out.get(plugin, 0) + 1
            return
        labels = {_PLUGIN: plugin, **own_labels(one.labels)}
        self._found.setdefault(name, (kind, []))[1].append((labels, one))

    def families(self) -> Iterator[Family]:
        """All of them."""
        for name, (kind, series) in sorted(self._found.items()):
            labels = tuple(sorted({label for told, _ in series for label in told}))
            metric = Metric(
                name=name,
                kind=kind,
                help="Of plugins' own.",
                labels=labels,
                bounds=BUCKETS if kind is Kind.HISTOGRAM else (),
            )
            yield Family(metric, _merged(labels, series))


@lru_cache(MOST_NAMES)  # the names of thousands of series are but few
def own_name(told: str) -> str:
    """What a plugin's metric is called: below `plugin.`, in characters that all receivers take.

    `_total` and the like are for the format to add: a counter `hits_total` is the counter `hits`.
    """
    name = _not_in_names.sub("_", told)[:MOST_NAME_CHARS].strip("_") or "unnamed"
    for ending in ("_total", "_bucket", "_sum", "_count", "_created", "_info"):
        name = name.removesuffix(ending) or name
    return PREFIX + name


def own_labels(told: Mapping[str, str]) -> dict[str, str]:
    """Its labels, by names that are taken by nobody else, and no more than there may be."""
    found: dict[str, str] = {}
    for key, value in sorted(told.items())[:MOST_LABELS]:
        found.setdefault(_own_label(_text(key)[:MOST_NAME_CHARS]), _text(value))
    return found


@lru_cache(MOST_NAMES)
def _own_label(told: str) -> str:
    name = label_name(told)
    return f"exported_{name.lstrip('_')}" if name in ("plugin", "le") or name.startswith("__") else name


def _text(told: object) -> str:
    """As text that every receiver can decode; plugins may hand over anything."""
    return str(told).encode("utf-8", "replace").decode()


def _merged(labels: Labels, series: list[tuple[dict[str, str], Counter | Distribution]]) -> Iterator[Point | Spread]:
    """Series that have become the same by their new names are one."""
    sums: dict[Labels, float] = {}
    spreads: dict[Labels, Spread] = {}
    for told, one in series:
        values = tuple(told.get(label, "") for label in labels)
        if isinstance(one, Counter):
            sums[values] = sums.get(values, 0) + one.value
            continue
        before = spreads.get(values)
        counts = one.buckets if before is None else [a + b for a, b in zip(before.counts, one.buckets, strict=True)]
        spreads[values] = Spread(values, tuple(counts), one.sum + (before.sum if before is not None else 0.0))
    yield from (Point(values, value) for values, value in sums.items())
    yield from spreads.values()
