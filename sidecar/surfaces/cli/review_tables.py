"""A review as headline and tables, which text and Markdown both show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import msgspec

from sidecar.core.names import listed
from sidecar.core.nodes import counted
from sidecar.core.review import Change, FieldChange, OnRequest, Review
from sidecar.core.whatif import Outcome

_VERBS = {"moved_here": "now for this node", "moved_away": "no longer for this node"}
_DONE = {
    "start": ("starts", "start"),
    "stop": ("stops", "stop"),
    "restart": ("restarts", "restart"),
    "evict": ("is evicted", "are evicted"),
    "rename": ("goes on under a new name", "go on under new names"),
}
_SECTIONS = {"models": "model", "plugins": "plugin", "devices": "device", "sidecar": "[sidecar]"}


class Code(str):
    """A cell that is a name or a value, not prose."""

    __slots__ = ()


class Sheet(msgspec.Struct, frozen=True, kw_only=True):
    """One table. folded: it matters less, so that it need not be open."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False


def headline(review: Review) -> str:
    """What comes of it, in one sentence."""
    if review.no_op:
        return "Nothing changes: no server is started, stopped or restarted."
    if not review.planned:
        return _if_they_run(review)
    counts = Counter(effect.kind for effect in review.effects)
    told = [f"{counts[kind]} {words[counts[kind] > 1]}" for kind, words in _DONE.items() if counts[kind]]
    told += [f"{len(new)} new {'problems' if len(new) > 1 else 'problem'}"] if (new := _new(review)) else []
    return f"{', '.join(told)}." if told else "No server is started, stopped or restarted."


def _if_they_run(review: Review) -> str:
    interrupted = review.interrupts
    starts = [change.name for change in review.changes if change.impact == "start"]
    told = [f"If they run, these restart or stop: {listed(interrupted)}"] if interrupted else []
    told += [f"start by themselves, if there is room: {listed(starts)}"] if starts else []
    told += [f"{len(new)} new {'problems' if len(new) > 1 else 'problem'}"] if (new := _new(review)) else []
    text = "; ".join(told) or "no server is started, stopped or restarted"
    return f"{text[:1].upper()}{text[1:]}."


def _new(review: Review) -> list[str]:
    return [str(fault.problem) for fault in review.faults if fault.new]


def notes(review: Review) -> Iterator[str]:
    """What else there is to say, a sentence each."""
    if review.kept:
        yield f"In their last good form, since the new one has problems: {listed(review.kept)}."
    if review.same_meaning:
        yield f"Changed, and mean the same as before: {listed(review.same_meaning)}."
    if elsewhere := counted(review.elsewhere):
        yield f"{elsewhere}."
    if not review.at_rest:
        yield "Things would not come to rest, which is a bug of sidecar: please report it."


def sheets(review: Review) -> Iterator[Sheet]:
    """All that there is to show, the most important first."""
    if review.faults:
        rows = tuple(("new" if one.new else "as before", str(one.problem)) for one in review.faults)
        yield Sheet(title="Problems", columns=("", "problem"), rows=rows)
    if review.effects:
        yield Sheet(
            title="What happens",
            columns=("", "model", "variant", "where", "why"),
            rows=tuple(
                (one.kind, Code(_named(one.model, one.was)), Code(one.variant), Code(", ".join(one.devices)), one.why)
                for one in review.effects
            ),
        )
    if review.on_request:
        yield Sheet(
            title="Whoever asks for a model then",
            columns=("model", "before", "after", "why"),
            rows=tuple(map(_asked, review.on_request)),
        )
    if review.changes:
        yield Sheet(
            title="What changes in the manifests",
            columns=("", "name", "what", "what comes of it", "models"),
            rows=tuple(map(_change, review.changes)),
            folded=review.planned,
        )


def _asked(one: OnRequest) -> tuple[str, ...]:
    return Code(one.model), _outcome(one.before) if one.before else "(new)", _outcome(one.after), one.after.why


def _outcome(outcome: Outcome) -> str:
    if outcome.verdict == "evicts":
        return f"evicts {listed(outcome.victims)}"
    return f"{outcome.verdict} {outcome.variant}".rstrip()


def _change(change: Change) -> tuple[str, ...]:
    fields = "; ".join(map(_field, change.fields))
    verb = _VERBS.get(change.verb, change.verb)
    what = fields if change.verb == "changed" else f"{verb}{': ' if fields else ''}{fields}"
    touched = "" if change.section == "models" else listed(change.touches)
    return _SECTIONS[change.section], Code(_named(change.name, change.was)), what, change.why, touched


def _field(change: FieldChange) -> str:
    if not change.before and not change.after:
        return f"{change.key} changed"
    return f"{change.key}: {change.before or '(none)'} → {change.after or '(none)'}"


def _named(name: str, was: str) -> str:
    return f"{was} → {name}" if was else name
