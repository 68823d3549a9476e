"""Plugin generations: every revision gets its plugins and chains built aside, and is used whole or not at all.

Plugins whose code, settings and declaration did not change are carried over, open as they are. A changed one that
cannot be loaded or opened leaves its predecessor in place. The old generation is let go when its last request is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from plugin_sdk import Device as DevicePlugin
from plugin_sdk import Interface
from sidecar.control.building import Build, wanted
from sidecar.control.openings import Opening
from sidecar.control.supplied import SuppliedModels
from sidecar.core.manifest import Declaration, Model
from sidecar.mechanism.chain import Chain, Instance
from sidecar.mechanism.devices import Prober
from sidecar.mechanism.listing import Listing, lists_models
from sidecar.mechanism.modes import Health, Mode, NoHealth
from sidecar.mechanism.plugins import Catalog, Loaded
from sidecar.mechanism.services import Host, PluginServices
from sidecar.mechanism.watchdog import Marker

log = logging.getLogger(__name__)

GRACE_S = 600.0  # for requests that are still on an old generation
COMPARED = 200  # names of plugins' models


class Generation:
    """What one revision of the manifests needs at run time.

    behind: plugins that are still of the generation before, and why the newer ones are not in force.
    since: the generation in which each plugin came. supplied: models that no manifest declares, but plugins have.
    """

    def __init__(
        self,
        number: int,
        declaration: Declaration,
        instances: dict[str, Instance],
        behind: dict[str, str],
        since: dict[str, int],
        listings: Sequence[Listing] = (),
    ) -> None:
        self.number = number
        self.behind = behind
        self.since = since
        self.declaration = declaration
        self.instances = instances
        self.leases = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.default_chain = self._chain(declaration.settings.chain)
        self._chains = {name: self._chain(declaration.chain_of(model)) for name, model in declaration.models.items()}
        self._names = {alias: name for name, model in declaration.models.items() for alias in model.aliases}
        self._names |= {name: name for name in declaration.models}
        written = {subject.removeprefix("models.") for subject in declaration.files if subject.startswith("models.")}
        self.supplied = SuppliedModels(listings, {*self._names, *written})  # a faulty manifest keeps its name, too
        self._modes = {
            instance.loaded.provides: instance
            for instance in instances.values()
            if instance.loaded is not None and instance.kind == "interface"
        }
        self.interfaces = {
            mode: Mode(instance, instance.plugin)
            for mode, instance in self._modes.items()
            if isinstance(instance.plugin, Interface) and not instance.problem
        }

    def find(self, requested: str) -> tuple[str, Model] | None:
        """The model of that name or alias."""
        name = self._names.get(requested)
        return None if name is None else (name, self.declaration.models[name])

    def chain(self, model: str) -> Chain:
        """The compiled chain of a model."""
        return self._chains[model]

    def names(self) -> list[str]:
        """Every name and alias that manifests declare."""
        return sorted(self._names)

    def all_names(self) -> list[str]:
        """Those, and some of plugins' own: enough to tell what was meant, since comparing takes its time."""
        return [*self.names(), *self.supplied.names()[:COMPARED]]

    def health(self, model: Model) -> Health:
        """How to find out whether a server of the model can serve: what its first mode says."""
        mode = model.modes[0]
        if mode in self.interfaces:
            return self.interfaces[mode]
        instance = self._modes.get(mode)
        return NoHealth(mode, instance.problem if instance else "no such mode")

    def enter(self) -> None:
        """A request begins on this generation."""
        if not self.leases:
            self.idle.clear()
        self.leases += 1

    def leave(self) -> None:
        """A request is done."""
        self.leases -= 1
        if self.leases == 0:
            self.idle.set()

    def _chain(self, names: tuple[str, ...]) -> Chain:
        return Chain([self.instances.get(name) or _absent(name) for name in names])


class Generations:
    """The generation in force, and those that are on their way out. host: what their plugins are given.

    opened: set when there is something for `take_opened`.
    """

    def __init__(self, host: Host | None = None) -> None:
        self.current: Generation | None = None
        self.host = host or Host()
        self._probers: dict[str, Prober] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._old: list[Generation] = []
        self._services: dict[Instance, PluginServices] = {}
        self._listings: dict[Instance, Listing] = {}
        self.opened = asyncio.Event()
        self._openings: dict[str, Opening] = {}
        self._catalog = Catalog({}, {})

    async def adopt(self, declaration: Declaration, catalog: Catalog) -> Generation:
        """Build the next generation aside and put it in force. If it is cancelled, nothing has changed.

        Plugins that take long to open, or cannot be opened now, are put in force when they are: see `opened`.
        """
        return await self._adopt(declaration, catalog, again=False)

    async def take_opened(self) -> bool:
        """Put in force what has opened since; whether there was anything."""
        if self.current is None or not self.opened.is_set():
            return False
        await self._adopt(self.current.declaration, self._catalog, again=True)
        return True

    async def _adopt(self, declaration: Declaration, catalog: Catalog, *, again: bool) -> Generation:
        before = self.current.instances if self.current else {}
        build = Build(catalog, before, self._openings, self._begin, again=again)
        try:
            instances = await build.run(wanted(declaration, catalog))
        except BaseException:
            await asyncio.gather(*(opening.give_up() for opening in build.begun))
            raise
        self.opened.clear()
        self._take_over_openings(build, instances)
        for instance in instances.values():
            instance.users += 1
        number = self.current.number + 1 if self.current else 1
        since = {
            name: self.current.since[name] if self.current and before.get(name) is instance else number
            for name, instance in instances.items()
        }
        listings = self._listed(declaration, instances, before)
        old, self.current = self.current, Generation(number, declaration, instances, build.behind, since, listings)
        self._catalog = catalog
        if old is not None:
            self._old.append(old)
            self._see_off(self._retire(old), f"retire generation {old.number}")
        return self.current

    def markers(self) -> list[Marker]:
        """The watchdog's marks of all plugins that may run: old, new, and half open. May be called from its thread."""
        return [instance.marker for instance in list(self._services)]

    def probers(self) -> dict[str, Prober]:
        """One prober for each device plugin in force; kept as long as its plugin is."""
        instances = self.current.instances if self.current else {}
        wanted = {
            name: instance.plugin
            for name, instance in instances.items()
            if isinstance(instance.plugin, DevicePlugin) and not instance.problem
        }
        for name in [name for name, prober in self._probers.items() if wanted.get(name) is not prober.plugin]:
            self._probers.pop(name).close()
        for name, plugin in wanted.items():
            loaded = instances[name].loaded
            if name not in self._probers and loaded is not None:
                self._probers[name] = Prober(plugin, loaded.declaration.deadline, instances[name])
        return dict(self._probers)

    async def close(self) -> None:
        """Close every plugin."""
        for prober in self._probers.values():
            prober.close()
        for generation in self._old:
            generation.idle.set()  # nobody is served any more
        await asyncio.gather(*(opening.give_up() for opening in self._openings.values()))
        await asyncio.gather(*self._retiring)
        if self.current is not None:
            await asyncio.gather(*(self._close(instance) for instance in self.current.instances.values()))
        await self.host.close()

    def _listed(
        self, declaration: Declaration, instances: dict[str, Instance], before: dict[str, Instance]
    ) -> list[Listing]:
        """The lists of models that plugins of the default chain have; each is kept as long as its plugin is."""
        found = []
        for name in declaration.settings.chain:
            instance = instances.get(name)
            if instance is None or not lists_models(instance) or (instance.problem and not instance.out):
                continue
            listing = self._listings.get(instance)
            if listing is None:
                previous = self._listings.get(before[name]) if name in before else None
                listing = self._listings[instance] = Listing(instance, previous)
            listing.ask_soon()
            found.append(listing)
        return found

    def _begin(self, loaded: Loaded) -> Opening:
        return Opening(loaded, self._make, self._close, self.opened)

    def _take_over_openings(self, build: Build, instances: dict[str, Instance]) -> None:
        """Those that are in force now are done; the others go on, or are given up."""
        before, self._openings = {*self._openings.values(), *build.begun}, build.left(instances)
        for opening in before - {*self._openings.values()}:
            if opening.instance is None or opening.instance not in instances.values():
                self._see_off(opening.give_up(), f"give up opening {opening.loaded.name}")

    def _see_off(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _retire(self, old: Generation) -> None:
        try:
            async with asyncio.timeout(GRACE_S):
                await old.idle.wait()
        except TimeoutError:
            log.warning("generation %d still has %d requests after %g s", old.number, old.leases, GRACE_S)
        self._old.remove(old)
        for instance in old.instances.values():
            instance.users -= 1
            if instance.users == 0:
                await self._close(instance)

    def _make(self, name: str, loaded: Loaded) -> Instance:
        services = self.host.of(name)
        instance = Instance(name, loaded, services=services)
        services.marker = instance.marker
        self._services[instance] = services
        return instance

    async def _close(self, instance: Instance) -> None:
        """Close a plugin, and let go of what it has kept."""
        if (listing := self._listings.pop(instance, None)) is not None:
            await listing.close()
        await instance.close()
        if (services := self._services.get(instance)) is not None:
            await services.close()
            del self._services[instance]  # only now: until then its code may run


def _absent(name: str) -> Instance:
    return Instance(name, None, "it is not declared")
