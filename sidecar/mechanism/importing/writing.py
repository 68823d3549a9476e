"""Puts imported manifests into a folder: all of them or none, and over nobody's work unless told so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


class WriteError(Exception):
    """Nothing was written, and why."""


def write(folder: Path, files: Mapping[str, str], *, force: bool = False) -> list[Path]:
    """Write files below a folder, which is made if need be. force: also over files that are there. Raises WriteError.

    All are written beside their places first, so that a full disk or a missing right is found out before one changes.
    """
    paths = {folder / name: text for name, text in files.items()}
    there = [path for path in paths if path.exists() or path.is_symlink()]
    if there and not force:
        names = ", ".join(str(path) for path in there[:5]) + (", ..." if len(there) > 5 else "")
        raise WriteError(f"{names}: there already; --force overwrites, --out writes elsewhere")
    drafts: dict[Path, Path] = {}
    try:
        for path, text in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            drafts[path] = path.with_name(f".{path.name}.importing")
            _fill(drafts[path], text)
        for path, draft in drafts.items():
            draft.replace(path)
    except OSError as error:
        raise WriteError(f"{error.filename or folder}: cannot be written: {error.strerror or error}") from error
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
    return list(paths)


def _fill(draft: Path, text: str) -> None:
    with draft.open("wb") as file:
        file.write(text.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())
