"""What is remembered of the source over restarts: its history, and whether it is pinned or suspended."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec

from sidecar.core.sourcing import Memory
from sidecar.mechanism import durable

log = logging.getLogger(__name__)

VERSION = 1
FILE = "source.json"
MOST_BYTES = 8 * 2**20
_OWNER_ONLY = 0o600


class _File(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    memory: Memory


class Notes:
    """`source.json` in a folder. memory: what is in it, or would be. problem: why it cannot be written, or ""."""

    def __init__(self, folder: Path) -> None:
        self.memory = Memory()
        self.problem = ""
        self._path = folder / FILE
        self._writing = asyncio.Lock()

    def read(self) -> None:
        """Take up what was written. A file that makes no sense is put aside, not thrown away. Blocks."""
        self.memory = self._read()

    async def keep(self, memory: Memory) -> None:
        """Remember it until the end of this process, and beyond if the disk takes it."""
        self.memory = memory
        try:
            async with self._writing:
                await asyncio.to_thread(self._write, self.memory)
        except OSError as error:
            if not self.problem:
                log.error("%s cannot be written: %s", self._path, error)
            self.problem = str(error)
        else:
            self.problem = ""

    def _read(self) -> Memory:
        try:
            with self._path.open("rb") as file:
                content = file.read(MOST_BYTES)
            found = msgspec.json.decode(content, type=_File)
            if found.version == VERSION:
                return found.memory
            why = f"it is of version {found.version}, not {VERSION}"
        except FileNotFoundError:
            return Memory()
        except OSError as error:
            log.error("%s cannot be read: %s; its history, pin and suspension are not known", self._path, error)
            return Memory()
        except ValueError as error:  # msgspec's, too
            why = str(error)
        aside = self._path.with_name(f"{FILE}.unreadable")
        log.error("%s cannot be read: %s; kept as %s; history, pin and suspension are lost", self._path, why, aside)
        try:
            self._path.replace(aside)
        except OSError as failed:
            log.error("%s cannot be put aside: %s", self._path, failed)
        return Memory()

    def _write(self, memory: Memory) -> None:
        durable.replace(self._path, msgspec.json.encode(_File(version=VERSION, memory=memory)), _OWNER_ONLY)
