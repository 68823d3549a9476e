"""What plugins count is exported under names that every receiver takes, whatever they call it."""

from __future__ import annotations

import pytest

from sidecar.mechanism.exposition import OPENMETRICS, PROMETHEUS, rendered
from sidecar.mechanism.services import MOST_SERIES, Numbers
from sidecar.surfaces.metrics.plugins import MOST_NAMES, Own, own_labels, own_name
from tests.exposition import series, value


def text(numbers: dict[str, Numbers]) -> str:
    """As Prometheus' text; the other format must be readable, too, and say the same."""
    plain = "".join(rendered(Own(numbers).families(), PROMETHEUS))
    assert series("".join(rendered(Own(numbers).families(), OPENMETRICS))) == series(plain)
    return plain


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("hits", "plugin.hits"),
        ("cache.hits", "plugin.cache_hits"),
        ("cache/hits-and misses", "plugin.cache_hits_and_misses"),
        ("hits_total", "plugin.hits"),
        ("wait_seconds_bucket", "plugin.wait_seconds"),
        ("_total", "plugin.total"),
        ("ü", "plugin.unnamed"),
        ("", "plugin.unnamed"),
        ("x" * 1000, "plugin." + "x" * 150),
    ],
)
def test_names_are_made_fit(told: str, name: str) -> None:
    assert own_name(told) == name


def test_labels_are_made_fit_and_take_nobody_elses_place() -> None:
    labels = {"of model": "a\ud800", "plugin": "b", "le": "c", "__name__": "d", "9": "e", "sidecar.plugin": "f"}
    assert own_labels(labels) == {
        "_9": "e",
        "exported_name__": "d",
        "exported_le": "c",
        "of_model": "a?",
        "exported_plugin": "b",
    }
    assert len(own_labels({str(number): "x" for number in range(100)})) == 16


def test_plugins_that_count_under_the_same_name_share_the_metric() -> None:
    numbers = {"a": Numbers(), "b": Numbers()}
    numbers["a"].count("hits", 2, {"model": "m"})
    numbers["b"].count("hits", 3)
    told = text(numbers)
    assert value(told, "plugin_hits_total", plugin="a", model="m") == 2
    assert value(told, "plugin_hits_total", plugin="b") == 3


def test_series_that_become_the_same_are_added_up() -> None:
    numbers = Numbers()
    for name in ("a.b", "a_b", "a-b"):
        numbers.count(name)
        numbers.observe(f"{name}.wait", 0.2)
    told = text({"p": numbers})
    assert value(told, "plugin_a_b_total", plugin="p") == 3
    assert value(told, "plugin_a_b_wait_count", plugin="p") == 3
    assert value(told, "plugin_a_b_wait_bucket", plugin="p", le="0.1") == 0
    assert value(told, "plugin_a_b_wait_bucket", plugin="p", le="0.25") == 3


def test_a_name_that_counts_and_measures_is_told_once_and_what_is_left_out_is_counted() -> None:
    numbers = {"a": Numbers(), "b": Numbers()}
    numbers["a"].observe("wait", 1.0)
    numbers["b"].count("wait")
    own = Own(numbers)
    assert own.left_out == {"b": 1}
    assert value(text(numbers), "plugin_wait_count", plugin="a") == 1


def test_names_beyond_the_most_are_left_out_and_counted() -> None:
    numbers = Numbers()
    for number in range(MOST_SERIES + 10):
        numbers.count(f"m{number}")
    own = Own({"p": numbers})
    assert own.left_out == {"p": MOST_SERIES - MOST_NAMES}
    assert len(list(own.families())) == MOST_NAMES
    assert numbers.dropped == 10
