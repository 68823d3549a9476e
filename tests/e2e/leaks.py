"""Looks for keys in what a sidecar has said and written. What its servers write is theirs, and is not looked into."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|ADMIN", re.IGNORECASE)
_SHORTEST = 6  # what is shorter is found everywhere
_MOST_BYTES = 4 * 2**20  # what is longer is a model


def among(env: Mapping[str, str]) -> set[str]:
    """The secrets that a test has put into the environment, by the names of the variables."""
    return {value for name, value in env.items() if _NAME.search(name) and len(value) >= _SHORTEST}


def files(*paths: Path) -> dict[str, str]:
    """What stands in these files, and in those below."""
    return {str(path): path.read_text(encoding="utf-8", errors="replace") for path in _walk(paths)}


def found(said: Mapping[str, str], keys: Iterable[str]) -> list[str]:
    """Each place in which a key stands, with the line."""
    return [
        f"{where}: {line[:500]}"
        for key in keys
        for where, text in said.items()
        for line in text.splitlines()
        if key in line
    ]


def _walk(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        for one in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if one.is_file() and "logs" not in one.relative_to(path).parts and one.stat().st_size <= _MOST_BYTES:
                yield one
