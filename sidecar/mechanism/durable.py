"""Puts files on disk whole or not at all: a draft beside them, flushed to the disk, then renamed over."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class ChangedError(Exception):
    """The file is not what it was when it was read."""


def replace(path: Path, content: bytes, mode: int | None = None) -> None:
    """Replace a file that nobody else writes. Returns when it is on disk. Raises OSError; then the old one stands.

    mode: its permissions, from before there is anything in it; None = what the process gives to new files.
    """
    draft = path.with_name(path.name + ".new")
    try:
        _fill(draft, content, None, mode)
        _rename(draft, path)
    except OSError:
        with contextlib.suppress(OSError):  # the first one is told; on a full disk the draft would be in the way
            draft.unlink(missing_ok=True)
        raise


def rewrite(path: Path, before: bytes, after: bytes) -> None:
    """Replace a file that others write, too, if it still holds `before`; its mode and owner stay.

    Raises ChangedError, and OSError (a PermissionError if the owner cannot be kept); then what is there stands.
    """
    draft = path.with_name(
        f".{path.name}.{os.getpid()}.new"
    )  # not another's draft, and hidden from who lists manifests
    try:
        _fill(draft, after, path.stat())
        if path.read_bytes() != before:
            raise ChangedError(f"{path} has changed since it was read")
        _rename(draft, path)
    finally:
        draft.unlink(missing_ok=True)  # no litter in somebody's repository


def _fill(draft: Path, content: bytes, like: os.stat_result | None, mode: int | None = None) -> None:
    with draft.open("wb") as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        if like is not None:
            made = os.fstat(file.fileno())
            if (made.st_uid, made.st_gid) != (like.st_uid, like.st_gid):
                os.fchown(file.fileno(), like.st_uid, like.st_gid)
            os.fchmod(file.fileno(), like.st_mode & 0o7777)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _rename(draft: Path, path: Path) -> None:
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the name, too
    finally:
        os.close(folder)
