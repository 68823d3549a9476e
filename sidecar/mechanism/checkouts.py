"""Commits as folders beside each other, and the link `live` to the one in force, which is switched in one step.

A checkout gets its name when all of it is on disk, so one that was broken off is none. What the repository brings along
is written as it stands there: no hook, no filter (git LFS) and no submodule has a say, and no link leads out of it.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from sidecar.core.names import printable
from sidecar.core.sourcing import GitDeclaration
from sidecar.mechanism.git import Git, GitError, TooMuchError

MOST_FILES = 50_000
_LIVE, _FOLDER = "live", "checkouts"
_DRAFT = ".draft-"
_LFS = b"version https://git-lfs.github.com/spec/"
_LINK, _SUBMODULE = "120000", "160000"


class UnfitError(GitError):
    """The commit can be had, and is nothing that manifests can be read from."""


class Blob(msgspec.Struct, frozen=True):
    """A file of a commit: where it stands, its git mode, its object's id, and its size (0 for a submodule)."""

    path: str
    mode: str
    id: str
    size: int


class Checkouts:
    """The checkouts in a folder, of the clone beside them. Everything raises GitError or OSError."""

    def __init__(self, folder: Path, clone: Path, declared: GitDeclaration, git: Git) -> None:
        self.live = folder / _LIVE
        self._folder = folder / _FOLDER
        self._clone = clone
        self._declared = declared
        self._git = git

    @property
    def root(self) -> Path:
        """The manifests in force; always the same path, whatever the link points to."""
        return live_manifests(self.live.parent, self._declared)

    @property
    def commit(self) -> str:
        """The commit in force, "" if there is none yet."""
        try:
            return self.live.readlink().name if self.root.is_dir() else ""
        except OSError:
            return ""

    def place(self, commit: str) -> Path:
        """Where the commit is checked out, or would be."""
        return self._folder / commit

    def manifests(self, commit: str) -> Path:
        """The manifests of a commit that is checked out."""
        return self.place(commit) / self._declared.path

    def open(self) -> None:
        """Clear away what was broken off. Blocks."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for draft in self._folder.glob(f"{_DRAFT}*"):
            _remove(draft)

    async def check_out(self, commit: str) -> Path:
        """The folder with all files of the commit. Raises UnfitError if it is too large, or has no manifests."""
        blobs = await self._list(commit)
        self._check(blobs)
        place = self.place(commit)
        if await asyncio.to_thread(_is_whole, place, blobs):
            return place
        draft = self._folder / f"{_DRAFT}{commit}"
        try:
            await asyncio.to_thread(shutil.rmtree, draft, ignore_errors=True)
            await self._write(commit, draft)
            await asyncio.to_thread(_check_links, draft, blobs)
            await asyncio.to_thread(_put, draft, place)
        finally:
            await asyncio.to_thread(shutil.rmtree, draft, ignore_errors=True)
        return place

    async def whole(self, commit: str) -> bool:
        """Whether the commit's checkout is what git has of it, byte for byte."""
        return await asyncio.to_thread(_is_whole, self.place(commit), await self._list(commit))

    def switch(self, commit: str) -> None:
        """Put the commit in force. Blocks."""
        link = self.live.with_name(f"{_DRAFT}live")
        link.unlink(missing_ok=True)
        link.symlink_to(Path(self._folder.name) / commit)
        link.replace(self.live)
        _sync(self.live.parent)

    def prune(self, keep: Iterable[str]) -> None:
        """Remove all checkouts but these, and those in which a process stands: servers run where they began. Blocks."""
        kept = {*keep, self.commit}
        spare = [place for place in self._folder.iterdir() if place.name not in kept]
        stood_in = _stood_in(self._folder) if spare else frozenset()
        for place in spare:
            if place.name not in stood_in:
                draft = place.with_name(f"{_DRAFT}{place.name}")
                place.replace(draft)  # a half of it must not be found under its name
                _remove(draft)

    async def _list(self, commit: str) -> list[Blob]:
        try:
            output = await self._git.run("ls-tree", "-r", "-l", "-z", "--full-tree", commit, folder=self._clone)
        except TooMuchError:
            raise UnfitError(f"has far more than {MOST_FILES} files") from None
        blobs = []
        for entry in output.out.split(b"\0")[:-1]:
            about, _, path = entry.partition(b"\t")
            mode, _, identity, size = about.decode("ascii").split()
            blobs.append(Blob(os.fsdecode(path), mode, identity, int(size) if size.isdecimal() else 0))
        return blobs

    def _check(self, blobs: list[Blob]) -> None:
        declared = self._declared
        size = sum(blob.size for blob in blobs)
        if size > declared.max_size or len(blobs) > MOST_FILES:
            message = (
                f"has {len(blobs)} files of {size} bytes: more than max_size ({declared.max_size}) or {MOST_FILES}"
            )
            raise UnfitError(f"{message} files; keep the manifests in a repository of their own")
        path = declared.path.strip("/")
        if not path:
            return
        for blob in blobs:
            if blob.mode == _SUBMODULE and (path == blob.path or path.startswith(f"{blob.path}/")):
                raise UnfitError(f"{blob.path} is a submodule, which is not fetched")
        if not any(blob.path.startswith(f"{path}/") or (blob.path == path and blob.mode == _LINK) for blob in blobs):
            raise UnfitError(f"has no folder {path}")

    async def _write(self, commit: str, draft: Path) -> None:
        await asyncio.to_thread(draft.mkdir, mode=0o700)
        index = self._folder / f"{_DRAFT}index"
        extra = {"GIT_INDEX_FILE": str(index), "GIT_WORK_TREE": str(draft)}
        try:
            await self._read_tree(commit, extra)
            await self._git.run("checkout-index", "--all", "--force", "--quiet", folder=self._clone, extra=extra)
        finally:
            for left in (index, index.with_name(f"{index.name}.lock")):
                left.unlink(missing_ok=True)

    async def _read_tree(self, commit: str, extra: dict[str, str]) -> None:
        try:
            await self._git.run("read-tree", commit, folder=self._clone, extra=extra)
        except GitError as error:
            if "invalid path" in str(error):  # "..", or into ".git", by whatever name a file system knows it
                raise UnfitError(f"has a file that may not be: {error}") from None
            raise


def live_manifests(folder: Path, declared: GitDeclaration) -> Path:
    """The manifests in force, in the folder that has the checkouts."""
    live = folder / _LIVE
    return live / declared.path if declared.path else live


def commit_of(path: Path) -> str:
    """The commit in whose checkout, by whichever sidecar, the path is; "" if it is in none. All links resolved."""
    for folder in path.parents:
        above = folder.parent
        if above.name == _FOLDER and (above.parent / _LIVE).is_symlink():
            return folder.name
    return ""


def is_lfs_pointer(content: bytes) -> bool:
    """Whether a file is not what it seems: git LFS keeps that elsewhere."""
    return content.startswith(_LFS)


def _check_links(draft: Path, blobs: list[Blob]) -> None:
    """Raise UnfitError if a link leads to what is not of the commit: nobody has reviewed or signed that."""
    root = os.path.realpath(draft)
    for blob in blobs:
        if blob.mode == _LINK and not Path(os.path.realpath(draft / blob.path)).is_relative_to(root):
            where = printable(os.fsdecode((draft / blob.path).readlink()))
            raise UnfitError(f"{printable(blob.path)} is a link to {where}, which is not in the repository")


def _remove(path: Path) -> None:
    """As far as it can be; what is left is tried again."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _put(draft: Path, place: Path) -> None:
    _sync(draft)
    if place.exists():  # somebody has changed it; servers may stand in it, so that removing it is for `prune`
        place.replace(place.with_name(f".old-{time.time_ns()}"))
    draft.replace(place)
    _sync(place.parent)


def _sync(folder: Path) -> None:
    """Have the file system of the folder write down all that it has: less than one call for each file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if syncfs is None:
            os.sync()
        elif syncfs(descriptor) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(folder))
    finally:
        os.close(descriptor)


def _is_whole(place: Path, blobs: list[Blob]) -> bool:
    """Whether all files are there, as git has them, and no others that would be read."""
    if not place.is_dir():
        return False
    known = {place / blob.path for blob in blobs}
    try:
        added = any(path not in known for ending in ("*.toml", "*.py") for path in place.rglob(ending))
        return not added and all(blob.mode == _SUBMODULE or _hash(place / blob.path, blob) == blob.id for blob in blobs)
    except OSError:
        return False


def _hash(path: Path, blob: Blob) -> str:
    """As git names a file's content: the hash of "blob SIZE", a zero byte, and the content."""
    content = os.fsencode(path.readlink()) if blob.mode == _LINK else path.read_bytes()
    algorithm = hashlib.sha1 if len(blob.id) == 40 else hashlib.sha256
    return algorithm(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _stood_in(folder: Path) -> frozenset[str]:
    """The names of the checkouts that are the working directory of a process, as far as we may look."""
    found = set()
    folder = Path(os.path.realpath(folder))  # as the kernel calls it
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                where = (process / "cwd").readlink()
            except OSError:
                continue  # gone, or somebody else's
            if where.is_relative_to(folder):
                found.add(where.relative_to(folder).parts[0] if where != folder else "")
    return frozenset(found)
