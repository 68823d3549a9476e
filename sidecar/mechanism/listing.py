"""The models that a route plugin lists by itself: asked for when somebody wants to know, and kept for a while.

Requests never wait for the list, but for the first one. One that cannot be had anew leaves the one before in place.
"""

from __future__ import annotations

import asyncio

from plugin_sdk import ModelInfo, Route
from sidecar.mechanism import results
from sidecar.mechanism.instance import Instance

FRESH_S = 1.0  # for which a list is not asked for again, whether it came or not
PATIENCE_S = 1.0  # for whoever wants a fresh list; then the one before has to do


def lists_models(instance: Instance) -> bool:
    """Whether the plugin may have models of its own; also one that cannot be used."""
    cls = instance.loaded.cls if instance.loaded is not None else None
    return cls is not None and issubclass(cls, Route) and cls.models is not Route.models


class Listing:
    """The models of one plugin, which is open. problem: why the latest list could not be had, "" if it could.

    before: the list of the plugin's predecessor, which has to do until there is one.
    """

    def __init__(self, instance: Instance, before: Listing | None = None) -> None:
        self.instance = instance
        self.problem = ""
        self._models = before.models if before is not None else ()
        self._known: bool = before is not None and before._known  # whether it was tried at all
        self._call = instance.bind("models")
        self._due = 0.0  # on the loop's clock
        self._asking: asyncio.Task[None] | None = None

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """As last listed. A plugin that is left out has none."""
        return () if self.instance.out else self._models

    def ask_soon(self) -> None:
        """Have the list asked for, unless it is fresh."""
        loop = asyncio.get_running_loop()
        if self._asking is None and not self.instance.out and loop.time() >= self._due:
            self._asking = loop.create_task(self._ask(), name=f"models of {self.instance.name}")

    async def first(self) -> None:
        """Have it asked for if it is not fresh, and wait if it never was: for a while."""
        self.ask_soon()
        if not self._known:
            await self._wait()

    async def fresh(self) -> None:
        """Have it asked for if it is not fresh, and wait for that: for a while."""
        self.ask_soon()
        await self._wait()

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _wait(self) -> None:
        if self._asking is not None:
            await asyncio.wait((self._asking,), timeout=PATIENCE_S)

    async def _ask(self) -> None:
        try:
            self._models = results.models(await self._call())
            self.problem = ""
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; taken note of
            self.problem = f"{type(error).__name__}: {error}"
            self.instance.went_wrong("models", error)
        finally:
            self._known = True
            self._asking = None
            self._due = asyncio.get_running_loop().time() + FRESH_S
