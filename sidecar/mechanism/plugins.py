"""The catalog of plugins: all that can be used, by name, with its settings; and what cannot, and why.

A name comes from `[plugins.NAME]` first, then from what is installed (entry points), then from the files beside the
manifests; two that want the same name are told, with both places, and neither has it. Nothing is opened here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from plugin_sdk import Config, Plugin
from plugin_sdk.kinds import settings_of
from plugin_sdk.services import Services
from sidecar.core.manifest import PluginDeclaration, balancing
from sidecar.core.names import an
from sidecar.mechanism import checker, finding
from sidecar.mechanism.finding import Found
from sidecar.mechanism.fulfil import KINDS, PluginFault
from sidecar.mechanism.places import Path as Place
from sidecar.mechanism.sources import Library
from sidecar.mechanism.versions import Version, fault_of

__all__ = [
    "BALANCING",
    "BUILTIN",
    "BUILTIN_CHAIN",
    "CHAIN_KINDS",
    "KINDS",
    "STRATEGIES",
    "WITH_SETTINGS",
    "Catalog",
    "Loaded",
    "PluginFault",
    "fit",
    "load",
]

CHAIN_KINDS = ("auth", "route", "filter", "stats")

# Always there: device classes and interface modes need no declaration.
BUILTIN = {
    "nvidia": "sidecar.builtin.nvidia:Nvidia",
    "amd": "sidecar.builtin.amd:Amd",
    "cpu": "sidecar.builtin.cpu:Cpu",
    "chat": "sidecar.builtin.interfaces:Chat",
    "base": "sidecar.builtin.interfaces:Base",
    "embedding": "sidecar.builtin.interfaces:Embedding",
    "reranker": "sidecar.builtin.interfaces:Reranker",
    "messages": "sidecar.builtin.interfaces:Messages",
    "responses": "sidecar.builtin.interfaces:Responses",
    "transcription": "sidecar.builtin.interfaces:Transcription",
    "speech": "sidecar.builtin.interfaces:Speech",
    "image": "sidecar.builtin.interfaces:Image",
    "classifier": "sidecar.builtin.interfaces:Classifier",
    "realtime": "sidecar.builtin.interfaces:Realtime",
}

# Built-ins that a chain may name without a [plugins.*] table, because they work without settings.
BUILTIN_CHAIN = {
    "log": "sidecar.builtin.log:Log",
    "usage": "sidecar.builtin.usage:Usage",
    "limits": "sidecar.builtin.limits:Limits",
    "balance": "sidecar.builtin.balance:Balance",
}

# Built-ins that a manifest has to name by import path, since they need settings.
WITH_SETTINGS = {
    "keys": "sidecar.builtin.keys:StaticKeys",
    "jwt": "sidecar.builtin.jwt:Jwt",
    "params": "sidecar.builtin.params:Params",
}

# What `balance = "..."` of a model may say, and the route plugins that do so.
STRATEGIES = ("round_robin", "least_busy", "weighted", "failover")
BALANCING = {balancing(strategy): BUILTIN_CHAIN["balance"] for strategy in STRATEGIES}


class Loaded(msgspec.Struct, frozen=True):
    """A plugin class with its settings, ready to be made. code: the version of its source, which lives as long.

    distribution: whose entry point it was found by, "" if in another way.
    """

    name: str
    cls: type[Plugin[Any]]
    declaration: PluginDeclaration
    config: Config
    code: object = None
    distribution: str = ""

    @property
    def kind(self) -> str:
        return self.cls.kind

    @property
    def provides(self) -> str:
        """The device class or mode that manifests use it by."""
        return finding.provided(self.cls) or self.name

    @property
    def place(self) -> str:
        """The file or folder of its code; "" if that is not known."""
        if isinstance(self.code, Version):
            return str(self.code.path)
        return getattr(sys.modules.get(self.cls.__module__), "__file__", None) or ""

    @property
    def unit(self) -> str:
        """The file or package that is read anew when it changes; "" if its code is not."""
        return self.code.name if isinstance(self.code, Version) else ""

    def make(self, services: Services | None = None) -> Plugin[Any]:
        """A fresh, unopened instance. Whatever the constructor raises is the plugin's own fault."""
        return self.cls(self.config, name=self.name, services=services)


class Catalog(msgspec.Struct, frozen=True):
    """What could be loaded, by the name in the manifest, and what could not, with the reason.

    unset: the import paths of plugins that were found, but need a table of their own for their settings.
    """

    loaded: dict[str, Loaded]
    faults: dict[str, list[PluginFault]]
    unset: dict[str, str] = {}

    def providing(self, kind: str) -> dict[str, Loaded]:
        """Plugins of a kind by what they provide: device classes, or modes."""
        return {plugin.provides: plugin for plugin in self.loaded.values() if plugin.kind == kind}


def load(
    declarations: Mapping[str, PluginDeclaration],
    folder: Path,
    instead: Iterable[str] = (),
    library: Library | None = None,
) -> Catalog:
    """Load the built-ins and all that is declared or found. Imports code, so it may take long: keep it off the loop.

    instead: built-ins that the manifests replace, be it by a faulty declaration: they must not take its place.
    library: what was read before, so that what has not changed stays as it is.
    """
    library = Library() if library is None else library
    library.read(folder)
    taken = {*declarations, *instead}
    stock = {name: path for name, path in (BUILTIN | BUILTIN_CHAIN).items() if name not in taken}
    builtin = {name: PluginDeclaration(import_path=path) for name, path in stock.items()}
    for strategy in STRATEGIES:
        declaration = PluginDeclaration(import_path=BUILTIN_CHAIN["balance"], config={"policy": strategy})
        builtin[balancing(strategy)] = declaration
    catalog = Catalog({}, {}, {})
    declared: set[object] = set()
    for name, declaration in (builtin | dict(declarations)).items():
        with _Faults(name, catalog):
            found = finding.resolve(declaration.import_path, library)
            declared.add(found.cls)
            catalog.loaded[name] = fit(name, declaration, found)
    _tell_providers_apart(catalog, stock)
    declared_units = {
        declaration.import_path.partition(":")[0].partition(".")[0] for declaration in declarations.values()
    }
    finds = [finding.entries(library), finding.drop_ins(library, declared_units)]
    for name, faults in (item for one in finds for item in one.faults.items()):
        if name not in taken:
            catalog.faults.setdefault(name, []).extend(faults)
        elif not any(_unit(fault.file, folder) in declared_units for fault in faults):  # else told with the table
            catalog.faults.setdefault(f"{folder.name}/{name}", []).extend(faults)
    claims: dict[str, list[Found]] = {}
    for found in (one for each in finds for one in each.found if one.cls not in declared):
        for name in found.names:
            claims.setdefault(name, []).append(found)
    for name, claimants in claims.items():
        with _Faults(name, catalog):
            _admit(name, claimants, catalog, taken)
    return catalog


def _tell_providers_apart(catalog: Catalog, stock: Mapping[str, str]) -> None:
    """A declared plugin stands in for the built-in that provides the same; two declared ones are one too many."""
    for kind in ("device", "interface"):
        providers: dict[str, list[Loaded]] = {}
        for plugin in catalog.loaded.values():
            if plugin.kind == kind:
                providers.setdefault(plugin.provides, []).append(plugin)
        for provides, plugins in providers.items():
            declared = [plugin for plugin in plugins if plugin.name not in stock]
            for plugin in plugins if declared else ():
                if plugin not in declared:
                    del catalog.loaded[plugin.name]
            for plugin in declared if len(declared) > 1 else ():
                del catalog.loaded[plugin.name]
                others = ", ".join(f"[plugins.{one.name}]" for one in declared if one is not plugin)
                message = f'provides the {kind} "{provides}", and so does {others}'
                catalog.faults.setdefault(plugin.name, []).append(PluginFault(message, ("import",)))


def _unit(file: str, folder: Path) -> str:
    """The name of the file or package beside the manifests that a file belongs to."""
    path = Path(file)
    return path.relative_to(folder).parts[0].removesuffix(".py") if path.is_relative_to(folder) else ""


class _Faults:
    """Files the faults that come out of a block under a name."""

    def __init__(self, name: str, catalog: Catalog) -> None:
        self._name = name
        self._faults = catalog.faults

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> bool:
        faults = error.exceptions if isinstance(error, ExceptionGroup) else (error,)
        told = [finding.fault_in(fault, "") for fault in faults if isinstance(fault, Exception)]
        if told:
            self._faults.setdefault(self._name, []).extend(fault.with_traceback(None) for fault in told)
        return bool(told)


def _admit(name: str, claimants: list[Found], catalog: Catalog, taken: set[str]) -> None:
    """Let a plugin that was found have its name, unless it is another's. Raises PluginFault."""
    classes = dict.fromkeys(found.cls for found in claimants)
    holder = catalog.loaded.get(name) or _provider(name, catalog)
    if holder is not None:
        path = holder.declaration.import_path
        if name in taken:
            del catalog.loaded[name]  # which of them was meant, nobody can tell
        raise _clash(name, [path, *(found.place for found in claimants)], claimants[0])
    if name in taken:
        return  # by a declaration that is faulty
    if len(classes) > 1:
        raise _clash(name, [found.place for found in claimants], claimants[0])
    [found] = claimants[:1]
    if finding.needs_settings(found.cls):
        catalog.unset[name] = found.import_path
        return
    catalog.loaded[name] = fit(name, PluginDeclaration(import_path=found.import_path), found)


def _provider(name: str, catalog: Catalog) -> Loaded | None:
    """The device or interface plugin of another name that provides it."""
    return catalog.providing("device").get(name) or catalog.providing("interface").get(name)


def _clash(name: str, places: list[str], found: Found) -> PluginFault:
    file, line = finding.place_of(found.cls, found.version)
    message = f'"{name}" is more than one plugin: {" and ".join(places)}; rename one of them'
    return PluginFault(message, ("import",), file=file, line=line)


def fit(name: str, declaration: PluginDeclaration, found: Found) -> Loaded:
    """A class that was found, with its settings. Raises PluginFault, or an ExceptionGroup of them."""
    cls = found.cls
    faults: list[PluginFault] = []

    def report(path: Place, message: str, meant: Place | None = None) -> None:  # noqa: ARG001 - checker.Report's shape
        faults.append(PluginFault(message, path))

    try:
        config = checker.read(declaration.config, settings_of(cls), ("config",), report)
    except Exception as error:  # an author's annotations may name what is not there
        told = fault_of(error, f"the settings of {cls.__name__} cannot be read", "")
        raise PluginFault(str(told), ("import",), trace=told.trace) from error
    if declaration.disable_after < 1:
        faults.append(PluginFault("expected 1 or more failures in a row", ("disable_after",)))
    if cls.kind == "auth" and declaration.on_error not in (None, "deny"):
        faults.append(PluginFault('an auth plugin that is skipped would open the door: only "deny"', ("on_error",)))
    if cls.kind == "stats" and declaration.on_error == "deny":
        faults.append(PluginFault('a stats plugin does not admit requests: only "skip"', ("on_error",)))
    if cls.kind in ("device", "interface") and declaration.on_error not in (None, "skip"):
        why = "is asked again and again, whatever it said before"
        faults.append(PluginFault(f'{an(cls.kind)} plugin {why}: only "skip"', ("on_error",)))
    if faults or config is None:
        raise ExceptionGroup("faults", faults)
    return Loaded(name, cls, declaration, config, found.version, found.distribution)
