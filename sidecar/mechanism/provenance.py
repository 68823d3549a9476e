"""Where a manifest directory is from, if that can be told: a git work tree, a git-sync link, a mounted ConfigMap.

Files are read and git is not run: it may not be installed, and what it would do is up to somebody else's repository.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sidecar.core.sourcing import SourceReport

MOST_BYTES = 4 * 2**20  # of packed-refs
MOST_TEXT = 4096  # bytes of all else: a name, or an id
MOST_LINKS = 5  # from one name of a branch to the next

_OBJECT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


def provenance(root: Path) -> SourceReport:
    """What there is to be told of the directory. Blocks; never raises for what it finds there."""
    if (version := _config_map(root)) is not None:
        return SourceReport(kind="ConfigMap", place=str(root), commit=version)
    real = Path(os.path.realpath(root))
    by_hash = next((part for part in reversed(real.parts) if _OBJECT.fullmatch(part)), "")
    switched = bool(by_hash) and by_hash not in root.parts  # the name leads there by a link
    for folder in (real, *real.parents):
        try:
            if (folder / ".git").exists():
                branch, commit = _head(_git_folder(folder))
                kind = "git-sync link" if switched else "git work tree"
                path = "" if real == folder else str(real.relative_to(folder))
                return SourceReport(kind=kind, place=str(root), ref=branch, commit=commit or by_hash, path=path)
        except (OSError, UnicodeDecodeError, ValueError):
            break  # there is something like a repository, which does not tell
    if switched:
        return SourceReport(kind="git-sync link", place=str(root), commit=by_hash)
    return SourceReport(kind="directory", place=str(root))


def _config_map(root: Path) -> str | None:
    """The name of the version, None if it is no mount of Kubernetes: `..data` leads to a folder `..2026_01_31_...`."""
    for folder in (root, *root.parents):
        try:
            return (folder / "..data").readlink().name
        except OSError:
            continue
    return None


def _git_folder(work_tree: Path) -> Path:
    """gitrepository-layout(5): a folder, or a file `gitdir: PATH` in worktrees and submodules."""
    git = work_tree / ".git"
    if git.is_dir():
        return git
    return work_tree / _text(git).partition(":")[2].strip()


def _head(git: Path) -> tuple[str, str]:
    """(branch, commit) that HEAD is; no branch if it is a commit by itself, no commit if there is none yet."""
    common = git
    if (git / "commondir").is_file():
        common = git / _text(git / "commondir")
    text, branch = _text(git / "HEAD"), ""
    for _ in range(MOST_LINKS):
        if not text.startswith("ref:"):
            break
        name = text.removeprefix("ref:").strip()
        branch = branch or name.removeprefix("refs/heads/")
        text = _reference(git, common, name)
    return branch, text if _OBJECT.fullmatch(text) else ""


def _text(path: Path) -> str:
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a named pipe would hold us until somebody writes
    try:
        return os.read(file, MOST_TEXT).decode("utf-8").strip()
    finally:
        os.close(file)


def _reference(git: Path, common: Path, name: str) -> str:
    """What a name below refs/ says: in a file of its own, or packed with others."""
    for folder in (git, common):
        try:
            return _text(folder / name)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue
    try:
        with (common / "packed-refs").open("rb") as file:
            lines = file.read(MOST_BYTES).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    return next((line.partition(" ")[0] for line in lines if line.partition(" ")[2] == name), "")
