"""The code of plugins beside the manifests, as files that are read whole, and compiled from what was read.

Each file or package of `plugins/` is a unit. A unit that has changed, or that imports one that has, gets a new version,
under a module name of its own (`doors@7`), beside the one that still serves. Compiled files (`.pyc`) are never used. A
version is forgotten when nothing that was made from it is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import sys
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import msgspec

from sidecar.mechanism.versions import CodeFault, Text, Version, import_within, installed_at

Signature = tuple[tuple[str, int, int, int], ...]

_Stamp = tuple[int, int, int]

_ATTEMPTS = 5
_OURS = ("sidecar", "plugin_sdk")
_ENDINGS = (".py", *EXTENSION_SUFFIXES)


class Unit(msgspec.Struct, frozen=True):
    """One file or package. texts: by the name below the unit's ("" is its own). extensions: compiled modules in it."""

    name: str
    path: Path
    texts: dict[str, Text]
    extensions: tuple[str, ...]
    digest: str


class Library:
    """The versions of everything below one folder. `read` it again to see what has changed.

    signature: of the files that were read. broken: units that cannot be had, and why.
    offered: the names of plugins that a unit had when it was last sound. installed: what does not lie in the folder.
    """

    def __init__(self) -> None:
        self.versions: dict[str, Version] = {}
        self.signature: Signature = ()
        self.folder = Path()
        self.broken: dict[str, CodeFault] = {}
        self.offered: dict[str, tuple[str, ...]] = {}
        self.installed = Installed()

    def read(self, folder: Path) -> None:
        """Take what is there now. What did not change keeps its version. Reads files: keep it off the loop."""
        self.folder = folder
        units, self.signature = _read(folder)
        self.broken = {}
        anew = {name for name, unit in units.items() if self._is_new(unit)} | (self.versions.keys() - units.keys())
        while more := {name for name, version in self.versions.items() if name not in anew and version.needs(anew)}:
            anew |= more
        before, self.versions = self.versions, {}
        self.offered = {name: names for name, names in self.offered.items() if name in units}
        for name, unit in units.items():
            old = before.get(name)
            stays = old is not None and old.module is not None and bool(unit.extensions)
            if name in anew and stays:
                self.broken[name] = _needs_restart(unit)
            self.versions[name] = old if old is not None and (stays or name not in anew) else self._version(unit)

    def find(self, name: str) -> Version | None:
        """The unit of that name, unless something of the same name is installed, which then wins."""
        version = self.versions.get(name)
        return None if version is None or self.rival(name) else version

    def rival(self, name: str) -> str:
        """Where else a module of a unit's name is to be found; "" if nowhere."""
        place = installed_at(name)
        return "" if Path(place).is_relative_to(self.folder) else place  # the folder itself may stand in PYTHONPATH

    def _is_new(self, unit: Unit) -> bool:
        version = self.versions.get(unit.name)
        return version is None or version.digest != unit.digest or (version.fault is not None and not version.hung)

    def _version(self, unit: Unit) -> Version:
        return Version(unit.name, unit.path, unit.texts, digest=unit.digest, find=self.find)


class Installed:
    """Packages on `sys.path`. They are imported as ever, until somebody asks for those that have changed."""

    def __init__(self) -> None:
        self._stamps: dict[str, dict[str, _Stamp]] = {}  # by package, of the files that it was loaded from
        self._loaded: set[str] = set()
        self._versions: dict[str, Version] = {}
        self._faults: dict[str, CodeFault] = {}

    def load(self, name: str) -> tuple[ModuleType, Version | None]:
        """The module, and the version that it is of if it was read again. Raises CodeFault."""
        top, _, below = name.partition(".")
        if top in self._faults:
            raise self._faults[top]
        if (version := self._versions.get(top)) is not None:
            return version.load(below), version
        module = sys.modules.get(name)
        if module is None or getattr(module.__spec__, "_initializing", False):  # as an import that hangs leaves it
            importlib.invalidate_caches()
            module = import_within(name, "")
        elif name in self._loaded:
            return module, None
        self._loaded.add(name)
        if top not in _OURS and top not in sys.stdlib_module_names:
            self._stamps[top] = _stamps(top) | self._stamps.get(top, {})
        return module, None

    def reread(self) -> None:
        """Look for those that have changed on disk; they get versions, as units do, if they are Python and no more."""
        self._faults = {}
        for top, before in self._stamps.items():
            module = sys.modules.get(top)
            if module is None or not module.__file__:
                continue
            path = Path(module.__file__)
            if _stamps(top) == before and top not in self._versions:
                continue
            self._take(top, path.parent if path.name == "__init__.py" else path)

    def _take(self, top: str, path: Path) -> None:
        try:
            unit = unit_of(top, path)
        except OSError as error:
            self._faults[top] = CodeFault(f"{path} cannot be read: {error}", file=str(path))
            return
        before = self._versions.get(top)
        if before is not None and before.digest == unit.digest and before.fault is None:
            return
        if unit.extensions or (path.suffix != ".py" and not path.is_dir()):
            self._faults[top] = _needs_restart(unit)
            return
        self._versions[top] = Version(top, path, unit.texts, digest=unit.digest, find=lambda _: None)


def signature(folder: Path) -> Signature:
    """Changes whenever a file of a plugin is edited, replaced, added or removed."""
    return tuple(sorted(_entries(folder)))


def unit_of(name: str, path: Path) -> Unit:
    """A file or a package, read. Raises OSError."""
    texts: dict[str, Text] = {}
    extensions: list[str] = []
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(_files(path)):
        below = file.relative_to(path) if path.is_dir() else Path("__init__.py")
        if not file.name.endswith(".py"):
            extensions.append(file.name)
            stat = file.stat()
            digest.update(f"{below}:{stat.st_mtime_ns}:{stat.st_size}:".encode("utf-8", "surrogateescape"))
            continue
        content = file.read_bytes()
        digest.update(f"{below}:{len(content)}:".encode("utf-8", "surrogateescape"))
        digest.update(content)
        is_package = below.name == "__init__.py"
        dotted = ".".join((below.parent if is_package else below.with_suffix("")).parts)
        texts[dotted] = Text(str(file), content, is_package and path.is_dir())
    if path.is_dir():
        for folder in {".".join(dotted.split(".")[:end]) for dotted in texts for end in range(dotted.count(".") + 1)}:
            texts.setdefault(
                folder, Text(str(path.joinpath(*folder.split("."))), b"", package=True)
            )  # without __init__
        texts.setdefault("", Text(str(path), b"", package=True))
    return Unit(name, path, texts, tuple(extensions), digest.hexdigest())


def _needs_restart(unit: Unit) -> CodeFault:
    compiled = unit.extensions[0] if unit.extensions else unit.path.name
    why = f"{compiled} is an extension module, which cannot be loaded anew"
    return CodeFault(f"{unit.path} has changed, and {why}: restart the sidecar", file=str(unit.path))


def _stamps(top: str) -> dict[str, _Stamp]:
    """Of the files that a package was loaded from, as they are now."""
    found = {}
    for name, module in sys.modules.copy().items():  # in one step: other threads import meanwhile
        file = getattr(module, "__file__", None)
        if file and (name == top or name.startswith(top + ".")):
            with contextlib.suppress(OSError):  # gone since: then it differs
                stat = os.stat(file)  # noqa: PTH116 - there may be hundreds
                found[file] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return found


def _read(folder: Path) -> tuple[dict[str, Unit], Signature]:
    """All units, from a moment in which nothing moved; or as they are, if they never hold still."""
    units: dict[str, Unit] = {}
    before: Signature = ()
    for _ in range(_ATTEMPTS):
        before, units = signature(folder), {}
        with contextlib.suppress(OSError):  # a file that goes away meanwhile: then the signature differs
            for name, path in _top(folder):
                units[name] = unit_of(name, path)
        if signature(folder) == before:
            break
    return units, before


def _top(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each file and each package of the folder, by the name that it is imported by."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return  # there is no such folder, which most sidecars have not
    for path in entries:
        if path.is_dir() and path.name.isidentifier() and path.name != "__pycache__":
            if next(_files(path), None) is not None:
                yield path.name, path
        elif path.suffix == ".py" and path.stem.isidentifier() and path.is_file():
            yield path.stem, path


def _files(folder: Path) -> Iterator[Path]:
    for place, inner, names in os.walk(folder, followlinks=False):
        inner[:] = sorted(name for name in inner if name.isidentifier() and name != "__pycache__")
        yield from (Path(place, name) for name in sorted(names) if name.endswith(_ENDINGS) and name[0] != ".")


def _entries(folder: Path) -> Iterator[tuple[str, int, int, int]]:
    for path in _files(folder):
        with contextlib.suppress(FileNotFoundError):  # gone since it was listed
            stat = path.stat()
            yield str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino
