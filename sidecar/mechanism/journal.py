"""Which servers there are, written down so that the next sidecar can take them over: whole and on disk, or not at all.

A record is written with the intent before a process is spawned, and again with its identity afterwards; it is removed
when the process group is confirmed gone. Whatever happens in between, what is recorded is a superset of what runs.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterable
from pathlib import Path

import msgspec

from sidecar.mechanism import durable

log = logging.getLogger(__name__)

VERSION = 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One server. pid and started (clock ticks since boot) are 0 as long as it is only intended."""

    id: str
    model: str
    variant: str
    fingerprint: str
    devices: tuple[str, ...]
    reserved_mb: dict[str, int]
    port: int = 0
    pid: int = 0
    started: int = 0
    created_unix: float = 0.0


class _File(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    boot_id: str
    servers: tuple[Record, ...]


class Journal:
    """`servers.json` in the state directory. sidecar_id: marks the processes of every sidecar on this directory."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "servers.json"
        self._turn = asyncio.Lock()
        self._writes: set[asyncio.Task[None]] = set()  # or nobody would hold those whose callers have gone
        self.sidecar_id = _identity(folder / "id")

    def read(self) -> tuple[Record, ...]:
        """What was recorded since the machine was booted. A file that makes no sense is put aside, not thrown away."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return ()
        try:
            found = msgspec.json.decode(content, type=_File)
            if found.version != VERSION:
                raise ValueError(f"it is of version {found.version}, not {VERSION}")
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
            aside = self._path.with_name("servers.json.unreadable")
            self._path.replace(aside)
            log.error(
                "%s cannot be read (%s); kept as %s, its servers are found by their mark", self._path, error, aside
            )
            return ()
        return found.servers if found.boot_id == _boot_id() else ()

    async def write(self, records: Iterable[Record]) -> None:
        """Replace what is recorded. Returns when it is on disk. Raises OSError.

        The writes follow each other as they were called for. One whose caller is cancelled is finished all the same: no
        thread can be stopped halfway, and the next one must not write into its draft.
        """
        content = msgspec.json.encode(_File(version=VERSION, boot_id=_boot_id(), servers=tuple(records)))
        write = asyncio.create_task(self._write(content), name="journal")
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        try:
            await asyncio.shield(write)
        except asyncio.CancelledError:
            write.add_done_callback(self._tell_in_place_of_the_caller)
            raise

    async def _write(self, content: bytes) -> None:
        async with self._turn:
            await asyncio.to_thread(durable.replace, self._path, content)

    def _tell_in_place_of_the_caller(self, write: asyncio.Task[None]) -> None:
        if not write.cancelled() and (error := write.exception()) is not None:
            log.error("%s cannot be written: %s", self._path, error)


def _identity(path: Path) -> str:
    try:
        if known := path.read_text(encoding="ascii").strip():
            return known
    except FileNotFoundError:
        pass
    fresh = secrets.token_hex(8)
    durable.replace(path, fresh.encode())
    return fresh


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()
