"""A file whose content is kept up to date: read again when it changes, and the last good content stays when that fails.

All reading is done in threads, so that a slow disk never holds the event loop up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

Signature = tuple[int, int, int]

SETTLED_S = 1.0  # a file written to more recently may change again within one tick of the file system's clock


class WatchedFile(Generic[T]):
    """The parsed content of a file. value: as last read well. failed: how often reading it again has failed."""

    def __init__(self, path: str, parse: Callable[[bytes], T], every_s: float, log: logging.Logger) -> None:
        self.path = Path(path).expanduser()
        self.failed = 0
        self._parse = parse
        self._every_s = every_s
        self._log = log
        self._signature: Signature | None = None
        self._content: bytes | None = None
        self._problem = ""
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Read it for the first time, and keep it up to date from then on. Raises OSError or ValueError."""
        await asyncio.to_thread(self._read)
        self._task = asyncio.create_task(self._watch(), name=f"watch {self.path}")

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await asyncio.to_thread(self._look)
                self._problem = ""
            except Exception as error:  # noqa: BLE001 - whatever the content does to its parser, it is looked at again
                self._fail(f"{type(error).__name__}: {error}")

    def _look(self) -> None:
        if self._signature != _signature(self.path) and self._read():
            self._log.info("%s has changed and was read again", self.path)

    def _read(self) -> bool:
        """Take what it says; whether that is new."""
        before = _signature(self.path)
        content = self.path.read_bytes()
        changed = content != self._content
        if changed:
            self.value = self._parse(content)
            self._content = content
        settled = time.time_ns() - before[0] > SETTLED_S * 1e9
        self._signature = before if settled else None
        return changed

    def _fail(self, problem: str) -> None:
        self.failed += 1
        if problem != self._problem:  # said once, not every second
            self._log.error("%s cannot be read again, what it said before stays in force: %s", self.path, problem)
        self._problem = problem


def _signature(path: Path) -> Signature:
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino
