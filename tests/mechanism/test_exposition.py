"""The text, as Prometheus' own tool and its client's parsers read it."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Sequence

import pytest

from sidecar.mechanism.exposition import MOST_LABEL_CHARS, OPENMETRICS, PROMETHEUS, SLICE, Format, format_of, rendered
from sidecar.mechanism.metrics import Family, Kind, Metric, Point, Spread
from tests.exposition import families, series

NASTY = 'quote " backslash \\ newline \n umlaut ü emoji 🦉 {brace}, comma'

FAMILIES = (
    Family(
        Metric(
            name="sidecar.requests", kind=Kind.COUNTER, help='Requests: "all" \\ of\nthem.', labels=("sidecar.model",)
        ),
        [Point(("owl",), 3), Point((NASTY,), 2.5), Point(("",), 2**60)],
    ),
    Family(
        Metric(name="sidecar.wait", kind=Kind.HISTOGRAM, unit="s", help="Waiting.", labels=("a",), bounds=(0.5, 1, 10)),
        [Spread(("x",), (1, 0, 2, 4), 55.25), Spread(("",), (0, 0, 0, 1), 11.0)],
    ),
    Family(Metric(name="sidecar.build", kind=Kind.INFO, help="Which.", labels=("version",)), [Point(("1.0",), 1)]),
    Family(Metric(name="sidecar.heat", kind=Kind.GAUGE, unit="Cel", help="Heat."), [Point((), -3.5)]),
    Family(
        Metric(name="process.cpu", kind=Kind.COUNTER, unit="s", help="CPU.", exposed="process_cpu_seconds"),
        [Point((), 1.5)],
    ),
    Family(Metric(name="sidecar.nothing", kind=Kind.GAUGE, help="There is none."), []),
)


def text(told: Sequence[Family], form: Format) -> str:
    return "".join(rendered(told, form))


def test_both_formats_say_the_same() -> None:
    plain = series(text(FAMILIES, PROMETHEUS))
    assert series(text(FAMILIES, OPENMETRICS)) == plain
    assert plain["sidecar_requests_total", (("model", "owl"),)] == 3
    assert plain["sidecar_requests_total", ()] == 2**60
    assert plain["sidecar_wait_seconds_bucket", (("a", "x"), ("le", "10.0"))] == 3
    assert plain["sidecar_wait_seconds_bucket", (("a", "x"), ("le", "+Inf"))] == 7
    assert plain["sidecar_wait_seconds_count", (("a", "x"),)] == 7
    assert plain["sidecar_wait_seconds_sum", (("a", "x"),)] == 55.25
    assert plain["sidecar_build_info", (("version", "1.0"),)] == 1
    assert plain["process_cpu_seconds_total", ()] == 1.5


def test_labels_keep_whatever_stands_in_them() -> None:
    for form in (PROMETHEUS, OPENMETRICS):
        assert ("sidecar_requests_total", (("model", NASTY),)) in series(text(FAMILIES, form))


def test_types_help_and_units_are_told() -> None:
    found = {family.name: family for family in families(text(FAMILIES, OPENMETRICS))}
    assert found["sidecar_requests"].documentation == 'Requests: "all" \\ of\nthem.'
    assert {name: family.type for name, family in found.items()} == {
        "sidecar_requests": "counter",
        "sidecar_wait_seconds": "histogram",
        "sidecar_build": "info",
        "sidecar_heat_celsius": "gauge",
        "process_cpu_seconds": "counter",
    }
    assert found["sidecar_wait_seconds"].unit == "seconds"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="apt-get install prometheus")
def test_promtool_finds_no_fault() -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text(FAMILIES, PROMETHEUS), capture_output=True, text=True, timeout=30
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("value", "told"), [(math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN"), (1e300, "1e+300")]
)
def test_numbers_that_are_none_are_told_as_such(value: float, told: str) -> None:
    family = Family(Metric(name="g", kind=Kind.GAUGE, help="G."), [Point((), value)])
    assert f"\ng {told}\n" in text([family], PROMETHEUS)


def test_a_label_of_any_length_is_cut() -> None:
    family = Family(Metric(name="g", kind=Kind.GAUGE, help="G.", labels=("a",)), [Point(("x" * 10**6,), 1)])
    [read] = families(text([family], PROMETHEUS))
    assert len(read.samples[0].labels["a"]) == MOST_LABEL_CHARS


def test_what_is_large_comes_in_pieces() -> None:
    points = [Point((str(number),), number) for number in range(3 * SLICE + 1)]
    pieces = list(rendered([Family(Metric(name="g", kind=Kind.GAUGE, help="G.", labels=("a",)), points)], OPENMETRICS))
    assert [piece.count("\ng{") + piece.startswith("g{") for piece in pieces[:-1]] == [SLICE, SLICE, SLICE, 1]


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", PROMETHEUS),
        ("*/*", PROMETHEUS),
        ("text/plain", PROMETHEUS),
        ("text/html,application/xhtml+xml,*/*;q=0.8", PROMETHEUS),
        # As Prometheus 2.42 asks, and 3.
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            OPENMETRICS,
        ),
        ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;q=0.3", OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text;q=0.2,text/plain;q=0.9", PROMETHEUS),
        ("text/plain,application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text;q=0", PROMETHEUS),
        ("application/openmetrics-text;q=many", PROMETHEUS),
        ("application/openmetrics-text;version=0.0.1", PROMETHEUS),
    ],
)
def test_the_caller_chooses(accept: str, form: Format) -> None:
    assert format_of(accept) is form
