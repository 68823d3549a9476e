"""Finds plugin classes: by import path, by entry point, and in the files beside the manifests."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import msgspec

from plugin_sdk import Plugin
from plugin_sdk.kinds import settings_of
from sidecar.core.names import did_you_mean, listed
from sidecar.mechanism.fulfil import KINDS, PluginFault, faults_of
from sidecar.mechanism.sources import Library
from sidecar.mechanism.versions import CodeFault, Version, fault_of

GROUP = "sidecar.plugins"
ENTRY = "entry"  # `import = "entry:NAME"`

_NOT_SCANNED = re.compile(r"_.*|test_.*|.*_test|tests|conftest|setup")
_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Found(msgspec.Struct, frozen=True):
    """A class that is what it says. names: what manifests may call it. version: the code that it came from.

    distribution: whose entry point it is, "" if it was found in another way.
    """

    cls: type[Plugin[Any]]
    import_path: str
    names: tuple[str, ...] = ()
    version: Version | None = None
    distribution: str = ""

    @property
    def place(self) -> str:
        """Where it is written."""
        file, line = place_of(self.cls, self.version)
        return f"{file}:{line} ({self.cls.__name__})" if file else self.import_path


class Finds(msgspec.Struct):
    """What one way of finding has found, and by the name that it might have had, what it could not use."""

    found: list[Found]
    faults: dict[str, list[PluginFault]]


def resolve(import_path: str, library: Library) -> Found:
    """The class of `package.module:Class` or `entry:NAME`. Raises PluginFault."""
    module_name, colon, attribute = import_path.partition(":")
    if module_name == ENTRY and colon:
        return _entry(attribute, library)
    if not (colon and module_name and attribute.isidentifier()):
        raise PluginFault(f'expected "package.module:Class", got "{import_path}"', ("import",))
    module, version = module_of(module_name, library)
    found = getattr(module, attribute, None)
    if found is None:
        hint = did_you_mean(attribute, (name for name in vars(module) if not name.startswith("_")))
        raise PluginFault(f'module {module_name} ({module.__file__}) has no "{attribute}"{hint}', ("import",))
    if not (isinstance(found, type) and issubclass(found, KINDS)):
        kinds = ", ".join(kind.__name__ for kind in KINDS)
        raise PluginFault(f"{import_path} is no plugin: it must be a class derived from one of {kinds}", ("import",))
    check(found, version)
    return Found(found, import_path, version=version)


def module_of(name: str, library: Library) -> tuple[ModuleType, Version | None]:
    """A module, installed or else beside the manifests. Raises PluginFault."""
    top, _, below = name.partition(".")
    try:
        if top in library.broken:
            raise library.broken[top]
        if (version := library.find(top)) is not None:
            if below and not version.has(below):
                raise _nowhere(name)
            return version.load(below), version
        return library.installed.load(name)
    except CodeFault as fault:
        if fault.missing and f"{name}.".startswith(f"{fault.missing}."):
            raise _nowhere(name) from None
        raise _fault(fault) from None


def drop_ins(library: Library, declared: set[str]) -> Finds:
    """The plugins of the files beside the manifests. declared: units that are told about elsewhere."""
    finds = Finds([], {})
    for name, broken in library.broken.items():
        _tell(name, broken, library, finds)
    for name, version in library.versions.items():
        if name not in library.broken and not _NOT_SCANNED.fullmatch(name):
            _scan(version, library, finds, tell=name not in declared)
    return finds


def drop_in(name: str, library: Library) -> Finds:
    """The plugins of one file or package beside the manifests. Raises PluginFault if it is none that is scanned."""
    finds = Finds([], {})
    if name in library.broken:
        _tell(name, library.broken[name], library, finds)
    elif name not in library.versions:
        raise PluginFault(f'no module or package "{name}" in {library.folder}; the name must be a Python identifier')
    elif _NOT_SCANNED.fullmatch(name):
        raise PluginFault(f'"{name}" is not looked at: names of tests, setup and those that begin with _ are left out')
    else:
        _scan(library.versions[name], library, finds, tell=True)
    return finds


def entries(library: Library) -> Finds:
    """The plugins that installed distributions offer by name."""
    finds = Finds([], {})
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            found = resolve(point.value.replace(" ", ""), library)
        except Exception as error:  # noqa: BLE001 - looking at an author's class may raise anything
            fault = fault_in(error, "")
            told = PluginFault(f"entry point of {_distribution(point)}: {fault}", file=fault.file, line=fault.line)
            finds.faults.setdefault(point.name, []).append(told)
        else:
            provides = (provided(found.cls),) if provided(found.cls) else ()
            names = provides or (point.name,)
            finds.found.append(msgspec.structs.replace(found, names=names, distribution=_distribution(point)))
    return finds


def check(cls: type[Plugin[Any]], version: Version | None) -> None:
    """Refuse a class that is not what it says. Raises PluginFault, or what a metaclass of the author's raises."""
    hash(cls)  # it stands in sets and dicts from here on
    faults = list(faults_of(cls))
    if faults:
        file, line = place_of(cls, version) if version is not None else ("", 0)
        where = f" ({file}:{line})" if file else ""
        raise PluginFault("; ".join(faults) + where, ("import",), file=file, line=line)


def fault_in(error: Exception, place: str) -> PluginFault:
    """What came of looking at a plugin as a fault of it. place: the file or folder of its author, "" if not known."""
    return error if isinstance(error, PluginFault) else _fault(_code_fault(error, place))


def provided(cls: type[Plugin[Any]]) -> str:
    """The device class or mode that a class provides; "" for other kinds."""
    return str(getattr(cls, "provides", ""))


def needs_settings(cls: type[Plugin[Any]]) -> bool:
    """Whether it cannot be used without a table of its own."""
    settings = settings_of(cls)
    defaults = settings.__struct_defaults__
    return len(defaults) < len(settings.__struct_fields__) or any(value is msgspec.NODEFAULT for value in defaults)


def place_of(cls: type[Plugin[Any]], version: object = None) -> tuple[str, int]:
    """File and line of a class, or of the function that a decorator made it of; ("", 0) if Python cannot tell.

    version: the code that it is of, whose file may be another by now.
    """
    for value in vars(cls).values():
        function = getattr(value, "__func__", None)
        if function is not None and function.__qualname__ == cls.__qualname__:
            return function.__code__.co_filename, function.__code__.co_firstlineno
    text = version.text_of(cls.__module__) if isinstance(version, Version) else None
    try:
        file = text.path if text is not None else inspect.getsourcefile(cls) or ""
        return file, _line_in(text.content if text is not None else Path(file).read_bytes(), cls.__qualname__)
    except (OSError, TypeError, SyntaxError, ValueError):
        return "", 0


def _line_in(content: bytes, qualname: str) -> int:
    """Where a class is written, its decorators with it; 0 if it was made in another way.

    By what it is compiled to, since Python 3.11 cannot make syntax trees in several threads at the same time.
    """
    found, within = 0, [compile(content, "", "exec", dont_inherit=True)]
    while within:
        code = within.pop()
        if code.co_qualname == qualname and not code.co_flags & inspect.CO_OPTIMIZED:  # else it is a function
            found = max(found, code.co_firstlineno)
        within += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    return found


def snake(name: str) -> str:
    """`DatabaseAuth` as `database_auth`."""
    return _WORD.sub("_", name).lower()


def _tell(unit: str, fault: CodeFault, library: Library, finds: Finds) -> None:
    """None of what the unit has offered before can be had any more: that is not the same as that nobody offers it."""
    told = _fault(fault)
    for name in {unit, *library.offered.get(unit, ())}:
        finds.faults[name] = [told]


def _scan(version: Version, library: Library, finds: Finds, *, tell: bool) -> None:
    if rival := library.rival(version.name):
        message = f'"{version.name}" is also installed ({rival}), which wins: rename {version.path}'
        finds.faults[version.name] = [PluginFault(message, file=str(version.path))]
        return
    try:
        module = version.load()
    except CodeFault as fault:
        if tell:
            _tell(version.name, fault, library, finds)
        return
    try:
        _collect(version, module, library, finds)
    except Exception as error:  # noqa: BLE001 - looking at an author's module may raise anything
        _tell(version.name, _code_fault(error, str(version.path)), library, finds)


def _collect(version: Version, module: ModuleType, library: Library, finds: Finds) -> None:
    good: list[type[Plugin[Any]]] = []
    faults: dict[str, list[PluginFault]] = {}
    classes = list(_classes(module, version))
    for cls in classes:
        try:
            check(cls, version)
        except Exception as error:  # noqa: BLE001 - looking at an author's class may raise anything
            fault = fault_in(error, str(version.path))
            if not any(other is not cls and issubclass(other, cls) for other in classes):  # a base need not be whole
                faults[snake(cls.__name__)] = [fault]
        else:
            good.append(cls)
    found = [Found(cls, f"{version.name}:{cls.__name__}", _names(cls, good, version.name), version) for cls in good]
    now = {name for one in found for name in one.names}
    before = library.offered.get(version.name, ()) if faults else ()
    told = [fault for each in faults.values() for fault in each]
    faults |= {name: told for name in before if name not in now | faults.keys()}
    library.offered[version.name] = (*now, *(name for name in before if name not in now))
    finds.found += found
    finds.faults |= faults


def _names(cls: type[Plugin[Any]], all_: list[type[Plugin[Any]]], unit: str) -> tuple[str, ...]:
    """What it provides; for one that goes into chains its own name, and its file's if that has no other such."""
    if provided(cls):
        return (provided(cls),)
    alone = [one for one in all_ if not provided(one)] == [cls]
    return tuple(dict.fromkeys((snake(cls.__name__), *((unit,) if alone else ()))))


def _classes(module: ModuleType, version: Version) -> Iterator[type[Plugin[Any]]]:
    """The plugins that are written in the unit, not only imported by it."""
    seen = set()
    for name, value in list(vars(module).items()):
        if name.startswith("_") or not (isinstance(value, type) and issubclass(value, KINDS)) or value in seen:
            continue
        if value.__module__.partition(".")[0] == version.private:
            seen.add(value)
            yield value


def _entry(name: str, library: Library) -> Found:
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        known = f"; installed: {listed(points)}"
        raise PluginFault(f'no entry point "{name}" of {GROUP}{did_you_mean(name, points)}{known}', ("import",))
    return resolve(points[name].value.replace(" ", ""), library)


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "?"


def _nowhere(name: str) -> PluginFault:
    return PluginFault(f'no module "{name}" on sys.path or in plugins/ beside the manifests', ("import",))


def _code_fault(error: Exception, place: str) -> CodeFault:
    return fault_of(error, "it cannot be looked at", place)


def _fault(fault: CodeFault) -> PluginFault:
    return PluginFault(str(fault), ("import",), file=fault.file, line=fault.line, trace=fault.trace)
