"""Reads a manifest directory: all of it, or an error. What was torn while being read is read again."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

PLUGIN_FOLDER = "plugins"  # Python code beside the manifests; its packages may bring TOML files that are no manifests
MAX_FILE_BYTES = 4 * 2**20
_ATTEMPTS = 5

Signature = tuple[tuple[str, int, int, int], ...]


class SourceError(Exception):
    """The directory cannot be read as a whole; whatever was read before stays in force."""


class Snapshot(msgspec.Struct, frozen=True):
    """One revision, whole. files: (path relative to the root, content). revision: a hash over both.

    unreadable: (path, why) of files that are there and cannot be read; the others count all the same.
    """

    root: Path
    files: tuple[tuple[str, bytes], ...]
    unreadable: tuple[tuple[str, str], ...]
    revision: str
    signature: Signature


def read(root: Path) -> Snapshot:
    """Read every manifest below `root`. Raises SourceError if it is no directory, or never holds still."""
    for _ in range(_ATTEMPTS):
        before = signature(root)
        files: list[tuple[str, bytes]] = []
        unreadable: list[tuple[str, str]] = []
        for name, *_ in before:
            try:
                files.append((name, _content(root / name)))
            except OSError as error:  # if it was only renamed under our hands, the second signature differs
                unreadable.append((name, f"cannot be read: {error.strerror or error}"))
        if signature(root) == before:
            return Snapshot(root, tuple(files), tuple(unreadable), _revision(files), before)
    raise SourceError(f"{root}: changed while it was being read, {_ATTEMPTS} times in a row")


def signature(root: Path) -> Signature:
    """Changes whenever a manifest is edited, replaced, added or removed, or the root is switched to another folder."""
    if not root.is_dir():
        raise SourceError(f"{root}: no such directory")
    return tuple(sorted(_entries(root)))


def _entries(root: Path) -> Iterator[tuple[str, int, int, int]]:
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=_unreadable, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            subfolders.clear()  # a link back to where we have been
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if Path(folder) == root and PLUGIN_FOLDER in subfolders:
            subfolders.remove(PLUGIN_FOLDER)
        for name in names:
            if name.endswith(".toml") and not name.startswith("."):
                path = Path(folder) / name
                try:
                    stat = path.stat()  # follows links, as ConfigMap mounts have them
                except FileNotFoundError:
                    continue  # gone since it was listed, or a dangling link (editors use them as locks)
                except OSError:  # reading it says why
                    yield str(path.relative_to(root)), 0, 0, 0
                    continue
                yield str(path.relative_to(root)), stat.st_mtime_ns, stat.st_size, stat.st_ino


def _unreadable(error: OSError) -> None:
    raise SourceError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _content(path: Path) -> bytes:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"larger than {MAX_FILE_BYTES // 2**20} MiB, which no manifest is")
    return path.read_bytes()


def _revision(files: Iterable[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, content in files:
        digest.update(f"{len(name)}:{name}{len(content)}:".encode("utf-8", "surrogateescape"))
        digest.update(content)
    return digest.hexdigest()[:12]
