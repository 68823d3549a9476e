"""Reads a manifest directory: all of it, or an error. What was torn while being read is read again."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from stat import S_ISREG

import msgspec

from sidecar.core.manifest import Problem

PLUGIN_FOLDER = "plugins"  # Python code beside the manifests; its packages may bring TOML files that are no manifests
MAX_FILE_BYTES = 4 * 2**20
_ATTEMPTS = 5

Signature = tuple[tuple[str, int, int, int], ...]


class SourceError(Exception):
    """The directory cannot be read as a whole; whatever was read before stays in force."""


class RejectedError(SourceError):
    """A revision that is there, and is not taken over. revision: its content hash, if it could be read."""

    def __init__(self, message: str, revision: str = "", problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.revision = revision
        self.problems = problems


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
                files.append((name, content(root / name)))
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


def folders(
    root: Path, without: Callable[[os.DirEntry[str]], bool]
) -> Iterator[tuple[str, list[os.DirEntry[str]], list[os.DirEntry[str]]]]:
    """Every folder below `root`, and itself, once: its path, its subfolders, and what else is in it.

    Left out is what is hidden, and the subfolders that `without` says. Links are followed, but never to where we have
    been. A folder that goes away meanwhile is none; one that cannot be read is a SourceError.
    """
    seen: set[tuple[int, int]] = set()
    todo = [str(root)]
    while todo:
        path = todo.pop()
        try:
            stat = os.stat(path)  # noqa: PTH116 - paths of entries are strings, and there may be hundreds
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            with os.scandir(path) as listing:
                entries = [entry for entry in listing if not entry.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError) as error:
            if path != str(root):
                continue
            raise SourceError(f"{root}: no such directory") from error
        except OSError as error:
            raise SourceError(f"{path}: cannot be read: {error.strerror}") from error
        kinds: tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]] = ([], [])
        for entry in entries:
            kinds[_is_folder(entry)].append(entry)
        files, inner = kinds
        subfolders = sorted((entry for entry in inner if not without(entry)), key=lambda entry: entry.name)
        yield path, subfolders, files
        todo += [entry.path for entry in reversed(subfolders)]


def is_plugin_folder(root: Path) -> Callable[[os.DirEntry[str]], bool]:
    """Tells the folder of plugins, which is beside the manifests and not among them."""
    path = str(root / PLUGIN_FOLDER)
    return lambda entry: entry.path == path


def git_at_work(root: Path) -> bool:
    """Whether git is changing the working tree that `root` is in: its index is locked for as long as that takes.

    A git that was killed leaves the lock, and a tree that is neither the old nor the new one. Where we may not look,
    none is at work, as far as we know: a repository of root's does not keep the manifests in it from being read.
    """
    real = Path(os.path.realpath(root))
    for folder in (real, *real.parents):
        git = folder / ".git"
        with contextlib.suppress(OSError, UnicodeDecodeError):  # a folder, as it mostly is, or nothing that git made
            git = folder / git.read_text("utf-8").removeprefix("gitdir:").strip()  # worktrees and submodules
        try:
            if git.is_dir():
                return (git / "index.lock").exists()
        except OSError:
            return False
    return False


def _entries(root: Path) -> Iterator[tuple[str, int, int, int]]:
    start = len(os.path.join(root, ""))  # noqa: PTH118 - the length of a prefix of strings, not a path
    for _, _, files in folders(root, is_plugin_folder(root)):
        for entry in files:
            if not entry.name.endswith(".toml"):
                continue
            try:
                stat = entry.stat()  # follows links, as ConfigMap mounts have them
            except FileNotFoundError:
                continue  # gone since it was listed, or a dangling link (editors use them as locks)
            except OSError:  # reading it says why
                yield entry.path[start:], 0, 0, 0
                continue
            yield entry.path[start:], stat.st_mtime_ns, stat.st_size, stat.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for one
        return False


def content(path: Path) -> bytes:
    """One manifest, whole. Raises OSError, also for what is no file or larger than any manifest."""
    # Without O_NONBLOCK a named pipe would hold us until somebody writes to it; a device would have no end.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        stat = os.fstat(file)
        if not S_ISREG(stat.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if stat.st_size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"larger than {MAX_FILE_BYTES // 2**20} MiB, which no manifest is")
        return os.read(file, stat.st_size)  # less or more than that is a change, which the signature tells
    finally:
        os.close(file)


def _revision(files: Iterable[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, content in files:
        digest.update(f"{len(name)}:{name}{len(content)}:".encode("utf-8", "surrogateescape"))
        digest.update(content)
    return digest.hexdigest()[:12]
