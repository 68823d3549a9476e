"""Suggestions for misspelt names."""

from __future__ import annotations

from sidecar.core.names import an, did_you_mean, listed, near

KNOWN = ("nvidia", "cpu", "apple", "amd")


def test_a_slip_of_the_finger_is_recognised() -> None:
    assert near("nvidai", KNOWN) == ["nvidia"]
    assert did_you_mean("nvidai", KNOWN) == '; did you mean "nvidia"?'


def test_case_does_not_matter_and_the_suggestion_keeps_its_own() -> None:
    assert near("QWEN3-8b", ["Qwen3-8B"]) == ["Qwen3-8B"]


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert near("zzz", KNOWN) == []
    assert did_you_mean("zzz", KNOWN) == ""
    assert did_you_mean("nvidia", []) == ""
    assert near("", KNOWN) == []
    assert near("n" * 201, ["n" * 200]) == []


def test_the_best_suggestions_come_first_and_are_few() -> None:
    known = ["model-11", "model-1", "model-12", "model-13", "model-14"]
    assert near("model-1", known)[0] == "model-1"
    assert len(near("model-1", known)) == 3
    assert len(near("model-1", known, most=1)) == 1


def test_a_list_of_names_is_sorted_and_none_when_it_is_empty() -> None:
    assert listed({"b", "a"}) == "a, b"
    assert listed(()) == "none"


def test_nouns_get_the_article_that_can_be_spoken() -> None:
    assert [an(kind) for kind in ("auth", "interface", "device")] == ["an auth", "an interface", "a device"]
