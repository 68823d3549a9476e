"""Which models are for which machine."""

from __future__ import annotations

import msgspec
import pytest

from sidecar.core import nodes
from sidecar.core.nodes import EVERY_NODE, Elsewhere, Node, may_meet
from tests.core.build import model, variant

H200 = Node({"gpu": "h200", "rack": "a"})


@pytest.mark.parametrize(
    ("selector", "fits"),
    [
        ({}, True),
        ({"gpu": "h200"}, True),
        ({"gpu": "h*", "rack": "?"}, True),
        ({"gpu": "h[12]00"}, True),
        ({"rack": ("b", "a")}, True),
        ({"gpu": "H200"}, False),
        ({"gpu": "h20"}, False),
        ({"gpu": "h200", "rack": "b"}, False),
        ({"rack": ("b", "c")}, False),
        ({"zone": "*"}, False),
    ],
)
def test_every_label_must_match_one_of_its_patterns(selector: nodes.Patterns, fits: bool) -> None:
    assert H200.fits(selector) is fits
    assert EVERY_NODE.fits(selector)


def test_a_model_has_the_variants_that_are_for_the_node_and_without_any_it_is_not_there() -> None:
    here, there = variant(name="here", nodes={"gpu": "h*"}), variant(name="there", nodes={"gpu": "a100"})
    both = model(here, there)
    assert both.on(H200) == model(here)
    assert both.on(EVERY_NODE) is both
    assert model(there).on(H200) is None
    assert msgspec.structs.replace(both, nodes={"rack": "b"}).on(H200) is None
    assert model(here).on(H200) == model(here)


@pytest.mark.parametrize(
    ("one", "other", "may"),
    [
        ({}, {"gpu": "h200"}, True),
        ({"gpu": "h200"}, {"rack": "a"}, True),
        ({"gpu": "h200"}, {"gpu": "a100"}, False),
        ({"gpu": "h200"}, {"gpu": ("a100", "h200")}, True),
        ({"gpu": "h200"}, {"gpu": "h*"}, True),
        ({"gpu": "a100"}, {"gpu": "h*"}, False),
        ({"gpu": "a*"}, {"gpu": "h*"}, True),  # taken so, since it takes more to tell
        ({"gpu": "h200", "rack": "a"}, {"gpu": "h200", "rack": ("b", "c")}, False),
    ],
)
def test_two_selectors_may_meet_unless_some_label_cannot_match_both(
    one: nodes.Patterns, other: nodes.Patterns, may: bool
) -> None:
    assert may_meet([one], [other]) is may
    assert may_meet([other], [one]) is may


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gpu", "expected KEY=VALUE"),
        ("gpu=", "expected KEY=VALUE"),
        ("=h200", '"" is no name of a label'),
        ("a b=c", '"a b" is no name of a label'),
        ("gpu=a,b", "expected no comma"),
        ("gpu=a\nb", "expected no comma and no line end"),
    ],
)
def test_what_is_no_label_is_told(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        nodes.parse(text)


def test_a_label_is_split_at_the_first_equals_sign() -> None:
    assert nodes.parse(" zone.example/rack = a=b ") == ("zone.example/rack", "a=b")


def test_selectors_are_told_to_people() -> None:
    assert nodes.told(
        [({"gpu": "h200", "rack": ("a", "b")}, {}), ({"gpu": "h200", "rack": ("a", "b")}, {"x": "y"})]
    ) == ("gpu = h200, rack = a or b; or gpu = h200, rack = a or b, x = y")
    assert str(H200) == "gpu = h200, rack = a"
    assert str(EVERY_NODE) == "no labels"


def test_what_is_elsewhere_is_counted_and_named() -> None:
    assert nodes.counted({}) == ""
    assert nodes.counted({"m": Elsewhere(nodes="")}) == "1 model is for other nodes: m"
    assert nodes.counted({"n": Elsewhere(nodes=""), "m": Elsewhere(nodes="")}) == "2 models are for other nodes: m, n"
