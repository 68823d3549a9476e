"""What a merge would do, as data. `sidecar.control.review` finds it out, the command line tells it."""

from __future__ import annotations

import msgspec

from sidecar.core.manifest import Problem
from sidecar.core.nodes import Elsewhere
from sidecar.core.whatif import Outcome

NOTHING, RESTART, STOP, START = "none", "restart", "stop", "start"  # what becomes of a server that runs


class FieldChange(msgspec.Struct, frozen=True, kw_only=True):
    """One key. before, after: as in TOML, "" where it does not stand there; both are "" where values are not told."""

    key: str
    before: str = ""
    after: str = ""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes different of one thing. section: models, plugins, devices or sidecar.

    verb: added, removed, renamed (was: from what), changed, moved_here, moved_away (to or from other nodes). impact:
    on a server that runs: none, restart, stop; or start, if it starts by itself. why: in a sentence. touches: the
    models that it concerns.
    """

    section: str
    name: str
    verb: str
    was: str = ""
    fields: tuple[FieldChange, ...] = ()
    impact: str = NOTHING
    why: str = ""
    touches: tuple[str, ...] = ()
    file: str = ""


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to a server on the machine. kind: start, stop, restart, evict or rename. devices: labels."""

    kind: str
    model: str
    variant: str
    devices: tuple[str, ...]
    why: str
    was: str = ""


class OnRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What whoever asks for the model would get, before and after. before: None = there was no such model."""

    model: str
    before: Outcome | None
    after: Outcome


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """A problem of the second revision. new: the first did not have it."""

    problem: Problem
    new: bool


class Review(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a merge would do. no_op: nothing comes of it at all.

    planned: whether it was done for a machine; effects and on_request are about that. kept: models that stay in their
    last good form, since the new one is faulty. same_meaning: files that changed, and say the same as before.
    elsewhere: models that are for other nodes. at_rest: False if things would not come to rest, which is a bug.
    """

    before: str
    after: str
    no_op: bool
    changes: tuple[Change, ...]
    planned: bool
    effects: tuple[Effect, ...] = ()
    on_request: tuple[OnRequest, ...] = ()
    faults: tuple[Fault, ...] = ()
    kept: tuple[str, ...] = ()
    same_meaning: tuple[str, ...] = ()
    elsewhere: dict[str, Elsewhere] = {}
    at_rest: bool = True

    @property
    def interrupts(self) -> tuple[str, ...]:
        """The models whose servers stop, be it to come back; without a machine, those whose would if they ran."""
        found = [one.was or one.model for one in self.effects if one.kind in ("stop", "restart", "evict")]
        if not self.planned:
            found = [one.was or one.name for one in self.changes if one.impact in (RESTART, STOP)]
        return tuple(sorted(set(found)))
