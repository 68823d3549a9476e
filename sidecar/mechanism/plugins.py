"""Finds plugin classes by their manifest-declared import path, and checks them and their settings.

Nothing is opened here: a class is imported, its settings are read, and an instance is made when a generation is built.
Found on sys.path first, then in `plugins/` beside the manifests.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from plugin_sdk import Auth, Config, Device, Interface, Plugin, Stats
from plugin_sdk.kinds import settings_of
from sidecar.core.manifest import PluginDeclaration
from sidecar.core.names import did_you_mean
from sidecar.mechanism import checker
from sidecar.mechanism.places import Path as Place

KINDS: tuple[type[Plugin[Any]], ...] = (Device, Interface, Auth, Stats)
CHAIN_KINDS = ("auth", "stats")

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
}

# Built-ins that a chain may name without a [plugins.*] table, because they work without settings.
BUILTIN_CHAIN = {"log": "sidecar.builtin.log:Log"}


class PluginFault(Exception):
    """A plugin that cannot be used. key: the part of its table that is to blame."""

    def __init__(self, message: str, key: Place = ()) -> None:
        super().__init__(message)
        self.key = key


class Loaded(msgspec.Struct, frozen=True):
    """A plugin class with its settings, ready to be made."""

    name: str
    cls: type[Plugin[Any]]
    declaration: PluginDeclaration
    config: Config

    @property
    def kind(self) -> str:
        return self.cls.kind

    @property
    def provides(self) -> str:
        """The device class or mode that manifests use it by."""
        return getattr(self.cls, "provides", "") or self.name

    def make(self) -> Plugin[Any]:
        """A fresh, unopened instance. Whatever the constructor raises is the plugin's own fault."""
        return self.cls(self.config, name=self.name)


class Catalog(msgspec.Struct, frozen=True):
    """What could be loaded, by the name in the manifest, and what could not, with the reason."""

    loaded: dict[str, Loaded]
    faults: dict[str, list[PluginFault]]

    def providing(self, kind: str) -> dict[str, Loaded]:
        """Plugins of a kind by what they provide: device classes, or modes."""
        return {plugin.provides: plugin for plugin in self.loaded.values() if plugin.kind == kind}


def load(declarations: dict[str, PluginDeclaration], folder: Path, instead: Iterable[str] = ()) -> Catalog:
    """Load the built-ins and everything that is declared. Imports code, so it may take long: keep it off the loop.

    instead: built-ins that the manifests replace, be it by a faulty declaration: they must not take its place.
    """
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.append(str(folder))  # at the end: what is installed wins over what lies beside the manifests
        importlib.invalidate_caches()
    stock = {name: path for name, path in (BUILTIN | BUILTIN_CHAIN).items() if name not in set(instead)}
    builtin = {name: PluginDeclaration(import_path=path) for name, path in stock.items()}
    loaded: dict[str, Loaded] = {}
    faults: dict[str, list[PluginFault]] = {}
    for name, declaration in (builtin | declarations).items():
        try:
            loaded[name] = _load(name, declaration)
        except* PluginFault as group:
            faults[name] = [fault for fault in group.exceptions if isinstance(fault, PluginFault)]
    return Catalog(loaded, faults)


def _load(name: str, declaration: PluginDeclaration) -> Loaded:
    cls = _class(declaration.import_path)
    faults: list[PluginFault] = []

    def report(path: Place, message: str, meant: Place | None = None) -> None:  # noqa: ARG001 - checker.Report's shape
        faults.append(PluginFault(message, path))

    try:
        config = checker.read(declaration.config, settings_of(cls), ("config",), report)
    except Exception as error:  # an author's annotations may name what is not there
        raise PluginFault(f"the settings of {cls.__name__} cannot be read: {_blame(error)}", ("import",)) from error
    if cls.kind == "auth" and declaration.on_error == "skip":
        faults.append(PluginFault('an auth plugin that is skipped would open the door: only "deny"', ("on_error",)))
    if cls.kind != "auth" and declaration.on_error == "deny":
        faults.append(PluginFault(f'a {cls.kind} plugin does not admit requests: only "skip"', ("on_error",)))
    if faults or config is None:
        raise ExceptionGroup("faults", faults)
    return Loaded(name, cls, declaration, config)


def _class(import_path: str) -> type[Plugin[Any]]:
    module_name, colon, attribute = import_path.partition(":")
    if not (colon and module_name and attribute.isidentifier()):
        raise PluginFault(f'expected "package.module:Class", got "{import_path}"', ("import",))
    module = _module(module_name)
    found = getattr(module, attribute, None)
    if found is None:
        hint = did_you_mean(attribute, (name for name in vars(module) if not name.startswith("_")))
        raise PluginFault(f'module {module_name} ({module.__file__}) has no "{attribute}"{hint}', ("import",))
    if not (isinstance(found, type) and issubclass(found, KINDS)):
        kinds = ", ".join(kind.__name__ for kind in KINDS)
        raise PluginFault(f"{import_path} is no plugin: it must be a class derived from one of {kinds}", ("import",))
    _check_complete(found)
    return found


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            raise PluginFault(
                f'no module "{name}" on sys.path or in plugins/ beside the manifests', ("import",)
            ) from error
        raise PluginFault(f"importing {name} failed: {_blame(error)}", ("import",)) from error
    except (Exception, SystemExit) as error:  # an author's code may raise anything; told with its line
        raise PluginFault(f"importing {name} failed: {_blame(error)}", ("import",)) from error


def _blame(error: BaseException) -> str:
    """The error with the file and line of the author's code that raised it."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"


def _check_complete(cls: type[Plugin[Any]]) -> None:
    """Refuse a class that leaves out the one method, or the one attribute, that its kind is about."""
    required = {"device": "probe", "auth": "authenticate", "stats": "record", "interface": "endpoints"}[cls.kind]
    base = next(kind for kind in KINDS if issubclass(cls, kind))
    if getattr(cls, required) is getattr(base, required):
        raise PluginFault(f"{cls.__name__} does not define {required}, which a {cls.kind} plugin must", ("import",))
