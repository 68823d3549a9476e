"""The machine's own memory as a device: RAM, or what the cgroups around this process leave of it.

Reads `/proc` and `/sys/fs/cgroup`, nothing else. Swap is not counted: a model that needs it is too slow to serve.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from plugin_sdk import Config, Device, DeviceStatus, PluginError

MB = 1 << 20


class Settings(Config, frozen=True):
    """Where the kernel's files are; other paths serve tests, and containers that see the host's under `/host`."""

    proc: str = "/proc"
    cgroup: str = "/sys/fs/cgroup"


class Bound(msgspec.Struct, frozen=True):
    """Memory in bytes: what there may be in all, and how much of it could be taken now."""

    total: int
    free: int


class Hierarchy(msgspec.Struct, frozen=True):
    """How one version of cgroups names things. limits: files of which the lowest counts."""

    controller: str  # second field of /proc/self/cgroup
    mounts: tuple[str, ...]
    limits: tuple[str, ...]
    usage: str
    reclaimable: str  # key in memory.stat, of the cgroup and those below it


# https://docs.kernel.org/admin-guide/cgroup-v2.html: above memory.high a cgroup is throttled until it is useless for
# inference, so it limits as memory.max does. `unified` is where systemd's hybrid layout mounts version 2.
V2 = Hierarchy("", ("", "unified"), ("memory.max", "memory.high"), "memory.current", "inactive_file")

# https://docs.kernel.org/admin-guide/cgroup-v1/memory.html: usage counts descendants, as `total_*` does.
V1 = Hierarchy("memory", ("memory",), ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


class Cpu(Device[Settings]):
    """One device, `cpu`. total_mb: the machine's RAM or the lowest cgroup limit. free_mb: the least that any leaves."""

    provides = "cpu"
    host_memory = True

    def probe(self) -> DeviceStatus:
        """Raises OSError where there is no /proc, PluginError where it lacks a field."""
        proc, cgroup = Path(self.config.proc), Path(self.config.cgroup)
        bounds = [machine(proc), *cgroups(proc, cgroup)]
        total = min(bound.total for bound in bounds)
        free = min(total, *(bound.free for bound in bounds))
        return DeviceStatus(id="cpu", name="CPU", total_mb=total // MB, free_mb=max(0, free) // MB)


def machine(proc: Path) -> Bound:
    """RAM of the machine. MemAvailable is the kernel's own estimate of what can be had without swapping (proc(5))."""
    fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines() if ":" in line)
    try:
        return Bound(_kib(fields["MemTotal"]), _kib(fields["MemAvailable"]))
    except KeyError as missing:
        raise PluginError(f"{proc / 'meminfo'} has no {missing.args[0]}") from missing


def cgroups(proc: Path, mount: Path) -> Iterator[Bound]:
    """What each limited cgroup allows, from this process's own up to the root, in both versions' hierarchies.

    A parent may be tighter than its child, in its limit or, through siblings, in what is left: all of them count.
    """
    for controllers, path in _memberships(proc / "self" / "cgroup"):
        for hierarchy in (V2, V1):
            if hierarchy.controller in controllers:
                for directory in _upwards(mount, hierarchy, path):
                    yield from _bounds(directory, hierarchy)


def _memberships(file: Path) -> Iterator[tuple[list[str], str]]:
    """(controllers, path) of each line `id:controllers:path` of /proc/self/cgroup; version 2 has no controllers."""
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:  # a kernel without cgroups
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        yield controllers.split(","), path


def _upwards(mount: Path, hierarchy: Hierarchy, path: str) -> Iterator[Path]:
    """The cgroup's directory and those above it.

    Some may not exist: a container's mount begins at its own cgroup while the path is the host's, so the walk goes up
    to what there is. A path out of this namespace (`/../x`, cgroup_namespaces(7)) has only the root in common.
    """
    parts = [part for part in path.split("/") if part]
    if ".." in parts:
        parts = []
    for root in hierarchy.mounts:
        for depth in range(len(parts), -1, -1):
            yield mount.joinpath(root, *parts[:depth])


def _bounds(directory: Path, hierarchy: Hierarchy) -> Iterator[Bound]:
    """What one cgroup allows; nothing where it sets no limit (the root has no such files)."""
    limits = [limit for name in hierarchy.limits if (limit := _number(directory / name)) is not None]
    usage = _number(directory / hierarchy.usage)
    if limits and usage is not None:
        yield Bound(min(limits), min(limits) - usage + _reclaimable(directory, hierarchy.reclaimable))


def _reclaimable(directory: Path, key: str) -> int:
    """Bytes of page cache that the kernel drops first: they are counted as used but are free for the asking."""
    stat = dict(line.split(maxsplit=1) for line in (directory / "memory.stat").read_text().splitlines())
    return int(stat.get(key, 0))


def _number(file: Path) -> int | None:
    """The number in `file`; None where there is no such file, or it says `max`."""
    try:
        text = file.read_text().strip()
    except FileNotFoundError:
        return None
    return None if text == "max" else int(text)


def _kib(text: str) -> int:
    """Bytes of a meminfo value such as ` 16384 kB`."""
    return int(text.split()[0]) * 1024
