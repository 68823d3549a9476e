"""A server's output: two files that it writes to itself, so that they outlive the sidecar, kept short from outside."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import BinaryIO

TAIL_BYTES = 16 * 1024
TAIL_LINES = 20


class ServerLog:
    """`NAME.out.log` and `NAME.err.log` of one server; the run before is kept as `*.log.1`."""

    def __init__(self, folder: Path, name: str) -> None:
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
        if safe != name:
            safe += "-" + hashlib.sha256(name.encode()).hexdigest()[:6]  # "a/b" and "a_b" are two models
        self.out = folder / f"{safe}.out.log"
        self.err = folder / f"{safe}.err.log"

    def open(self) -> tuple[BinaryIO, BinaryIO]:
        """Begin a new run. Appending, so that a writer goes on at the end after the file was cut. Raises OSError."""
        self.out.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in (self.out, self.err):
            if path.exists():
                path.replace(_previous(path))
        return self.out.open("ab", buffering=0), self.err.open("ab", buffering=0)

    def cap(self, limit_bytes: int) -> None:
        """Where a file has outgrown the limit, move its last half to `*.log.1` and empty it."""
        for path in (self.out, self.err):
            if path.exists() and path.stat().st_size > limit_bytes:
                _previous(path).write_bytes(_last(path, limit_bytes // 2))
                os.truncate(path, 0)

    def tail(self) -> list[str]:
        """The last lines of stderr, or of stdout if stderr is empty; [] if there are none."""
        for path in (self.err, self.out):
            try:
                text = _last(path, TAIL_BYTES).decode("utf-8", "replace")
            except FileNotFoundError:
                continue
            if lines := [line.rstrip() for line in text.splitlines() if line.strip()]:
                return lines[-TAIL_LINES:]
        return []


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def _last(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - count))
        return file.read(count)
