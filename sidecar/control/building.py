"""The plugins of the next generation: what did not change as it is, the rest anew; and what stays if that fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping

from sidecar.control.openings import Opening
from sidecar.core.manifest import Declaration
from sidecar.core.names import an
from sidecar.mechanism.instance import Instance
from sidecar.mechanism.plugins import CHAIN_KINDS, Catalog, Loaded

log = logging.getLogger(__name__)

PATIENCE_S = 5.0  # for all that begin to open, side by side


class Build:
    """Finds the plugins of one generation. behind: those that are still the ones before, and why.

    openings: of those that are, or were, to be opened, by name; both what there was before and what is begun here.
    again: nothing has changed but that something has opened.
    """

    def __init__(
        self,
        catalog: Catalog,
        before: Mapping[str, Instance],
        openings: Mapping[str, Opening],
        begin: Callable[[Loaded], Opening],
        *,
        again: bool,
    ) -> None:
        self.behind: dict[str, str] = {}
        self.begun: list[Opening] = []
        self.openings = dict(openings)
        self._catalog = catalog
        self._before = before
        self._begin = begin
        self._again = again
        self._opening: dict[str, Opening] = {}

    async def run(self, names: Iterable[str]) -> dict[str, Instance]:
        """The plugins of these names. What takes long to open is not waited for."""
        chosen = {name: self._settled(name) for name in names}
        self._keep_together(chosen)
        for name in [name for name, instance in chosen.items() if instance is None]:
            self._open(name, self._catalog.loaded[name])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                for opening in self.begun:  # those before have had their time
                    await opening.tried.wait()
        chosen |= {name: self._opened(name) for name in self._opening}
        self._keep_together(chosen)
        return {name: instance for name, instance in chosen.items() if instance is not None}

    def left(self, instances: Mapping[str, Instance]) -> dict[str, Opening]:
        """The openings that go on once `instances` are in force."""
        return {
            name: opening
            for name, opening in self.openings.items()
            if (opening is self._opening.get(name) and opening.instance is not instances[name])
            or opening.stand_in is instances.get(name)
        }

    def _settled(self, name: str) -> Instance | None:
        """What there is without opening anything; None if there is something to be opened."""
        before, loaded = self._before.get(name), self._catalog.loaded.get(name)
        if before is not None:
            if loaded is not None and self._serves(before) and _same(before.loaded, loaded):
                if why := self._faults(name):  # of a newer version of it, which is not in force
                    self.behind[name] = why
                return before
            if why := self._is_no_successor(name, before, loaded):
                return self._stays(name, before, why)
        if loaded is None:
            faulty = Instance(name, None, self._faults(name) or "its declaration is faulty")
            faulty.last_error = "\n".join(fault.trace for fault in self._catalog.faults.get(name, ()) if fault.trace)
            return faulty
        return None

    def _keep_together(self, chosen: dict[str, Instance | None]) -> None:
        """Plugins of one file or package share its code: where one stays as it was, so do those that were beside it."""
        codes = {
            loaded.unit: (loaded.code, name)
            for name in self.behind
            if (loaded := self._before[name].loaded) is not None and loaded.unit
        }
        for name, instance in chosen.items():
            before, loaded = self._before.get(name), self._catalog.loaded.get(name)
            if before is None or before.loaded is None or loaded is None or before.problem or instance is before:
                continue
            code, first = codes.get(loaded.unit, (loaded.code, ""))
            if loaded.code is not code and before.loaded.code is code:
                chosen[name] = self._stays(name, before, f"it stays with {first}, which is of the same file")

    def _serves(self, before: Instance) -> bool:
        """Whether there is no reason to make it anew. One that is left out has another chance with a new revision."""
        return not before.problem or (before.out and self._again)

    def _open(self, name: str, loaded: Loaded) -> None:
        opening = self.openings.get(name)
        if opening is None or opening.over or not _same(opening.loaded, loaded):
            opening = self._begin(loaded)
            self.begun.append(opening)
        elif not self._again:
            opening.hurry()
        self._opening[name] = self.openings[name] = opening

    def _opened(self, name: str) -> Instance:
        opening, before = self._opening[name], self._before.get(name)
        if opening.instance is not None:
            return opening.instance
        if before is not None and not before.problem:
            return self._stays(name, before, opening.problem)
        return opening.stand_in

    def _is_no_successor(self, name: str, before: Instance, loaded: Loaded | None) -> str:
        """Why it cannot even be tried in the other's place, be that usable or not; "" if it can.

        Chains are made of names: were one to mean another kind, a chain could lose its auth plugin unnoticed.
        """
        if before.loaded is None:
            return ""
        if loaded is None:
            return self._faults(name) or "its declaration is faulty"
        if loaded.kind != before.kind:
            return f"it is {an(loaded.kind)} plugin now, and was {an(before.kind)} plugin: give it a name of its own"
        return ""

    def _stays(self, name: str, before: Instance, why: str) -> Instance:
        self.behind[name] = why
        log.warning("plugin %s: %s; the one before stays in force", name, why)
        opening = self.openings.get(name)
        opened = opening.instance if opening is not None and opening.stand_in is before else None
        return opened or before

    def _faults(self, name: str) -> str:
        return "; ".join(str(fault) for fault in self._catalog.faults.get(name, ()))


def wanted(declaration: Declaration, catalog: Catalog) -> list[str]:
    """What is to be opened: all that is declared; what provides something; and of the rest, what stands in a chain."""
    chains = (declaration.settings.chain, *(declaration.chain_of(model) for model in declaration.models.values()))
    chained = {name for chain in chains for name in chain}
    loaded = [name for name, plugin in catalog.loaded.items() if plugin.kind not in CHAIN_KINDS or name in chained]
    return list(dict.fromkeys([*loaded, *catalog.faults, *declaration.plugins]))


def _same(one: Loaded | None, other: Loaded) -> bool:
    return one is not None and (one.cls, one.declaration, one.config) == (other.cls, other.declaration, other.config)
