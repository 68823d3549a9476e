"""Metrics as plain values: what there is (`Metric`), and how it stands at this moment (`Family`).

Names, units and attributes are OpenTelemetry's; `prometheus_name` and `label_name` say what they are called in
Prometheus (opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics). Nothing here is recorded
through an SDK: parts of the sidecar count for themselves, and are asked when somebody wants to know.
"""

from __future__ import annotations

import enum
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator

import msgspec

MOST_SERIES = 10_000  # of one metric; what comes beyond is counted together, in the series that says `overflow`
OVERFLOW = "otel.metric.overflow"  # (opentelemetry.io/docs/specs/otel/metrics/sdk/#overflow-attribute)

Labels = tuple[str, ...]

_OWN = "sidecar."
_UNITS = {"s": "seconds", "By": "bytes", "Cel": "celsius", "W": "watts", "1": "ratio"}
_not_in_names = re.compile(r"[^a-zA-Z0-9_:]+")
_not_in_labels = re.compile(r"[^a-zA-Z0-9_]+")


class Kind(enum.Enum):
    """What the numbers of a metric mean. An info's value is always 1: its labels are what it tells."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured. unit: in UCUM. labels: names of attributes. bounds: of a histogram's buckets, upper ends.

    exposed: its name in Prometheus, where custom wants another than follows from `name`.
    """

    name: str
    kind: Kind
    help: str
    unit: str = ""
    labels: Labels = ()
    bounds: tuple[float, ...] = ()
    exposed: str = ""

    @property
    def prometheus_unit(self) -> str:
        """The unit as a word; "" where there is none, as for what is merely counted."""
        word = _UNITS.get(self.unit, "")
        return "" if word == "ratio" and self.kind is not Kind.GAUGE else word

    @property
    def prometheus_name(self) -> str:
        """Without `_total`, `_info` and the like."""
        if self.exposed:
            return self.exposed
        name, unit = _not_in_names.sub("_", self.name), self.prometheus_unit
        return f"{name}_{unit}" if unit and not name.endswith(f"_{unit}") else name

    @property
    def sample_name(self) -> str:
        """What queries ask for; of a histogram, without `_bucket`, `_sum` and `_count`."""
        return self.prometheus_name + {Kind.COUNTER: "_total", Kind.INFO: "_info"}.get(self.kind, "")


def counter(name: str, unit: str, meaning: str, labels: Labels = (), *, exposed: str = "") -> Metric:
    """What only rises."""
    return Metric(name=name, kind=Kind.COUNTER, unit=unit, help=meaning, labels=labels, exposed=exposed)


def gauge(name: str, unit: str, meaning: str, labels: Labels = (), *, exposed: str = "") -> Metric:
    """What rises and falls."""
    return Metric(name=name, kind=Kind.GAUGE, unit=unit, help=meaning, labels=labels, exposed=exposed)


def histogram(name: str, unit: str, meaning: str, labels: Labels = (), *, bounds: tuple[float, ...]) -> Metric:
    """What is measured again and again."""
    return Metric(name=name, kind=Kind.HISTOGRAM, unit=unit, help=meaning, labels=labels, bounds=bounds)


def info(name: str, meaning: str, labels: Labels) -> Metric:
    """What is told by labels alone."""
    return Metric(name=name, kind=Kind.INFO, help=meaning, labels=labels)


def label_name(attribute: str) -> str:
    """What an attribute is called in Prometheus. Our own go without their prefix: `sidecar.model` is `model`."""
    name = _not_in_labels.sub("_", attribute.removeprefix(_OWN)) or "_"
    return f"_{name}" if name[0].isdigit() else name


class Point(msgspec.Struct, frozen=True, gc=False):
    """One series of a counter, a gauge or an info. labels: values, in the order of the metric's names; "" = none."""

    labels: Labels
    value: float


class Spread(msgspec.Struct, frozen=True, gc=False):
    """One series of a histogram. counts: of each bucket alone; the last one has no upper end."""

    labels: Labels
    counts: tuple[int, ...]
    sum: float


class Family(msgspec.Struct, frozen=True):
    """A metric and its series at this moment. series: may be read once."""

    metric: Metric
    series: Iterable[Point | Spread]


class Histogram:
    """Counts values by bucket. Whoever is in a hurry does what `add` does by himself."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """One more value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def spread(self, labels: Labels = ()) -> Spread:
        """As it stands."""
        return Spread(labels, tuple(self.counts), self.sum)


class Sums:
    """Sums by labels, of which there are `width`; a last one is added, which says `overflow`."""

    def __init__(self, width: int, most: int = MOST_SERIES) -> None:
        self._most = most
        self._overflow = ("",) * width + ("true",)
        self._held: dict[Labels, float] = {}

    def add(self, labels: Labels, amount: float = 1) -> None:
        """Raise one."""
        key = (*labels, "")
        held = self._held
        if key not in held and len(held) >= self._most:
            key = self._overflow
        held[key] = held.get(key, 0) + amount

    def points(self) -> Iterator[Point]:
        """All of them as they are now."""
        return (Point(labels, value) for labels, value in list(self._held.items()))


class Spreads:
    """Histograms by labels, like `Sums`."""

    def __init__(self, width: int, bounds: tuple[float, ...], most: int = MOST_SERIES) -> None:
        self._most = most
        self._bounds = bounds
        self._overflow = ("",) * width + ("true",)
        self._held: dict[Labels, Histogram] = {}

    def of(self, labels: Labels) -> Histogram:
        """The one of these labels; that of all the rest if there are too many."""
        key = (*labels, "")
        found = self._held.get(key)
        if found is None:
            if len(self._held) >= self._most:
                key = self._overflow
            found = self._held.setdefault(key, Histogram(self._bounds))
        return found

    def spreads(self) -> Iterator[Spread]:
        """All that have counted anything, as they are now."""
        return (found.spread(labels) for labels, found in list(self._held.items()) if any(found.counts))
