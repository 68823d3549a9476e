"""Plugin generations: every revision gets its plugins and chains built aside, and is used whole or not at all.

Plugins whose code, settings and declaration did not change are carried over, open as they are. A changed one that
cannot be loaded or opened leaves its predecessor in place. The old generation is let go when its last request is done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from plugin_sdk import Device as DevicePlugin
from plugin_sdk import Interface, Upstream
from sidecar.control.supplied import SuppliedModels
from sidecar.core.manifest import Declaration, Model
from sidecar.core.names import an
from sidecar.mechanism.chain import Chain, Instance
from sidecar.mechanism.devices import Prober
from sidecar.mechanism.listing import Listing, lists_models
from sidecar.mechanism.modes import Mode
from sidecar.mechanism.plugins import CHAIN_KINDS, Catalog, Loaded
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

    def ready(self, model: Model) -> Callable[[Upstream], Awaitable[bool]]:
        """How to find out whether a server of the model can serve: the probe of its first mode."""
        mode = self.interfaces.get(model.modes[0])
        if mode is None:
            instance = self._modes.get(model.modes[0])
            why = instance.problem if instance else "no such mode"

            async def broken(_: Upstream) -> bool:
                raise OSError(f"the interface plugin of mode {model.modes[0]} is not available: {why}")

            return broken
        return mode.ready

    def enter(self) -> None:
        """A request begins on this generation."""
        self.leases += 1
        self.idle.clear()

    def leave(self) -> None:
        """A request is done."""
        self.leases -= 1
        if self.leases == 0:
            self.idle.set()

    def _chain(self, names: tuple[str, ...]) -> Chain:
        return Chain([self.instances.get(name) or _absent(name) for name in names])


class Generations:
    """The generation in force, and those that are on their way out. host: what their plugins are given."""

    def __init__(self, host: Host | None = None) -> None:
        self.current: Generation | None = None
        self.host = host or Host()
        self._probers: dict[str, Prober] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._old: list[Generation] = []
        self._services: dict[Instance, PluginServices] = {}
        self._listings: dict[Instance, Listing] = {}

    async def adopt(self, declaration: Declaration, catalog: Catalog) -> Generation:
        """Build the next generation aside and put it in force. If it is cancelled, nothing has changed."""
        before = self.current.instances if self.current else {}
        build = _Build(catalog, self._make, self._close)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {
                    name: group.create_task(build.instance(name, before.get(name)), name=f"open plugin {name}")
                    for name in _wanted(declaration, catalog)
                }
        except BaseException:
            await asyncio.gather(*(self._close(instance) for instance in build.fresh))
            raise
        instances = {name: task.result() for name, task in tasks.items()}
        for instance in instances.values():
            instance.users += 1
        number = self.current.number + 1 if self.current else 1
        since = {
            name: self.current.since[name] if self.current and before.get(name) is instance else number
            for name, instance in instances.items()
        }
        listings = self._listed(declaration, instances, before)
        old, self.current = self.current, Generation(number, declaration, instances, build.behind, since, listings)
        if old is not None:
            self._old.append(old)
            task = asyncio.create_task(self._retire(old), name=f"retire generation {old.number}")
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
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


class _Build:
    """Makes the plugins of one generation. fresh: those that did not run before."""

    def __init__(
        self,
        catalog: Catalog,
        make: Callable[[str, Loaded], Instance],
        close: Callable[[Instance], Awaitable[None]],
    ) -> None:
        self.behind: dict[str, str] = {}
        self.fresh: list[Instance] = []
        self._catalog = catalog
        self._make = make
        self._close = close

    async def instance(self, name: str, before: Instance | None) -> Instance:
        """The plugin as it was if nothing about it changed, else a new one; the old one again if the new one fails."""
        loaded = self._catalog.loaded.get(name)
        usable = before is not None and not before.problem
        if before is not None and usable and loaded is not None and _same(before.loaded, loaded):
            if why := self._faults(name):  # of a newer version of it, which is not in force
                self.behind[name] = why
            return before
        if before is not None and (why := self._is_no_successor(name, before, loaded)):
            return self._stays(name, before, why)
        fresh = await self._fresh(name, loaded)
        if before is None or not usable or not fresh.problem:
            return fresh
        self.fresh.remove(fresh)
        await self._close(fresh)
        return self._stays(name, before, fresh.problem)

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
        log.error("plugin %s: %s; the one before stays in force", name, why)
        return before

    async def _fresh(self, name: str, loaded: Loaded | None) -> Instance:
        if loaded is None:
            fresh = Instance(name, None, self._faults(name) or "its declaration is faulty")
            fresh.last_error = "\n".join(fault.trace for fault in self._catalog.faults.get(name, ()) if fault.trace)
        else:
            fresh = self._make(name, loaded)
        self.fresh.append(fresh)
        await fresh.open()
        return fresh

    def _faults(self, name: str) -> str:
        return "; ".join(str(fault) for fault in self._catalog.faults.get(name, ()))


def _wanted(declaration: Declaration, catalog: Catalog) -> list[str]:
    """What is to be opened: all that is declared; what provides something; and of the rest, what stands in a chain."""
    chains = (declaration.settings.chain, *(declaration.chain_of(model) for model in declaration.models.values()))
    chained = {name for chain in chains for name in chain}
    loaded = [name for name, plugin in catalog.loaded.items() if plugin.kind not in CHAIN_KINDS or name in chained]
    return list(dict.fromkeys([*loaded, *catalog.faults, *declaration.plugins]))


def _same(one: Loaded | None, other: Loaded) -> bool:
    return one is not None and (one.cls, one.declaration, one.config) == (other.cls, other.declaration, other.config)


def _absent(name: str) -> Instance:
    return Instance(name, None, "it is not declared")
