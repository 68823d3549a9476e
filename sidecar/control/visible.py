"""Which models a caller is told of: those that it may use, as far as that is known (`Principal.may_use`)."""

from __future__ import annotations

from plugin_sdk import ModelInfo, Principal
from sidecar.control.generations import Generation
from sidecar.core.manifest import Model
from sidecar.core.names import near


class Visible:
    """A generation's models as one caller sees them."""

    def __init__(self, generation: Generation, principal: Principal) -> None:
        self._generation = generation
        self._principal = principal

    def declared(self) -> list[tuple[str, Model]]:
        """Those that manifests declare, in their order."""
        models = self._generation.declaration.models.items()
        return [(name, model) for name, model in models if self._principal.may_use(name, *model.aliases)]

    def supplied(self) -> list[ModelInfo]:
        """Those that plugins list besides."""
        models = self._generation.supplied.models()
        return [model for model in models if self._principal.may_use(model.name, *model.aliases)]

    def find(self, requested: str) -> tuple[str, Model] | ModelInfo | None:
        """The model of that name or alias: a manifest's or else a plugin's; None also for one that is not seen."""
        declared = self._generation.find(requested)
        if declared is not None:
            return declared if self._principal.may_use(declared[0], *declared[1].aliases) else None
        supplied = self._generation.supplied.find(requested)
        if supplied is not None and self._principal.may_use(supplied.name, *supplied.aliases):
            return supplied
        return None

    def near(self, wanted: str) -> list[str]:
        """Names that may have been meant."""
        return near(wanted, (name for name in self._generation.all_names() if self.find(name) is not None))
