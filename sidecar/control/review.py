"""What a merge would do: two revisions of the manifests, and what the sidecar would make of the second after the first.

It is found out with what decides when it happens: `take_over` says what comes into force (what is faulty keeps its last
good form), `carry_over` which server is whose, and the planner what is done. With a machine it is tried there. Without
one, each model is taken to run, on each of its variants in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from sidecar.control import differences
from sidecar.control.revisions import in_force, take_over
from sidecar.control.trial import Machine, tried
from sidecar.core.manifest import Model, Problem
from sidecar.core.observed import Observed, Server, ServerState
from sidecar.core.plan import Start
from sidecar.core.planner import plan
from sidecar.core.renames import managed, renamed_model
from sidecar.core.review import NOTHING, RESTART, START, STOP, Change, Fault, Review
from sidecar.core.whatif import carry_over
from sidecar.mechanism.loader import Loaded
from sidecar.mechanism.source import Snapshot


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two revisions. name: what the person who asks calls it."""

    name: str
    snapshot: Snapshot
    loaded: Loaded


def review(before: Side, after: Side, machine: Machine | None = None) -> Review:
    """What would come of `after`, which was loaded with `before` in force."""
    return _Review(before, after, machine).run()


class _Review:
    def __init__(self, before: Side, after: Side, machine: Machine | None) -> None:
        self.before, self.after, self.machine = before, after, machine
        self.old = before.loaded.declaration
        self.new, self.revisions = take_over(self.old, after.loaded)
        self.then, self.now = before.loaded, in_force(before.loaded, after.loaded, self.new)
        self.renamed = dict(self._renames())

    def run(self) -> Review:
        changes = (*self._settings(), *self._devices(), *self._plugins(), *self._models())
        faults = tuple(self._faults())
        found = Review(
            before=self.before.name,
            after=self.after.name,
            no_op=not changes and not any(fault.new for fault in faults),
            changes=changes,
            planned=self.machine is not None,
            faults=faults,
            kept=self.revisions.kept,
            same_meaning=tuple(self._same_meaning(changes)),
            elsewhere=self.new.elsewhere,
        )
        return found if self.machine is None else tried(found, self.machine, self.old, self.new, self.renamed)

    # --- what is declared ---------------------------------------------------------------------------------------

    def _settings(self) -> Iterator[Change]:
        raws = (differences.raw_of(self.then, "sidecar"), differences.raw_of(self.now, "sidecar"))
        wanted = self.after.loaded.declaration.settings if self.after.loaded.usable else self.old.settings
        for field in differences.fields(self.old.settings, wanted, raws):
            touches = differences.using_setting(self.new, field.key)
            yield Change(
                section="sidecar",
                name=field.key,
                verb="changed",
                fields=(field,),
                why=differences.effect_of_setting(field.key),
                touches=tuple(sorted(touches)),
                file=self._file("sidecar"),
            )

    def _devices(self) -> Iterator[Change]:
        for name in sorted(self.old.devices.keys() | self.new.devices.keys()):
            old, new = self.old.devices.get(name), self.new.devices.get(name)
            if old == new:
                continue
            raws = (differences.raw_of(self.then, "devices", name), differences.raw_of(self.now, "devices", name))
            touched = [differences.using_device(declared, name) for declared in (self.old, self.new)]
            yield Change(
                section="devices",
                name=name,
                verb=_verb(old, new),
                fields=tuple(differences.fields(old, new, raws)) if old and new else (),
                why="decides where servers start from now on",
                touches=tuple(sorted(touched[0] | touched[1])),
                file=self._file("devices", name),
            )

    def _plugins(self) -> Iterator[Change]:
        olds = differences.own(self.then.catalog.loaded, self.old.plugins)
        news = differences.own(self.now.catalog.loaded, self.new.plugins)
        for name in sorted(olds.keys() | news.keys()):
            old, new = olds.get(name), news.get(name)
            raws = (differences.raw_of(self.then, "plugins", name), differences.raw_of(self.now, "plugins", name))
            fields = tuple(differences.of_plugins(old, new, raws))
            if old is not None and new is not None and not fields:
                continue
            versions = [one for one in (old, new) if one is not None]
            touched = [differences.using_plugin(declared, name, versions) for declared in (self.old, self.new)]
            yield Change(
                section="plugins",
                name=name,
                verb=_verb(old, new),
                fields=fields,
                why="a new generation: requests in flight finish on the old one, and no server restarts",
                touches=tuple(sorted(touched[0] | touched[1])),
                file=self._file("plugins", name),
            )

    def _models(self) -> Iterator[Change]:
        for name in sorted(self.old.models.keys() | self.new.models.keys()):
            old, new = self.old.models.get(name), self.new.models.get(name)
            if old is None and new is not None and name not in self.renamed.values():
                yield self._added(name, new)
            elif old is not None and new is None:
                yield self._gone(name, old)
            elif old is not None and new is not None and old != new:
                yield self._changed(name, name, old, new)

    def _added(self, name: str, model: Model) -> Change:
        verb = "moved_here" if name in self.old.elsewhere else "added"
        starts = model.auto_start and any(not one.external for one in model.variants)
        why = "starts by itself, if there is room" if starts else "starts on demand"
        if all(one.external for one in model.variants):
            why = "somebody else runs it"
        return Change(
            section="models",
            name=name,
            verb=verb,
            impact=START if starts else NOTHING,
            why=why,
            touches=(name,),
            file=self._file("models", name),
        )

    def _gone(self, name: str, model: Model) -> Change:
        if new := self.renamed.get(name):
            return self._changed(name, new, model, self.new.models[new])
        elsewhere = self.new.elsewhere.get(name)
        return Change(
            section="models",
            name=name,
            verb="moved_away" if elsewhere else "removed",
            impact=STOP if managed(model) else NOTHING,
            why=f"for other nodes: {elsewhere.nodes}" if elsewhere else "drained, then stopped, if it runs",
            touches=(name,),
            file=self.before.loaded.declaration.files.get(f"models.{name}", ""),
        )

    def _changed(self, name: str, now: str, old: Model, new: Model) -> Change:
        raws = (differences.raw_of(self.then, "models", name), differences.raw_of(self.now, "models", now))
        ends = [fate for variant in managed(old) if (fate := self._fate(name, old, variant.name))]
        return Change(
            section="models",
            name=now,
            verb="changed" if name == now else "renamed",
            was="" if name == now else name,
            fields=tuple(differences.of_models(old, new, raws)),
            impact=RESTART if ends else NOTHING,
            why=f"restarts, if it runs: {'; '.join(ends)}" if ends else "taken over as it runs",
            touches=(now,),
            file=self._file("models", now),
        )

    def _fate(self, name: str, model: Model, variant: str) -> str:
        """Why a server of the variant would have to go, by the planner; "" if it stays."""
        declared = next(one for one in model.variants if one.name == variant)
        server = Server(
            id=name,
            model=name,
            variant=variant,
            fingerprint=declared.fingerprint(),
            state=ServerState.READY,
            reserved_mb={},
        )
        over = carry_over(Observed(servers=(server,)), self.old, self.new)
        models = {one.model: self.new.models[one.model] for one in over.servers if one.model in self.new.models}
        # idle_timeout and the like are no matter here: the server has just been used
        alone = msgspec.structs.replace(self.new, models=models)
        decided = plan(alone, over, 0.0)
        return next((one.message for one in decided.actions if not isinstance(one, Start)), "")

    def _renames(self) -> Iterator[tuple[str, str]]:
        """(old name, new name) of models that run on under another name."""
        taken = set(self.old.models)
        for name in sorted(self.old.models.keys() - self.new.models.keys()):
            prints = [variant.fingerprint() for variant in managed(self.old.models[name])]
            found = next(filter(None, (renamed_model(one, self.new, taken) for one in prints)), None)
            if found is not None:
                taken.add(found)
                yield name, found

    # --- what is wrong, and what is the same --------------------------------------------------------------------

    def _faults(self) -> Iterator[Fault]:
        known = {_told(one, self.before.snapshot) for one in self.before.loaded.problems}
        for problem in self.revisions.problems:
            told = _told(problem, self.after.snapshot)
            yield Fault(problem=problem, new=told not in known)

    def _same_meaning(self, changes: Iterable[Change]) -> list[str]:
        if self.new is self.old:
            return []  # all of it was refused
        old, new = dict(self.before.snapshot.files), dict(self.after.snapshot.files)
        told = {change.file for change in changes} | self.after.loaded.broken_files
        told |= set() if self.after.loaded.usable else {self.old.files.get("sidecar", "")}  # what it said is kept
        faulty = {fault.problem.file for fault in self._faults()}
        return [
            name
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
            and name not in told
            and str(self.after.snapshot.root / name) not in faulty
        ]

    def _file(self, *subject: str) -> str:
        key = ".".join(subject)
        return self.after.loaded.declaration.files.get(key) or self.old.files.get(key, "")


def _verb(old: object | None, new: object | None) -> str:
    return "added" if old is None else "removed" if new is None else "changed"


def _told(problem: Problem, snapshot: Snapshot) -> tuple[str, str, str]:
    """A problem without its line and root, so that the same one is known again elsewhere."""
    root = f"{snapshot.root}/"
    return problem.file.removeprefix(root), problem.path, problem.message.replace(root, "")
