"""Metrics as text: Prometheus' own format, and OpenMetrics for those who ask for it.

(prometheus.io/docs/instrumenting/exposition_formats, github.com/prometheus/OpenMetrics: specification 1.0.0)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator

import msgspec

from sidecar.mechanism.metrics import Family, Kind, Labels, Metric, Point, Spread, label_name

SLICE = 100  # series, after which whoever renders may do something else
MOST_LABEL_CHARS = 1024

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_special = re.compile(r'["\\\n]').search
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


class Format(msgspec.Struct, frozen=True):
    """One of the two."""

    content_type: str
    open: bool


PROMETHEUS = Format("text/plain; version=0.0.4; charset=utf-8", open=False)
OPENMETRICS = Format("application/openmetrics-text; version=1.0.0; charset=utf-8", open=True)


def format_of(accept: str) -> Format:
    """What the caller prefers, by its `Accept` (RFC 9110, 12.5.1). Whoever wants neither gets Prometheus' own."""
    best, found = 0.0, PROMETHEUS
    for item in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in item.split(";"))
        weight = _weight(parameters)
        if kind == "application/openmetrics-text" and "version=0.0.1" not in parameters:
            if weight > best or (weight == best and weight):
                best, found = weight, OPENMETRICS
        elif kind in ("text/plain", "text/*", "*/*") and weight > best:
            best, found = weight, PROMETHEUS
    return found


def _weight(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def rendered(families: Iterable[Family], form: Format) -> Iterator[str]:
    """The text in pieces, each of which is made in well under a millisecond. What has no series is left out."""
    for family in families:
        yield from _family(family, form)
    if form.open:
        yield "# EOF\n"


def _family(family: Family, form: Format) -> Iterator[str]:
    metric = family.metric
    names = tuple(map(label_name, metric.labels))
    name = metric.sample_name
    lines: list[str] = []
    for index, one in enumerate(family.series):
        if not index:
            lines.append(_head(metric, form))
        if isinstance(one, Spread):
            _spread(lines, name, metric.bounds, _pairs(names, one), one)
        else:
            lines.append(f"{name}{_braced(_pairs(names, one))} {number(one.value)}\n")
        if index % SLICE == SLICE - 1:
            yield "".join(lines)
            lines = []
    if lines:
        yield "".join(lines)


def _head(metric: Metric, form: Format) -> str:
    name = metric.prometheus_name if form.open else metric.sample_name
    kind = "gauge" if metric.kind is Kind.INFO and not form.open else metric.kind.value
    lines = f"# HELP {name} {metric.help.translate(_ESCAPES if form.open else _HELP_ESCAPES)}\n# TYPE {name} {kind}\n"
    unit = metric.prometheus_unit
    return f"{lines}# UNIT {name} {unit}\n" if form.open and unit and name.endswith(f"_{unit}") else lines


def _spread(lines: list[str], name: str, bounds: tuple[float, ...], pairs: str, spread: Spread) -> None:
    before = f'{name}_bucket{{{pairs}{"," if pairs else ""}le="'
    so_far = 0
    for bound, count in zip((*bounds, math.inf), spread.counts, strict=True):
        so_far += count
        lines.append(f'{before}{number(float(bound))}"}} {so_far}\n')
    braced = _braced(pairs)
    lines.append(f"{name}_sum{braced} {number(spread.sum)}\n{name}_count{braced} {so_far}\n")


def _pairs(names: Labels, one: Point | Spread) -> str:
    return ",".join(
        [f'{name}="{_escaped(value)}"' for name, value in zip(names, one.labels, strict=True) if value],
    )


def _escaped(value: str) -> str:
    value = value[:MOST_LABEL_CHARS]
    return value.translate(_ESCAPES) if _special(value) else value


def _braced(pairs: str) -> str:
    return f"{{{pairs}}}" if pairs else ""


def number(value: float) -> str:
    """A value as both formats write it."""
    if value == math.inf:
        return "+Inf"
    if value == -math.inf:
        return "-Inf"
    return "NaN" if math.isnan(value) else repr(value)
