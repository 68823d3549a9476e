"""Which declaration is in force. A new revision is taken over part by part: what is faulty keeps its last good form.

Nothing is ever removed because a source is unreadable, half-written, or empty (unless `allow_empty` says it may be).
"""

from __future__ import annotations

from typing import Any

import msgspec

from sidecar.core.manifest import Declaration, Model, Problem, Settings
from sidecar.mechanism.loader import Loaded


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
    emptied = before.models and not new.models and not _kept("models", before, loaded)
    if emptied and not new.settings.allow_empty:
        message = "the source declares no model any more; taken for a mistake, nothing is removed (see allow_empty)"
        problem = Problem(file="", message=message)
        return before, Revisions(attempted=new.revision, applied=before.revision, problems=(problem, *loaded.problems))
    parts: dict[str, dict[str, Any]] = {
        section: _kept(section, before, loaded) | getattr(new, section) for section in ("plugins", "devices", "models")
    }
    models: dict[str, Model] = {name: parts["models"][name] for name in sorted(parts["models"])}
    merged = Declaration(
        revision=new.revision,
        settings=_settings(before.settings, new.settings) if loaded.usable else before.settings,
        plugins=parts["plugins"],
        devices=parts["devices"],
        models=models,
        files={key: file for key, file in before.files.items() if _is_in(key, parts)} | new.files,
    )
    kept = tuple(name for name in models if name not in new.models)
    return merged, Revisions(attempted=new.revision, applied=new.revision, problems=loaded.problems, kept=kept)


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
