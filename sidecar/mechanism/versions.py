"""One version of a unit of plugin code: its modules under a name of their own, so that several can live side by side.

Python's import system does the work: a finder knows the versions, and the modules of a version have an `__import__`
that turns the name of another unit into the name of its version. Nothing here is shared but `sys.modules`.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import importlib.util
import itertools
import logging
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, SourceFileLoader
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import msgspec

IMPORT_S = 20.0  # for one module and all that it imports

Import = Callable[..., ModuleType]


class CodeFault(Exception):
    """Code that cannot be imported. file, line: where the author has to look. trace: the whole traceback.

    missing: the module that was not found, if that is why.
    """

    def __init__(self, message: str, *, file: str = "", line: int = 0, trace: str = "", missing: str = "") -> None:
        super().__init__(message)
        self.missing = missing
        self.file = file
        self.line = line
        self.trace = trace


class Text(msgspec.Struct, frozen=True):
    """A module's source as it was read."""

    path: str
    content: bytes
    package: bool = False


class Version:
    """A unit at one moment. imports: the versions of others that it uses. module: once it is loaded.

    fault: why it cannot be. hung: its import never ended, so that it is not tried again.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        texts: Mapping[str, Text],
        *,
        digest: str,
        find: Callable[[str], Version | None],
    ) -> None:
        self.name = name
        self.path = path
        self.digest = digest
        self.imports: dict[str, Version] = {}
        self.module: ModuleType | None = None
        self.fault: CodeFault | None = None
        self.hung = False
        self._texts = texts
        self._find = find
        self._import = _importer(weakref.ref(self))  # weak, since the modules have it and must not keep us
        finder = _Finder.installed()
        self.private = f"{name}@{next(finder.numbers)}"
        finder.versions[self.private] = self
        weakref.finalize(self, _forget, self.private).atexit = False

    def needs(self, names: set[str]) -> bool:
        """Whether it uses one of these units."""
        return not names.isdisjoint(self.imports)

    def load(self, below: str = "") -> ModuleType:
        """Import the unit, or the module `below` it. Raises CodeFault, every time anew for the unit itself."""
        if self.fault is not None:
            raise CodeFault(str(self.fault), file=self.fault.file, line=self.fault.line, trace=self.fault.trace)
        try:
            module = import_within(self.private, str(self.path))
            self.module = module
        except CodeFault as fault:
            self.fault = self._named(fault)
            self.hung = isinstance(fault, HungFault)
            raise self.fault.with_traceback(None) from None
        if below:
            try:
                return import_within(f"{self.private}.{below}", str(self.path))
            except CodeFault as fault:
                raise self._named(fault) from None
        return module

    def has(self, below: str) -> bool:
        """Whether there is such a module in the unit; compiled ones are not known."""
        return below in self._texts

    def text_of(self, module: str) -> Text | None:
        """The source of one of its modules, as it was read; None if it is none of its own."""
        top, _, below = module.partition(".")
        return self._texts.get(below) if top == self.private else None

    def other(self, name: str) -> str:
        """The module name of another unit's version, or of this one; "" if there is no such unit."""
        if name == self.name:
            return self.private
        version = self._find(name)
        if version is None:
            return ""
        self.imports[name] = version
        return version.private

    def spec(self, private: str, below: str) -> ModuleSpec | None:
        """How to load one of its modules. Raises ModuleNotFoundError; None leaves a compiled one to Python."""
        text = self._texts.get(below)
        if text is None:
            if self._is_compiled(below):
                return None
            shown = f"{self.name}.{below}"
            raise ModuleNotFoundError(f"No module named '{shown}' ({self.path} has none)", name=private)
        folder = text.path.removesuffix("__init__.py").rstrip("/")
        return importlib.util.spec_from_file_location(
            private,
            text.path,
            loader=_Loader(private, text, self._import),
            submodule_search_locations=[folder] if text.package else None,
        )

    def _is_compiled(self, below: str) -> bool:
        place = self.path.joinpath(*below.split("."))
        return any(place.with_name(place.name + ending).exists() for ending in EXTENSION_SUFFIXES)

    def _named(self, fault: CodeFault) -> CodeFault:
        """Told by the name that the author knows."""
        told = str(fault).replace(self.private, self.name)
        return CodeFault(told, file=fault.file, line=fault.line, trace=fault.trace.replace(self.private, self.name))


class HungFault(CodeFault):
    """An import that did not end."""


def import_within(name: str, place: str, deadline_s: float | None = None) -> ModuleType:
    """Import a module, in a thread of its own, for as long as its code takes. Raises CodeFault.

    place: the file or folder of the author, whose line is told when it fails.
    """
    outcome: list[ModuleType | BaseException] = []

    def work() -> None:
        try:
            outcome.append(importlib.import_module(name))
        except BaseException as error:  # noqa: BLE001 - an author's code may raise anything; told with its line
            outcome.append(error)

    thread = threading.Thread(target=work, name=f"import {name}", daemon=True)
    thread.start()
    thread.join(IMPORT_S if deadline_s is None else deadline_s)
    if not outcome:
        file, line = _author(_stack(sys._current_frames().get(thread.ident or 0)), place)
        what = f"importing {name} did not end within {deadline_s or IMPORT_S:g} s: it is at {file}:{line}"
        raise HungFault(f"{what}; start nothing at import, but in open()", file=file, line=line)
    found = outcome.pop()
    if isinstance(found, ModuleType):
        return found
    raise fault_of(found, f"importing {name} failed", place)


def fault_of(error: BaseException, what: str, place: str) -> CodeFault:
    """An author's error, with the line of the author's code that raised it."""
    trace = "".join(traceback.format_exception(error))
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno or 0
        return CodeFault(f"{what}: {file}:{line}: {error.msg}", file=file, line=line, trace=trace)
    file, line = _author(traceback.extract_tb(error.__traceback__), place)
    told = f"{what}: {type(error).__name__}: {error}"
    missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    return CodeFault(f"{told} ({file}:{line})" if file else told, file=file, line=line, trace=trace, missing=missing)


def installed_at(name: str) -> str:
    """Where a top-level module of that name is installed; "" if it is not.

    A folder without `__init__.py` does not count: any folder in one from which Python imports is such a package.
    """
    if name in sys.stdlib_module_names:
        return "Python's standard library"
    with contextlib.suppress(ImportError, ValueError, AttributeError):  # a broken finder, or a module without a spec
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            return spec.origin
    return ""


class _Loader(SourceFileLoader):
    """Compiles what was read, and lets the module import other units by their plain names."""

    def __init__(self, name: str, text: Text, importer: Import) -> None:
        super().__init__(name, text.path)
        self._text = text
        self._import = importer

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
        super().exec_module(module)

    def get_code(self, fullname: str) -> Any:  # noqa: ARG002 - we know which it is
        return self.source_to_code(self._text.content, self._text.path)

    def get_source(self, fullname: str) -> str:  # noqa: ARG002 - as above
        return importlib.util.decode_source(self._text.content)

    def is_package(self, fullname: str) -> bool:  # noqa: ARG002 - as above
        return self._text.package


class _Finder(MetaPathFinder):
    """Knows the versions that there are. It is one for the whole process, as is what it stands in, `sys.meta_path`."""

    def __init__(self) -> None:
        self.versions: weakref.WeakValueDictionary[str, Version] = weakref.WeakValueDictionary()
        self.numbers = itertools.count(1)

    @classmethod
    def installed(cls) -> _Finder:
        for finder in sys.meta_path:
            if isinstance(finder, cls):
                return finder
        made = cls()
        sys.meta_path.insert(0, made)
        return made

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:  # noqa: ARG002 - the protocol's
        top, _, below = fullname.partition(".")
        version = self.versions.get(top)
        return None if version is None else version.spec(fullname, below)


def _importer(owner: Callable[[], Version | None]) -> Import:
    """`__import__` for the modules of a version."""

    def import_(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> ModuleType:  # noqa: A002 - called by these names
        version = owner()
        if level == 0 and version is not None:
            top, dot, below = name.partition(".")
            if private := version.other(top):
                name = private + dot + below
        return builtins.__import__(name, globals, locals, fromlist, level)

    return import_


def _forget(private: str) -> None:
    """Take a version out of what Python keeps by name: its modules, and the loggers that they made for themselves."""
    for names in (sys.modules, logging.root.manager.loggerDict):
        kept: dict[str, Any] = names
        for name in [name for name in list(kept) if name == private or name.startswith(private + ".")]:
            kept.pop(name, None)


def _stack(frame: FrameType | None) -> traceback.StackSummary:
    return traceback.extract_stack(frame) if frame is not None else traceback.StackSummary()


def _author(frames: traceback.StackSummary, place: str) -> tuple[str, int]:
    """The last line below `place`, or else the last that is not of the import system."""
    own = [frame for frame in frames if place and frame.filename.startswith(place)]
    rest = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith("<frozen")]
    for found in (own, rest):
        if found:
            return found[-1].filename, found[-1].lineno or 0
    return "", 0
