"""The models that no manifest declares, but a route plugin of the default chain lists: found by name and alias.

A name that a manifest declares is the manifest's; among plugins the first in the chain has it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence

import msgspec

from plugin_sdk import ModelInfo
from sidecar.core.names import listed
from sidecar.mechanism.listing import Listing

log = logging.getLogger(__name__)


class SuppliedModels:
    """What the listings have beside `declared`, the names and aliases of the manifests, be they in force or faulty."""

    def __init__(self, listings: Sequence[Listing], declared: Collection[str]) -> None:
        self.listings = {listing.instance.name: listing for listing in listings}
        self._declared = frozenset(declared)
        self._seen: tuple[tuple[ModelInfo, ...], ...] = ()
        self._models: dict[str, ModelInfo] = {}
        self._names: dict[str, str] = {}
        self._hidden: dict[str, tuple[str, ...]] = {}

    def models(self) -> list[ModelInfo]:
        """Those that clients may ask for, without aliases that mean something else."""
        self._take_over()
        return list(self._models.values())

    def find(self, requested: str) -> ModelInfo | None:
        """The model of that name or alias, if it is listed."""
        self._take_over()
        return self._models.get(self._names.get(requested, ""))

    def may_have(self, requested: str) -> bool:
        """Whether a plugin may be asked where that model is."""
        return requested not in self._declared

    def names(self) -> list[str]:
        """Every name and alias that a client may use."""
        self._take_over()
        return list(self._names)

    def hidden(self, plugin: str) -> tuple[str, ...]:
        """The names that the plugin lists, and that somebody else has."""
        self._take_over()
        return self._hidden.get(plugin, ())

    async def first(self) -> None:
        """Wait a while for lists that have never been asked for."""
        await asyncio.gather(*(listing.first() for listing in self.listings.values()))

    async def fresh(self) -> None:
        """Wait a while for lists that are not fresh."""
        await asyncio.gather(*(listing.fresh() for listing in self.listings.values()))

    def _take_over(self) -> None:
        """Sort out who has which name, if any list has changed."""
        now = tuple(listing.models for listing in self.listings.values())
        if now == self._seen:
            return
        before, self._hidden = self._hidden, {}
        self._seen, self._models, self._names = now, {}, {}
        for plugin, models in zip(self.listings, now, strict=True):
            taken = self._declared | self._names.keys()
            hidden = [name for one in models for name in (one.name, *one.aliases) if name in taken]
            for one in models:
                if one.name not in taken:
                    aliases = tuple(alias for alias in one.aliases if alias not in taken)
                    self._models[one.name] = msgspec.structs.replace(one, aliases=aliases)
                    self._names |= dict.fromkeys((one.name, *aliases), one.name)
            if hidden:
                self._hidden[plugin] = tuple(hidden)
            if tuple(hidden) != before.get(plugin, ()) and hidden:
                log.warning("the route plugin %s lists %s, which others have: they stay theirs", plugin, listed(hidden))
