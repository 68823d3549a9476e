"""What is in force, written down as it stands in the manifests, so that the next sidecar has it to fall back on.

For each manifest file: the tables in force, as TOML. They are kept as they were written, so secrets are references here
as there, and whoever reads them checks them again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from sidecar.core.manifest import Declaration
from sidecar.core.nodes import EVERY_NODE, Node
from sidecar.mechanism import durable, loader
from sidecar.mechanism.loader import Entry, Loaded, OwnSettings, Tables
from sidecar.mechanism.source import Snapshot
from sidecar.mechanism.sources import Library

log = logging.getLogger(__name__)

VERSION = 1
FILE = "applied.json"
MOST_BYTES = 32 * 2**20
_OWNER_ONLY = 0o600  # a plugin's settings may hold what is nobody else's business


class Applied(msgspec.Struct, frozen=True):
    """The tables that were in force. revision: the one that they were applied with."""

    revision: str
    tables: Tables

    def snapshot(self, root: Path) -> Snapshot:
        """As if they were what stands below `root`."""
        texts = _texts(self.tables)
        files = tuple((name, text.encode()) for name, text in texts.items())
        return Snapshot(root, files, (), self.revision, ())


class _File(msgspec.Struct, frozen=True, kw_only=True):
    """root: the manifest directory. files: path relative to it, to the tables in force that came from there."""

    version: int
    root: str
    revision: str
    files: dict[str, str]


class AppliedFile:
    """`applied.json` in the state directory. failed: saves that came to nothing. folder: None = nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.failed = 0
        self._path = folder / FILE if folder is not None else None
        self._saved = b""
        self._failing = False
        self._writing = threading.Lock()

    def read(self, root: Path) -> Applied | None:
        """What was in force of the manifests below `root`, if that is known. Blocks.

        A file that makes no sense is put aside, not thrown away.
        """
        if self._path is None:
            return None
        try:
            file = _read(self._path)
            return Applied(file.revision, _tables(file.files)) if file and file.root == str(root) else None
        except OSError as error:
            log.error("%s cannot be read (%s); there is nothing to fall back on", self._path, error)
        except (ValueError, RecursionError) as error:  # msgspec's, json's and tomllib's errors are ValueErrors, too
            self._put_aside(self._path, error)
        return None

    async def save(self, root: Path, declaration: Declaration, tables: Tables) -> None:
        """Write down what is in force. Returns when it is on disk; failures are counted, the first in a row is logged.

        tables: by subject; those that the declaration does not have are left out.
        """
        if self._path is None:
            return
        try:
            await asyncio.to_thread(self._write, self._path, root, declaration, tables)
        except (OSError, ValueError, RecursionError) as error:  # such as a number of thousands of digits
            self.failed += 1
            if not self._failing:
                log.error("%s cannot be written: %s; the next sidecar may fall back on older forms", self._path, error)
            self._failing = True
        else:
            self._failing = False

    def _write(self, path: Path, root: Path, declaration: Declaration, tables: Tables) -> None:
        files = _texts({subject: entry for subject, entry in tables.items() if _declares(declaration, subject)})
        file = _File(version=VERSION, root=str(root), revision=declaration.revision, files=files)
        # Not msgspec's encoder: names of files need not be UTF-8, and only this one brings them through.
        content = json.dumps(msgspec.to_builtins(file)).encode()
        if len(content) > MOST_BYTES:
            raise ValueError(f"it would be larger than {MOST_BYTES // 2**20} MiB")
        with self._writing:
            if content != self._saved:
                durable.replace(path, content, _OWNER_ONLY)
                self._saved = content

    def _put_aside(self, path: Path, error: Exception) -> None:
        aside = path.with_name(path.name + ".unreadable")
        log.error("%s cannot be read (%s); kept as %s, and there is nothing to fall back on", path, error, aside)
        try:
            path.replace(aside)
        except OSError as failed:
            log.error("%s cannot be put aside: %s", path, failed)


def before_start(
    applied: Applied,
    root: Path,
    own: OwnSettings,
    environment: Mapping[str, str],
    library: Library | None = None,
    node: Node = EVERY_NODE,
) -> Loaded:
    """What was in force, checked for a start under today's `[sidecar]`, or, if there is none any more, under its own.

    So nothing is kept that today's settings forbid, such as a model without keys on an address that others reach, nor
    what is for other nodes by the labels of today.
    Imports plugins, into the library, so keep it off the event loop.
    """
    tables = dict(applied.tables)
    if own.entry is not None:
        tables["sidecar",] = own.entry
    loaded = loader.load(Applied(applied.revision, tables).snapshot(root), environment, library=library, node=node)
    for problem in loaded.problems:
        log.info("what was in force before is not good any more: %s: %s", problem.path, problem.message)
    return loaded


def _declares(declaration: Declaration, subject: tuple[str, ...]) -> bool:
    return subject == ("sidecar",) or subject[1] in getattr(declaration, subject[0])


def _texts(tables: Tables) -> dict[str, str]:
    files: dict[str, dict[str, Any]] = {}
    for subject, entry in sorted(tables.items()):
        place = files.setdefault(entry.file, {})
        for step in subject[:-1]:
            place = place.setdefault(step, {})
        place[subject[-1]] = entry.raw
    return {name: tomli_w.dumps(files[name]) for name in sorted(files)}


def _tables(files: Mapping[str, str]) -> Tables:
    """Raises ValueError."""
    tables: dict[tuple[str, ...], Entry] = {}
    for name, text in files.items():
        for section, content in tomllib.loads(text).items():
            if section == "sidecar":
                tables[section,] = Entry(name, content)
            elif section in loader.SECTIONS and isinstance(content, dict):
                tables.update({(section, key): Entry(name, raw) for key, raw in content.items()})
            else:
                raise ValueError(f"there is no section {section}")
    return tables


def _read(path: Path) -> _File | None:
    """Raises OSError, and ValueError with the reason why it makes no sense."""
    try:
        with path.open("rb") as opened:
            content = opened.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(content) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES // 2**20} MiB")
    file = msgspec.convert(json.loads(content), _File)
    if file.version != VERSION:
        raise ValueError(f"it is of version {file.version}, not {VERSION}")
    return file
