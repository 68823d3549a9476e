"""A review as a comment: readable, and nothing in it gets out."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sidecar.core.manifest import Problem
from sidecar.core.nodes import Elsewhere
from sidecar.core.review import Change, Effect, Fault, FieldChange, OnRequest, Review
from sidecar.core.whatif import Outcome
from sidecar.surfaces.cli.review_markdown import MARKER, MOST_CHARS, code, markdown, prose
from sidecar.surfaces.cli.review_tables import headline

CHANGE = Change(
    section="models", name="m", verb="changed", fields=(FieldChange(key="priority", after="5"),), why="as is"
)
RESTART = Effect(kind="restart", model="m", variant="v", devices=("nvidia:0",), why="variant v was changed")


def review(**more: Any) -> Review:
    return Review(**{"before": "main", "after": "HEAD", "no_op": False, "changes": (CHANGE,), "planned": True, **more})


def test_a_comment_begins_with_its_mark_and_says_first_what_comes_of_it() -> None:
    outcome = OnRequest(model="m", before=None, after=Outcome(verdict="evicts", victims=("a", "b"), why="no room"))
    text = markdown(review(effects=(RESTART,), on_request=(outcome,), kept=("k",)), "gpu-7")
    assert text.splitlines()[:4] == [MARKER, "### sidecar: `main` → `HEAD` on `gpu-7`", "", "**1 restarts.**"]
    assert "| restart | `m` | `v` | `nvidia:0` | variant v was changed |" in text
    assert "| `m` | \\(new\\) | evicts a, b | no room |" in text
    assert "<details><summary>What changes in the manifests (1)</summary>\n\n|" in text
    assert "In their last good form, since the new one has problems: k." in text


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"no_op": True, "changes": ()}, "Nothing changes: no server is started, stopped or restarted."),
        ({}, "No server is started, stopped or restarted."),
        ({"effects": (RESTART, RESTART)}, "2 restart."),
        ({"planned": False}, "No server is started, stopped or restarted."),
    ],
)
def test_the_headline_counts(more: dict[str, Any], told: str) -> None:
    assert headline(review(**more)) == told


def test_without_a_machine_it_is_said_what_would_come_of_it() -> None:
    restarts = Change(section="models", name="m", verb="changed", impact="restart")
    starts = Change(section="models", name="n", verb="added", impact="start")
    fault = Fault(problem=Problem(file="f", message="m"), new=True)
    told = headline(review(planned=False, changes=(restarts, starts), faults=(fault,)))
    assert told == "If they run, these restart or stop: m; start by themselves, if there is room: n; 1 new problem."


def test_what_is_the_same_or_elsewhere_is_told() -> None:
    text = markdown(review(same_meaning=("a.toml",), elsewhere={"x": Elsewhere(nodes="")}, at_rest=False), "")
    assert "Changed, and mean the same as before: a.toml." in text
    assert "1 model is for other nodes: x." in text
    assert "a bug of sidecar" in text


def test_nothing_is_taken_for_markup_a_mention_or_a_line_end() -> None:
    assert prose("a|b\n<script>`x` [l](u) **b** @team #1 _i_ \\") == (
        "a\\|b \\<script\\>\\`x\\` \\[l\\]\\(u\\) \\*\\*b\\*\\* @\u200bteam \\#1 \\_i\\_ \\\\"
    )
    assert [code("a|b\nc"), code("`x``"), code("")] == ["`a\\|b c`", "``` `x`` ```", ""]
    evil = "| x |\n\n</details> @everyone ![](http://evil)"
    fault = Fault(problem=Problem(file="f", message=evil), new=True)
    text = markdown(review(before=evil, effects=(RESTART,), faults=(fault,)), evil)
    outside = re.sub(r"`[^`]*`", "", text)
    assert outside.count("</details>") == outside.count("<details>") == 1
    assert "@everyone" not in outside
    assert "![" not in outside
    assert all(line.count("|") - line.count("\\|") in (0, 3, 6) for line in text.splitlines())


def test_a_comment_is_never_longer_than_github_takes() -> None:
    effects = tuple(Effect(kind="stop", model=f"m{n}", variant="v", devices=(), why="x" * 900) for n in range(300))
    changes = tuple(Change(section="models", name=f"m{n}", verb="removed", why="y" * 900) for n in range(300))
    for text in (markdown(review(effects=effects), ""), markdown(review(changes=changes), "")):
        assert MOST_CHARS - 2000 < len(text) <= MOST_CHARS
        assert "There is more, which `sidecar diff` shows in full." in text
        assert text.count("<details>") == text.count("</details>")
    assert len(markdown(review(changes=changes), "", 100)) <= 100
    many = tuple(Effect(kind="stop", model=f"m{n}", variant="v", devices=(), why="") for n in range(300))
    assert "*and 100 more*" in markdown(review(effects=many), "")
