"""Which declaration is in force. A new revision is taken over part by part: what is faulty keeps its last good form.

Nothing is ever removed because a source is unreadable, half-written, or empty (unless `allow_empty` says it may be).
"""

from __future__ import annotations

from typing import Any

import msgspec

from sidecar.core.manifest import Declaration, Model, Problem, Settings
from sidecar.mechanism.loader import SECTIONS, Entry, Loaded, Tables
from sidecar.mechanism.plugins import Catalog
from sidecar.mechanism.plugins import Loaded as Plugin


class Revisions(msgspec.Struct, kw_only=True):
    """attempted / applied: content hashes. problems: of the attempted one. kept: models in their last good form."""

    attempted: str = ""
    applied: str = ""
    problems: tuple[Problem, ...] = ()
    kept: tuple[str, ...] = ()


def take_over(before: Declaration | None, loaded: Loaded) -> tuple[Declaration, Revisions]:
    """What to run with, given what ran before. The first revision has nothing to fall back on."""
    new = loaded.declaration
    if before is None:
        return new, Revisions(attempted=new.revision, applied=new.revision, problems=loaded.problems)
    emptied = before.models and not (new.models or new.elsewhere or _kept("models", before, loaded))
    if emptied and not new.settings.allow_empty:
        message = "the source declares no model any more; taken for a mistake, nothing is removed (see allow_empty)"
        problem = Problem(file="", message=message)
        return before, Revisions(attempted=new.revision, applied=before.revision, problems=(problem, *loaded.problems))
    parts: dict[str, dict[str, Any]] = {
        section: _kept(section, before, loaded) | getattr(new, section) for section in SECTIONS
    }
    models: dict[str, Model] = {name: parts["models"][name] for name in sorted(parts["models"])}
    models |= _yielding({name: model for name, model in models.items() if name not in new.models}, new.models)
    merged = Declaration(
        revision=new.revision,
        settings=_settings(before.settings, new.settings) if loaded.usable else before.settings,
        plugins=parts["plugins"],
        devices=parts["devices"],
        models=models,
        files={key: file for key, file in before.files.items() if _is_in(key, parts)} | new.files,
        elsewhere={name: one for name, one in new.elsewhere.items() if name not in models},
        variants_elsewhere=new.variants_elsewhere,
    )
    kept = tuple(name for name in models if name not in new.models)
    return merged, Revisions(attempted=new.revision, applied=new.revision, problems=loaded.problems, kept=kept)


def in_force(before: Loaded | None, loaded: Loaded, declaration: Declaration) -> Loaded:
    """`declaration`, as `take_over` gave it, with each plugin and each raw table of the revision that it comes from.

    What is wrong with a newer version of a plugin is told of its name, beside the one that stays.
    """
    if before is None:
        return loaded
    kept = _old("plugins", loaded, declaration) | _needed(before, loaded, declaration)
    plugins = loaded.catalog.loaded | {
        name: before.catalog.loaded[name] for name in kept if name in before.catalog.loaded
    }
    return Loaded(
        declaration,
        Catalog(plugins, loaded.catalog.faults),
        (),
        usable=True,
        tables=_tables(before, loaded, declaration),
    )


def _needed(before: Loaded, loaded: Loaded, declaration: Declaration) -> set[str]:
    """What stands in chains that stay as they were, and is not to be had any more, or has become something else."""
    stay = [declaration.models[name].chain or () for name in _old("models", loaded, declaration)]
    if not loaded.usable:
        stay.append(declaration.settings.chain)
    now, then = loaded.catalog.loaded, before.catalog.loaded
    return {name for chain in stay for name in chain if name in then and not _is_like(then[name], now.get(name))}


def _is_like(then: Plugin, now: Plugin | None) -> bool:
    return now is not None and now.kind == then.kind


def _tables(before: Loaded, loaded: Loaded, declaration: Declaration) -> Tables:
    tables: dict[tuple[str, ...], Entry] = {}
    settings = loaded if loaded.usable and declaration.revision == loaded.declaration.revision else before
    sources: dict[tuple[str, ...], Loaded] = {("sidecar",): settings}
    for section in SECTIONS:
        old = _old(section, loaded, declaration)
        sources |= {(section, name): before if name in old else loaded for name in getattr(declaration, section)}
    for subject, source in sources.items():
        if (entry := source.tables.get(subject)) is not None:
            tables[subject] = entry
    for name in _old("models", loaded, declaration):
        aliases = list(declaration.models[name].aliases)
        entry = tables.get(("models", name))
        if entry is not None and aliases != entry.raw.get("aliases", []):
            tables["models", name] = Entry(entry.file, entry.raw | {"aliases": aliases})
    return tables


def _old(section: str, loaded: Loaded, declaration: Declaration) -> set[str]:
    """The names of those that are not the new revision's."""
    new = getattr(loaded.declaration, section)
    return {name for name, value in getattr(declaration, section).items() if value is not new.get(name)}


def _yielding(kept: dict[str, Model], new: dict[str, Model]) -> dict[str, Model]:
    """Models in their last good form, without the aliases by which the new revision means another."""
    taken = new.keys() | {alias for model in new.values() for alias in model.aliases}
    return {
        name: msgspec.structs.replace(model, aliases=tuple(alias for alias in model.aliases if alias not in taken))
        for name, model in kept.items()
        if not taken.isdisjoint(model.aliases)
    }


def _settings(before: Settings, new: Settings) -> Settings:
    """What can change under a running sidecar: the address that it listens on and the state directory cannot."""
    return msgspec.structs.replace(new, listen=before.listen, state_dir=before.state_dir)


def _kept(section: str, before: Declaration, loaded: Loaded) -> dict[str, Any]:
    """What the new revision still means to declare, but faultily, or in a file that is broken: as it was before."""
    faulty = {problem.subject[1] for problem in loaded.problems if problem.subject[:1] == (section,)}
    if section == "plugins" and not loaded.usable:
        faulty.update(before.settings.chain)  # the settings stay, and with them what they need
    return {
        name: value
        for name, value in getattr(before, section).items()
        if name in faulty or before.files.get(f"{section}.{name}") in loaded.broken_files
    }


def _is_in(key: str, parts: dict[str, dict[str, Any]]) -> bool:
    section, _, name = key.partition(".")
    return name in parts.get(section, {})
