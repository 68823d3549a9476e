"""What an operator has said at run time, model by model: keep it (pin), or take it out of service (drain).

Held in memory alone: it lasts until it is taken back or the sidecar ends. What should last stands in the manifest.
"""

from __future__ import annotations

from collections.abc import Container

from sidecar.control.events import Events

_TOLD = {
    "Pinned": "an operator has pinned it: it is neither evicted nor stopped for being idle",
    "Unpinned": "an operator has taken the pin back",
    "Drained": "an operator has taken it out of service",
    "Undrained": "an operator has put it back into service",
}


class Overrides:
    """Names of models. To be used on one event loop."""

    def __init__(self, events: Events) -> None:
        self.pinned: set[str] = set()
        self.drained: set[str] = set()
        self._events = events

    def pin(self, model: str) -> bool:
        """Have it neither evicted nor stopped for being idle. False if it was so already."""
        return self._put(self.pinned, model, "Pinned")

    def unpin(self, model: str) -> bool:
        """Take the pin back; what the manifest says of it stays. False if there was none."""
        return self._take(self.pinned, model, "Unpinned")

    def drain(self, model: str) -> bool:
        """Take it out of service. False if it was so already."""
        return self._put(self.drained, model, "Drained")

    def undrain(self, model: str) -> bool:
        """Put it back into service. False if it was there."""
        return self._take(self.drained, model, "Undrained")

    def rename(self, old: str, new: str) -> None:
        """The manifests call the model otherwise now."""
        for names in (self.pinned, self.drained):
            if old in names:
                names.discard(old)
                names.add(new)

    def keep_only(self, declared: Container[str]) -> None:
        """Forget what was said of models that are declared no longer: who declares them anew does not think of it."""
        for names, event in ((self.pinned, "Unpinned"), (self.drained, "Undrained")):
            for model in [name for name in names if name not in declared]:
                names.discard(model)
                self._events.record(event, model=model, message="the model is no longer declared")

    def _put(self, names: set[str], model: str, event: str) -> bool:
        if model in names:
            return False
        names.add(model)
        self._events.record(event, model=model, reason="Requested", message=_TOLD[event])
        return True

    def _take(self, names: set[str], model: str, event: str) -> bool:
        if model not in names:
            return False
        names.discard(model)
        self._events.record(event, model=model, reason="Requested", message=_TOLD[event])
        return True
