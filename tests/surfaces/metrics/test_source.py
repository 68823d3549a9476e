"""Where the manifests are from, in numbers."""

from __future__ import annotations

from sidecar.control.revisions import Revisions
from sidecar.core.manifest import Problem
from sidecar.core.sourcing import SourceReport
from sidecar.mechanism.exposition import PROMETHEUS, rendered
from sidecar.surfaces.metrics.source import families
from tests.exposition import value

REVISIONS = Revisions(attempted="b", applied="a", problems=(Problem(file="x", message="no"),), kept=("m", "n"))


def text(report: SourceReport) -> str:
    return "".join(rendered(families(REVISIONS, report), PROMETHEUS))


def test_a_directory_tells_its_revision_and_what_is_wrong_with_it() -> None:
    told = text(SourceReport(kind="git work tree", place="/m", ref="main", commit="c0ffee"))
    labels = {"applied": "a", "attempted": "b", "kind": "git work tree", "ref": "main", "commit": "c0ffee"}
    assert value(told, "sidecar_source_revision_info", **labels) == 1
    assert value(told, "sidecar_manifest_problems") == 1
    assert value(told, "sidecar_manifest_kept") == 2
    assert "sidecar_source_state" not in told


def test_a_repository_tells_how_it_stands_too() -> None:
    report = SourceReport(kind="git", place="https://git.example/m.git", state="failing", failures=3, answered_at=1.5e9)
    told = text(report)
    assert value(told, "sidecar_source_state", state="failing") == 1
    assert value(told, "sidecar_source_state") == 1
    assert value(told, "sidecar_source_failures") == 3
    assert value(told, "sidecar_source_last_answer_seconds") == 1.5e9
    assert "git.example" not in told
