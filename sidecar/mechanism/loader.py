"""From a snapshot of files to a declaration: parsed, checked and explained, with every fault at its place.

What is faulty is left out of the declaration and named in a Problem; the rest stands. Only faults in `[sidecar]` itself
leave nothing to run with, since they may be about who is let in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from plugin_sdk.config import secrets_may_be_absent
from sidecar.core.manifest import Declaration, DeviceDeclaration, Model, PluginDeclaration, Problem, Settings
from sidecar.core.names import did_you_mean
from sidecar.core.nodes import EVERY_NODE, Elsewhere, Node, told
from sidecar.mechanism import checker, plugins, rules, toml
from sidecar.mechanism.places import Path as Place
from sidecar.mechanism.places import Places, shown
from sidecar.mechanism.source import PLUGIN_FOLDER, Snapshot
from sidecar.mechanism.sources import Library
from sidecar.mechanism.toml import TomlError
from sidecar.mechanism.variant_rules import Fault

SECTIONS: dict[str, type[msgspec.Struct]] = {
    "plugins": PluginDeclaration,
    "devices": DeviceDeclaration,
    "models": Model,
}


class Entry(msgspec.Struct, frozen=True):
    """Something declared: its plain data, and the file that it came from, relative to the root."""

    file: str
    raw: Any


Tables = Mapping[tuple[str, ...], Entry]  # by subject: ("models", NAME) or the like, and ("sidecar",)


class Loaded(msgspec.Struct, frozen=True):
    """A revision after checking. usable: False when `[sidecar]` is faulty, or may be in a file that does not parse.

    broken_files: relative to the root; what they declare is not known. tables: what stands in the others, good or bad.
    """

    declaration: Declaration
    catalog: plugins.Catalog
    problems: tuple[Problem, ...]
    usable: bool
    broken_files: frozenset[str] = frozenset()
    tables: Tables = {}


class OwnSettings(msgspec.Struct, frozen=True):
    """What `[sidecar]` says by itself. entry: where it says so; None = nowhere, and these are the defaults."""

    settings: Settings
    entry: Entry | None


def load(
    snapshot: Snapshot,
    environment: Mapping[str, str],
    before: Declaration | None = None,
    library: Library | None = None,
    node: Node = EVERY_NODE,
) -> Loaded:
    """Check a snapshot. Imports the plugins that it declares or has beside it, so keep it off the event loop.

    before: what is in force. Its settings stay if this revision's own are faulty or gone; its plugins and devices are
    still known if they may stand in a file that is broken; and the address that it listens on does not change.
    library: the code of plugins as it was read before; what has not changed is not imported again.
    node: what is for others is checked all the same, and then not declared, but told as being elsewhere.
    """
    return _Loader(snapshot, rules.Here(environment, node), before).run(library)


def own_settings(snapshot: Snapshot) -> OwnSettings | None:
    """`[sidecar]` before anything else is known, to find the state directory; None if it is faulty or cannot be told.

    It may name plugins that there are not: that is for `load` to find out.
    """
    return _Loader(snapshot, rules.Here({}), None).own_settings()


class _Loader:
    def __init__(self, snapshot: Snapshot, here: rules.Here, before: Declaration | None) -> None:
        self.before = before or Declaration()
        self.bound = before.settings.listen if before else ""
        self.broken_files: set[str] = set()
        self.snapshot = snapshot
        self.here = here
        self.contents = dict(snapshot.files)
        self.places: dict[str, Places] = {}
        self.problems: list[Problem] = []
        self.entries: dict[tuple[str, ...], list[Entry]] = {}
        self.mistyped: dict[str, set[Place]] = {}  # file to the paths about which rules need not speak as well

    def own_settings(self) -> OwnSettings | None:
        self._collect_all()
        settings = self._settings()
        if settings is None or self._is_faulty(("sidecar",)):
            return None
        try:
            Path(settings.state_dir).expanduser()
        except RuntimeError:
            return None
        return OwnSettings(settings, next(iter(self.entries.get(("sidecar",), ())), None))

    def run(self, library: Library | None) -> Loaded:
        self._collect_all()
        settings = self._settings()
        read_plugins = self._section("plugins", PluginDeclaration)
        declared = self._names("plugins")
        folder = self.snapshot.root / PLUGIN_FOLDER
        with secrets_may_be_absent() if self.here.foreign else contextlib.nullcontext():
            catalog = plugins.load(self._clean(read_plugins, "plugins"), folder, instead=declared, library=library)
        self._tell_plugin_faults(catalog)
        devices = self._section("devices", DeviceDeclaration)
        for name, device in devices.items():
            self._obey(("devices", name), rules.check_device(device, catalog))
        faulty = self._is_faulty(("sidecar",))
        in_force = self.before.settings if settings is None or faulty else settings
        known = rules.Known.of(in_force, self.bound, catalog, self._names("plugins"), self._names("devices"))
        if settings is not None:
            self._obey(("sidecar",), rules.check_settings(settings, known))
        declared_models = self._models(known)
        models = {name: found for name, model in declared_models.items() if (found := model.on(self.here.node))}
        elsewhere = {name: model for name, model in declared_models.items() if name not in models}
        declaration = Declaration(
            revision=self.snapshot.revision,
            settings=in_force,
            plugins=self._clean(read_plugins, "plugins"),
            devices=self._clean(devices, "devices"),
            models=models,
            files={".".join(subject): entries[0].file for subject, entries in self.entries.items()},
            elsewhere={name: _elsewhere(model) for name, model in elsewhere.items()},
            variants_elsewhere={
                name: left_out for name in models if (left_out := _left_out(declared_models[name], models[name]))
            },
        )
        problems = tuple(sorted(self.problems, key=lambda problem: (problem.file, problem.line, problem.path)))
        usable = settings is not None and not self._is_faulty(("sidecar",))
        tables = {subject: entries[0] for subject, entries in self.entries.items()}
        return Loaded(declaration, catalog, problems, usable, frozenset(self.broken_files), tables)

    def _is_faulty(self, subject: tuple[str, ...]) -> bool:
        """Whether anything was found to be wrong with it so far."""
        return any(problem.subject == subject for problem in self.problems)

    # --- collecting ---------------------------------------------------------------------------------------------

    def _collect_all(self) -> None:
        for name, why in self.snapshot.unreadable:
            self._broken(name, why, line=0)
        declaring = set(self.before.files.values())
        for name, content in self.snapshot.files:
            if name in declaring and not content.strip():
                message = "is empty: taken for half-written, so what it declared stays; delete the file to remove that"
                self._broken(name, message, line=0)
            self._collect(name, self._parse(name, content))

    def _parse(self, file: str, content: bytes) -> dict[str, Any]:
        try:
            return toml.parsed(content)
        except TomlError as error:
            self._broken(file, str(error), line=error.line)
            return {}

    def _collect(self, file: str, tables: dict[str, Any]) -> None:
        for key, value in tables.items():
            if key == "sidecar":
                self.entries.setdefault((key,), []).append(Entry(file, value))
            elif key not in SECTIONS:
                self.broken_files.add(file)
                self._problem(file, (key,), f'unknown key "{key}"{did_you_mean(key, ("sidecar", *SECTIONS))}')
            elif not isinstance(value, dict):
                self.broken_files.add(file)
                self._problem(file, (key,), f"expected tables [{key}.NAME]")
            else:
                for name, raw in value.items():
                    self.entries.setdefault((key, name), []).append(Entry(file, raw))

    def _names(self, section: str) -> list[str]:
        """Everything that a section declares, be it faulty or not: a faulty thing is not an unknown one."""
        names = [subject[1] for subject in self.entries if subject[0] == section]
        return [*names, *getattr(self.before, section)] if self.broken_files else names

    # --- reading ------------------------------------------------------------------------------------------------

    def _settings(self) -> Settings | None:
        entries = self.entries.get(("sidecar",), [])
        if not entries:
            return self._absent_settings()
        if not self._single(("sidecar",), entries):
            return None
        return self._read(("sidecar",), entries[0], Settings)

    def _absent_settings(self) -> Settings | None:
        """Defaults, unless that would be a guess at who is let in."""
        if self.broken_files:
            return None  # [sidecar] may stand in one of them
        if self.before.settings != Settings():
            message = "there is no [sidecar] any more; what it said stays in force"
            self._problem("", ("sidecar",), message, subject=("sidecar",))
            return None
        return Settings()

    def _section(self, section: str, kind: type[checker.S]) -> dict[str, checker.S]:
        values: dict[str, checker.S] = {}
        for subject, entries in self.entries.items():
            if subject[0] != section:
                continue
            single = self._single(subject, entries)
            for entry in entries:  # each has its own faults, also if there should be but one
                value = self._read(subject, entry, kind)
                if value is not None and single:
                    values[subject[1]] = value
        return values

    def _single(self, subject: tuple[str, ...], entries: list[Entry]) -> bool:
        """Whether it is declared once. If not, each place names the others, and none of them counts."""
        for entry in entries if len(entries) > 1 else ():
            others = ", ".join(f"{self.snapshot.root / other.file}" for other in entries if other is not entry)
            self._problem(entry.file, subject, f"declared more than once: also in {others}", subject=subject)
        return len(entries) == 1

    def _read(self, subject: tuple[str, ...], entry: Entry, kind: type[checker.S]) -> checker.S | None:
        def report(path: Place, message: str, meant: Place | None = None) -> None:
            self.mistyped.setdefault(entry.file, set()).update({path, meant or path})
            self._problem(entry.file, path, message, subject=subject)

        if subject[0] != "models" and not self.here.foreign:
            return checker.read(entry.raw, kind, subject, report)
        with secrets_may_be_absent():  # of models it is told when it is known which variants are for this node
            return checker.read(entry.raw, kind, subject, report)

    def _models(self, known: rules.Known) -> dict[str, Model]:
        models: dict[str, Model] = {}
        for name, raw in sorted(self._section("models", Model).items()):
            models[name], faults = rules.complete(name, raw, known, self.here)
            self._obey(("models", name), faults)
        for name, fault in rules.alias_clashes(models, self._names("models")):
            self._obey(("models", name), [fault])
        return self._clean(models, "models")

    def _clean(self, values: dict[str, checker.S], section: str) -> dict[str, checker.S]:
        """Those about which there is no problem."""
        faulty = {problem.subject for problem in self.problems}
        return {name: value for name, value in values.items() if (section, name) not in faulty}

    def _obey(self, subject: tuple[str, ...], faults: Iterable[Fault]) -> None:
        """Report the faults of a subject, but for what follows from a wrong type that was reported already."""
        entries = self.entries.get(subject)
        file = entries[0].file if entries else ""
        mistyped = self.mistyped.get(file, set())
        for fault in faults:
            path = (*subject, *fault.where)
            if not any(_follows(path, told) for told in mistyped):
                self._problem(file, path, fault.message, subject=subject)

    def _tell_plugin_faults(self, catalog: plugins.Catalog) -> None:
        told: list[plugins.PluginFault] = []  # a file may offer several plugins
        for name, faults in catalog.faults.items():
            subject = ("plugins", name)
            if subject in self.entries:
                self._obey(subject, [Fault(fault.key, str(fault)) for fault in faults])
                continue
            for fault in faults:
                if not any(fault is one for one in told):
                    file = fault.file or str(self.snapshot.root / PLUGIN_FOLDER)
                    self.problems.append(Problem(file=file, line=fault.line, message=str(fault), subject=subject))
                    told.append(fault)

    def _broken(self, file: str, message: str, line: int) -> None:
        self.broken_files.add(file)
        self._problem(file, (), message, line=line)

    def _problem(
        self, file: str, path: Place, message: str, *, subject: tuple[str, ...] = (), line: int | None = None
    ) -> None:
        if line is None:
            if file not in self.places:
                self.places[file] = Places(self.contents.get(file, b""))
            line = self.places[file].line(path)
        shown_file = str(self.snapshot.root / file) if file else str(self.snapshot.root)
        self.problems.append(Problem(file=shown_file, line=line, path=shown(path), message=message, subject=subject))


def _follows(path: Place, told: Place) -> bool:
    """Whether a fault at `path` only follows from what was told already.

    A mistyped command or url may look like none at all, so its variant need not be told that it has neither.
    """
    whole_variant = bool(path) and isinstance(path[-1], int)
    return path[: len(told)] == told or (told[:-1] == path and (told[-1] in ("command", "url") or not whole_variant))


def _elsewhere(model: Model) -> Elsewhere:
    keys = (key for parts in model.selectors() for patterns in parts for key in patterns)
    return Elsewhere(nodes=told(model.selectors()), aliases=model.aliases, labels=tuple(dict.fromkeys(keys)))


def _left_out(declared: Model, here: Model) -> dict[str, str]:
    """The variants that are for other nodes, and for which ones."""
    stay = {variant.name for variant in here.variants}
    return {one.name: told([(declared.nodes, one.nodes)]) for one in declared.variants if one.name not in stay}


def manifest_folder(root: str) -> Path:
    """The folder that the user named, made absolute once, so that a later change of directory does not matter."""
    return Path(root).expanduser().absolute()
