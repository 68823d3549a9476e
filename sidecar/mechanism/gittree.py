"""A folder of a commit, written out of the user's own repository: what was, or what would be, beside what is.

Files are written as they stand in the commit: no filter (git LFS), hook or submodule has a say, and the user's index
and working tree are left alone.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import msgspec

DEADLINE_S = 60.0
MOST_FILES = 50_000
MOST_BYTES = 512 * 2**20
_LINK, _EXECUTABLE = "120000", "100755"
_FILES = ("100644", _EXECUTABLE, _LINK)


class GitTreeError(Exception):
    """There is no git, no such revision, or no such folder in it."""


class _Entry(msgspec.Struct, frozen=True):
    mode: str
    id: str
    size: int
    path: PurePosixPath


def write(revision: str, folder: str, into: Path, cwd: Path) -> Path | None:
    """Write a folder of a revision below `into`, and return where it is; None if the revision has no such folder.

    folder: as git has it in REVISION:FOLDER, from the top of the repository, or from `cwd` if it starts with `./`.
    Raises GitTreeError. Blocks.
    """
    commit = _git(cwd, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}").strip()
    if not commit:
        raise GitTreeError(f"{revision}: no such revision in {cwd}: is it fetched? (in CI, mind the clone's depth)")
    prefix = _git(cwd, "rev-parse", "--show-prefix").strip() if folder.split("/")[0] in (".", "..") else ""
    path = _normal(PurePosixPath(prefix, folder))
    entries = list(_listed(cwd, commit, path))
    if not entries:
        return None
    if any(entry.mode == _LINK for entry in entries):  # which may point to anywhere in the repository
        entries = list(_listed(cwd, commit, PurePosixPath()))
    _write(cwd, entries, into)
    return into / path


def _normal(path: PurePosixPath) -> PurePosixPath:
    """The path without `..`. Raises GitTreeError if it leaves the repository."""
    text = os.path.normpath(path)
    if text.startswith("/") or text.split("/")[0] == "..":
        raise GitTreeError(f"{path}: is outside of the repository")
    return PurePosixPath(text)


def _listed(cwd: Path, commit: str, path: PurePosixPath) -> Iterable[_Entry]:
    """All files below a folder of a commit. Raises GitTreeError if there are more than anybody's manifests have."""
    below = [] if path == PurePosixPath() else ["--", f"{path}/"]
    found = _git(cwd, "ls-tree", "-r", "-z", "-l", "--full-tree", commit, *below).split("\0")
    entries = []
    for line in filter(None, found):
        described, _, name = line.partition("\t")
        mode, _, key, size = described.split()
        if mode in _FILES:  # and no submodule
            if not size.isdecimal():
                raise GitTreeError(f"{commit[:12]}:{name}: git does not have it: is the clone whole?")
            entries.append(_Entry(mode, key, int(size), _normal(PurePosixPath(name))))
    if len(entries) > MOST_FILES or sum(entry.size for entry in entries) > MOST_BYTES:
        most = f"{MOST_FILES:,} files or {MOST_BYTES // 2**20} MiB"
        raise GitTreeError(f"{commit[:12]}:{path}: there are more than {most}, which are no manifests")
    return entries


def _write(cwd: Path, entries: list[_Entry], into: Path) -> None:
    contents = _contents(cwd, entries)
    for entry in sorted(entries, key=lambda one: one.mode == _LINK):  # links last: nothing is written through them
        place = into / entry.path
        place.parent.mkdir(parents=True, exist_ok=True)
        content = contents[entry.id]
        if entry.mode == _LINK:
            place.symlink_to(os.fsdecode(content))
            continue
        place.write_bytes(content)
        if entry.mode == _EXECUTABLE:
            place.chmod(0o755)


def _contents(cwd: Path, entries: list[_Entry]) -> dict[str, bytes]:
    """By object id."""
    ids = list(dict.fromkeys(entry.id for entry in entries))
    out = _run(cwd, "cat-file", "--batch", given="".join(f"{key}\n" for key in ids).encode()).stdout
    contents, at = {}, 0
    for key in ids:
        end = out.index(b"\n", at)
        head = out[at:end].split()
        if len(head) != 3:
            raise GitTreeError(f"git cat-file: {out[at:end].decode(errors='replace')}: is the clone whole?")
        size = int(head[2])
        contents[key] = out[end + 1 : end + 1 + size]
        at = end + 1 + size + 1
    return contents


def _git(cwd: Path, *arguments: str) -> str:
    """What git says; "" if `rev-parse --quiet` finds nothing."""
    result = _run(cwd, *arguments)
    if result.returncode and "--quiet" not in arguments:
        raise GitTreeError(f"git {arguments[0]}: {_told(result)}")
    if result.returncode and result.stderr:
        raise GitTreeError(f"git {arguments[0]}: {_told(result)}")
    return os.fsdecode(result.stdout)


def _run(cwd: Path, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
    try:
        return subprocess.run(
            ["git", *arguments],  # noqa: S607 - the git that the user has on the path, whose repository it is
            cwd=cwd,
            input=given,
            capture_output=True,
            check=False,
            timeout=DEADLINE_S,
            env=environment,
        )
    except FileNotFoundError as error:
        raise GitTreeError(f"there is no git here, or no {cwd}: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise GitTreeError(f"git {arguments[0]} did not end within {DEADLINE_S:g} s") from error


def _told(result: subprocess.CompletedProcess[bytes]) -> str:
    lines = result.stderr.decode(errors="replace").strip().splitlines()
    return lines[0] if lines else f"exit code {result.returncode}"
