"""Reads /proc: which processes there are, what is in their environment, who listens, what memory is held (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import msgspec

PROC = Path("/proc")
_LISTEN = "0A"  # TCP_LISTEN, include/net/tcp_states.h
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Process(msgspec.Struct, frozen=True):
    """One process as it is now. started: clock ticks since boot; together with the pid it is an identity.

    threads: a leader that has ended is a zombie (Z) while its other threads still live, and hold all that it held.
    """

    pid: int
    state: str
    parent: int
    group: int
    session: int
    started: int
    threads: int

    @property
    def alive(self) -> bool:
        """False for a zombie without threads: it runs no more and holds nothing but its number."""
        return self.state not in "ZX" or self.threads > 1


def process(pid: int) -> Process | None:
    """The process, or None if there is none (any more)."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # gone; or hidden (proc(5), hidepid), and then not ours
    fields = text.rpartition(")")[2].split()  # the name in parentheses may hold spaces, and parentheses
    return Process(
        pid=pid,
        state=fields[0],
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        threads=int(fields[17]),
        started=int(fields[19]),
    )


def private_mb(pid: int) -> int:
    """Memory that the machine gets back when the process ends: resident pages but for those of files, in MB.

    Mapped weights are resident too, but they are page cache, which counts as available already. 0 if it is gone.
    """
    try:
        _, resident, shared, *_ = (PROC / str(pid) / "statm").read_text(encoding="ascii").split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return (int(resident) - int(shared)) * _PAGE_BYTES // 2**20


def io(pid: int) -> tuple[int, int] | None:
    """Bytes that the process has read by system calls, and those that came from disks for it; None if not told."""
    try:
        lines = (PROC / str(pid) / "io").read_text(encoding="ascii").splitlines()
    except OSError:
        return None  # gone, another user's, or a kernel without the counts
    counts = dict(line.split(": ") for line in lines)
    return int(counts["rchar"]), int(counts["read_bytes"])


def mapped(pid: int, paths: Collection[str]) -> dict[str, int]:
    """Of these files, those that the process has mapped, with the bytes of each that are in its memory."""
    folder = PROC / str(pid)
    try:
        with (folder / "maps").open(encoding="utf-8", errors="replace") as maps:
            if not any(_mapped_path(line) in paths for line in maps):
                return {}  # which is told without a walk through page tables
        with (folder / "smaps").open(encoding="utf-8", errors="replace") as maps:
            return _resident(maps, paths)
    except OSError:
        return {}  # gone, or another user's


def _resident(maps: Iterable[str], paths: Collection[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    path = ""
    for line in maps:
        if "-" in line.partition(" ")[0]:
            path = _mapped_path(line)
        elif path in paths and line.startswith("Rss:"):
            found[path] = found.get(path, 0) + int(line.split()[1]) * 1024
    return found


def _mapped_path(line: str) -> str:
    return line.rstrip("\n").split(maxsplit=5)[5] if line.count("/") else ""


def positions(pid: int, paths: Collection[str]) -> dict[str, int]:
    """Of these files, those that the process has open, with the place up to which it has read."""
    folder = PROC / str(pid)
    found: dict[str, int] = {}
    try:
        links = list((folder / "fd").iterdir())
    except OSError:
        return {}  # gone, or another user's
    for link in links:
        try:
            path = str(link.readlink())
            if path in paths:
                first = (folder / "fdinfo" / link.name).read_text(encoding="ascii").partition("\n")[0]
                found[path] = max(found.get(path, 0), int(first.split()[1]))
        except OSError:
            continue  # closed since it was listed
    return found


def processes() -> Iterator[Process]:
    """Every process that can be seen."""
    for entry in os.scandir(PROC):
        if entry.name.isdecimal() and (found := process(int(entry.name))) is not None:
            yield found


def still_there(pid: int, started: int) -> bool:
    """Whether the pid still belongs to the process that started then, be it a zombie."""
    found = process(pid)
    return found is not None and found.started == started


def variable(pid: int, name: str) -> list[str] | None:
    """The values of a variable in the environment of a process, mostly one or none; None if that cannot be read."""
    entries = _environment(pid)
    if entries is None:
        return None
    prefix = f"{name}=".encode()
    return [entry[len(prefix) :].decode("utf-8", "replace") for entry in entries if entry.startswith(prefix)]


def marked(prefix: str) -> dict[str, list[Process]]:
    """The living processes that have a variable which starts with `prefix`, by what follows it."""
    wanted = prefix.encode()
    found: dict[str, list[Process]] = {}
    for one in processes():
        for entry in (_environment(one.pid) or ()) if one.alive else ():
            if entry.startswith(wanted):
                found.setdefault(entry[len(wanted) :].decode("utf-8", "replace"), []).append(one)
    return found


def _environment(pid: int) -> list[bytes] | None:
    try:
        return (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # gone, or another user's


def listeners(port: int) -> set[int]:
    """Inodes of the TCP sockets, IPv4 and IPv6, that listen on a port."""
    return listening().get(port, set())


def listening() -> dict[int, set[int]]:
    """The ports on which TCP sockets listen, with the inodes of those."""
    found: dict[int, set[int]] = {}
    for table in ("tcp", "tcp6"):
        try:
            lines = (PROC / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:
            continue  # a kernel without IPv6
        for line in lines:
            _, address, _, state, *rest = line.split(maxsplit=10)
            if state == _LISTEN:
                found.setdefault(int(address.rpartition(":")[2], 16), set()).add(int(rest[5]))
    return found


def sockets(pids: Iterable[int]) -> set[int]:
    """Inodes of the sockets that the processes hold."""
    return {inode for pid in pids for inode in _sockets_of(pid)}


def _sockets_of(pid: int) -> Iterator[int]:
    folder = PROC / str(pid) / "fd"
    try:
        links = list(folder.iterdir())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return
    for link in links:
        try:
            target = str(link.readlink())
        except OSError:
            continue  # closed since it was listed
        if target.startswith("socket:["):
            yield int(target[8:-1])
