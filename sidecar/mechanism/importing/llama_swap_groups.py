"""What llama-swap says of several models at once: who runs beside whom, who goes first, who is started at the start."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.mechanism.importing.account import At, each, items
from sidecar.mechanism.importing.draft import Draft

MEMORY = "memory decides who runs beside whom: all that fit by their memory_mb, and who has to go is chosen by priority"
PROFILES = ("names always mean the same model", "switch by aliases in the manifest, which take effect when saved")


class Several:
    """Groups, the matrix, the scheduler and hooks. ids: the models' names here, by their names there."""

    def __init__(self, root: At, draft: Draft, ids: Mapping[str, str]) -> None:
        self._root = root
        self._draft = draft
        self._ids = ids

    def run(self) -> None:
        """Put what is carried of it into the models."""
        self._groups()
        self._hooks()

    def _groups(self) -> None:
        router = self._root.get("routing", "router")
        for at in filter(None, (self._root.get("groups"), router and router.get("settings", "groups"))):
            for group in at.items():
                self._group(group)
        for at in filter(None, (self._root.get("matrix"), router and router.get("settings", "matrix"))):
            self._matrix(at)
        if use := self._root.get("routing", "router", "use"):
            use.left(MEMORY)
        if scheduler := self._root.get("routing", "scheduler"):
            scheduler.left("requests for a model that is being started wait in the order in which they come")
            for at in items(scheduler.get("settings", "fifo", "priority")):
                self._priority(at, at.name)

    def _group(self, group: At) -> None:
        persistent = group.get("persistent")
        if persistent:
            persistent.left("none of its members is a model here, or it is not persistent")
        for key in ("swap", "exclusive"):
            if at := group.get(key):
                at.left(MEMORY, "see that memory_mb is right")
        for at in each(group.get("members")):
            name = self._ids.get(at.text())
            if name is None:
                at.left("there is no model of that name")
            elif persistent and persistent.flag():
                self._draft.models[name]["pinned"] = True
                persistent.changed("models.*.pinned", "a pinned model is neither evicted nor stopped")
                at.changed(f"models.{name}.pinned", "of a persistent group")
            else:
                at.left(MEMORY)

    def _matrix(self, at: At) -> None:
        at.left(MEMORY)
        short = {entry.name: entry.text() for entry in items(at.get("vars"))}
        for entry in items(at.get("evict_costs")):
            self._priority(entry, short.get(entry.name, entry.name))

    def _priority(self, at: At, model: str) -> None:
        name = self._ids.get(model)
        if name is None:
            at.left("there is no model of that name")
            return
        self._draft.models[name]["priority"] = max(at.whole(), self._draft.models[name].get("priority", 0))
        at.changed(f"models.{name}.priority", "higher is started first and evicted last")

    def _hooks(self) -> None:
        if at := self._root.get("hooks", "on_startup", "profile"):
            at.left(*PROFILES)
        for at in each(self._root.get("hooks", "on_startup", "preload")):
            name = self._ids.get(at.text())
            if name is None:
                at.left("there is no model of that name")
            else:
                self._draft.models[name]["auto_start"] = True
                at.changed(f"models.{name}.auto_start", "started with the sidecar if there is room")
