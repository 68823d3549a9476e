"""Metrics of where the manifests are from, and which of them are in force."""

from __future__ import annotations

from collections.abc import Iterator

from sidecar.control.revisions import Revisions
from sidecar.core.sourcing import SourceReport
from sidecar.mechanism.metrics import Family, Point, gauge, info

STATES = ("in sync", "pinned", "suspended", "rejected", "failing")

REVISION = info(
    "sidecar.source.revision",
    "The revision of the manifests in force, and the one that was read last, as hashes of their content; and where"
    " they are from: the commit, if there is one to be known.",
    ("sidecar.applied", "sidecar.attempted", "sidecar.kind", "sidecar.ref", "sidecar.commit"),
)
PROBLEMS = gauge("sidecar.manifest.problems", "{problem}", "What is wrong with the revision that was read last.")
KEPT = gauge(
    "sidecar.manifest.kept", "{model}", "Models in their last good form, since their manifests are faulty now."
)
STATE = gauge(
    "sidecar.source.state",
    "",
    "Of a git repository that is fetched: 1 for the state that it is in, 0 for the others.",
    ("sidecar.state",),
)
FAILURES = gauge(
    "sidecar.source.failures",
    "{failure}",
    "Of a git repository that is fetched: how often in a row it could not be had.",
)
ANSWERED = gauge(
    "sidecar.source.last_answer", "s", "Of a git repository that is fetched: when it last answered, unix time."
)
METRICS = (REVISION, PROBLEMS, KEPT, STATE, FAILURES, ANSWERED)


def families(revisions: Revisions, report: SourceReport) -> Iterator[Family]:
    """As they stand."""
    found = (report.kind, report.ref, report.commit)
    yield Family(REVISION, [Point((revisions.applied, revisions.attempted, *found), 1)])
    yield Family(PROBLEMS, [Point((), len(revisions.problems))])
    yield Family(KEPT, [Point((), len(revisions.kept))])
    if report.kind == "git":
        yield Family(STATE, [Point((state,), int(state == report.state)) for state in STATES])
        yield Family(FAILURES, [Point((), report.failures)])
    if report.answered_at is not None:
        yield Family(ANSWERED, [Point((), round(report.answered_at, 3))])
