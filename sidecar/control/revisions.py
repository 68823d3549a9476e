"""Which declaration is in force. A new revision is taken over part by part: what is faulty keeps its last good form.

Nothing is ever removed because a source is empty, half-written or unreadable.
"""

from __future__ import annotations

import msgspec

from sidecar.core.manifest import Declaration, Model, Problem
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
    if before.models and not new.models and not loaded.problems:
        problem = Problem(
            file="", message="the source declares no model any more; taken for a mistake, nothing is removed"
        )
        return before, Revisions(attempted=new.revision, applied=before.revision, problems=(problem,))
    kept = {name: before.models[name] for name in _still_meant("models", before, loaded) if name in before.models}
    models: dict[str, Model] = kept | new.models
    merged = msgspec.structs.replace(
        new,
        settings=new.settings if loaded.usable else before.settings,
        plugins={k: before.plugins[k] for k in _still_meant("plugins", before, loaded) if k in before.plugins}
        | new.plugins,
        devices={k: before.devices[k] for k in _still_meant("devices", before, loaded) if k in before.devices}
        | new.devices,
        models={name: models[name] for name in sorted(models)},
        files={key: before.files[key] for key in before.files if key.partition(".")[2] in kept} | new.files,
    )
    revisions = Revisions(
        attempted=new.revision,
        applied=new.revision,
        problems=loaded.problems,
        kept=tuple(sorted(kept.keys() - new.models)),
    )
    return merged, revisions


def _still_meant(section: str, before: Declaration, loaded: Loaded) -> set[str]:
    """Names of a section that the new revision still declares, but faultily: in the file they were in, or elsewhere."""
    faulty = {problem.subject[1] for problem in loaded.problems if problem.subject[:1] == (section,)}
    broken_files = {problem.file for problem in loaded.problems if not problem.subject and not problem.path}
    for key, file in before.files.items():
        found, _, name = key.partition(".")
        if found == section and any(broken.endswith(file) for broken in broken_files):
            faulty.add(name)
    return faulty
