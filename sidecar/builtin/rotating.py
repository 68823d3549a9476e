"""A file of lines that only grows, until it is put aside: by size, by age, or by somebody else's logrotate.

What is no file, as /dev/stdout may be none, is never put aside, and whoever reads there too slowly misses lines.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import select
import stat
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec

# The first line's first time says when the file was begun, which the file system does not.
_FIRST_TIME = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
_HEAD_BYTES = 200
PATIENCE_MS = 500  # with a reader


class Rotation(msgspec.Struct, frozen=True):
    """When a file is put aside, and how many of those are kept: `NAME.1` is the youngest. 0 = not for this reason."""

    size: int
    age_s: float
    keep: int


class RotatingFile:
    """Appends. Several may write to the same file, also processes: each batch is one write, and rotation is locked."""

    def __init__(self, path: Path, rotation: Rotation, unix: Callable[[], float] = time.time) -> None:
        self.path = path
        self._rotation = rotation
        self._unix = unix
        self._descriptor = -1
        self._is_file = True
        self._begun = 0.0
        self._turn = threading.RLock()  # a call that has run into its deadline may be still at it

    def open(self) -> None:
        """Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(self.path, flags, 0o640)
        with self._turn:
            self.close()
            self._descriptor = descriptor
            self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
            self._begun = self._beginning() if self._is_file else self._unix()

    def close(self) -> None:
        """May be repeated."""
        with self._turn:
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)

    def append(self, lines: bytes) -> None:
        """Add whole lines, all or none of them. Raises OSError."""
        with self._turn:
            if not self._is_ours():
                self.open()
            if self._is_due(len(lines)):
                self._rotate()
            self._write(lines)

    def _write(self, lines: bytes) -> None:
        if not self._is_file:
            self._pass_on(lines)
            return
        written = os.write(self._descriptor, lines)
        if written == len(lines):
            return
        with contextlib.suppress(OSError):  # then half a line stays
            end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
            if end == os.fstat(self._descriptor).st_size:  # or it is another's lines that would go
                os.ftruncate(self._descriptor, end - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def _pass_on(self, lines: bytes) -> None:
        """Line by line: so much is taken whole or not at all, by pipe(7) up to 4 KiB."""
        room = select.poll()
        room.register(self._descriptor, select.POLLOUT)
        for line in lines.splitlines(keepends=True):
            if not room.poll(PATIENCE_MS):
                raise OSError(errno.EAGAIN, "nobody reads", str(self.path))
            os.write(self._descriptor, line)

    def _is_ours(self) -> bool:
        """Whether the file that we have open is still the one of that name."""
        if self._descriptor < 0:
            return False
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return False
        ours = os.fstat(self._descriptor)
        return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)

    def _is_due(self, more: int) -> bool:
        if not self._is_file:
            return False
        size, rotation = os.fstat(self._descriptor).st_size, self._rotation
        too_large = rotation.size > 0 and size + more > rotation.size
        too_old = rotation.age_s > 0 and self._unix() - self._begun > rotation.age_s
        return size > 0 and (too_large or too_old)

    def _rotate(self) -> None:
        """Put the file aside, unless somebody else has just done so. Closing gives the lock back."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        if self._is_ours():
            last = max(1, self._rotation.keep)
            for number in range(last - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    self._aside(number).replace(self._aside(number + 1))
            if self._rotation.keep:
                self.path.replace(self._aside(1))
            else:
                self.path.unlink()
        self.open()

    def _aside(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _beginning(self) -> float:
        head = os.pread(self._descriptor, _HEAD_BYTES, 0)
        found = _FIRST_TIME.search(head)
        return datetime.fromisoformat(found[0].decode()).timestamp() if found else self._unix()
