"""Reads what `/metrics` answers, with the parsers of Prometheus' own client."""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import Metric
from prometheus_client import parser as prometheus
from prometheus_client.openmetrics import parser as openmetrics

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def families(text: str) -> list[Metric]:
    """Of either format: OpenMetrics has an end."""
    read = openmetrics if text.endswith("# EOF\n") else prometheus
    return list(read.text_string_to_metric_families(text))


@lru_cache(maxsize=8)  # a test asks for many values of the same text
def series(text: str) -> Series:
    """By name of the sample and labels. No series may come twice."""
    found: Series = {}
    for family in families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


def value(text: str, name: str, **labels: str) -> float:
    """The sum of all series that have these labels."""
    wanted = labels.items()
    values = [number for (told, have), number in series(text).items() if told == name and wanted <= dict(have).items()]
    assert values, f"no series of {name} has {labels}"
    return sum(values)
