"""The machine: kernel, limits, memory, disks, clock, and what of /proc can be seen."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from importlib import metadata

from sidecar import __version__
from sidecar.builtin import cpu
from sidecar.surfaces.doctor.finding import Finding, Patient, fail, ok, warn

MB = 2**20
LEAST_FREE_MB, FEW_FREE_MB = 64, 1024  # on the disk of the state directory
SPARE_FILES = 512  # beside two for each connection: one to the client, one to the server
LEAST_WATCHES = 1024
SANE_YEARS = (2025, 2100)
DISTRIBUTION = "llm-sidecar"


def kernel(_: Patient) -> Iterator[Finding]:
    """Whether it has what proofs of identity and adoption need."""
    release = platform.release()
    if sys.platform != "linux":
        yield fail(f"{sys.platform} is not Linux", "run it on Linux: processes are watched by pidfds and /proc")
        return
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        yield fail(
            f"Linux {release}: pidfd_open: {error.strerror}",
            "use Linux 5.4 or later, and a container runtime whose seccomp profile allows pidfd_open",
        )
    else:
        yield ok(f"Linux {release}, with pidfds")


def versions(_: Patient) -> Iterator[Finding]:
    """Python, and the packages that are needed."""
    yield ok(f"sidecar {__version__}, Python {platform.python_version()}")
    missing = [name for name in _requirements() if not _installed(name)]
    if missing:
        yield fail(f"packages are missing: {', '.join(missing)}", f"pip install --force-reinstall {DISTRIBUTION}")


def processes(patient: Patient) -> Iterator[Finding]:
    """Whether other processes can be seen: servers are told from strangers by that."""
    proc = patient.places.proc
    try:
        (proc / "self" / "stat").read_text()
        (proc / "self" / "io").read_text()
    except OSError as error:
        yield fail(f"{error.filename}: {error.strerror}", "mount /proc, readable, into the container")
        return
    if not (proc / "1" / "stat").exists():
        yield warn(
            f"{proc} hides the processes of others (hidepid)",
            "memory of others cannot be told by name; add the sidecar's user to the group that may see them",
        )
        return
    boot = proc / "sys" / "kernel" / "random" / "boot_id"
    try:
        boot.read_text()
    except OSError as error:
        yield fail(f"{boot}: {error.strerror}", "make it readable: without it servers cannot be told from those before")
        return
    yield ok("processes can be seen, and told apart over restarts")


def memory(patient: Patient) -> Iterator[Finding]:
    """RAM, and what cgroups leave of it."""
    proc, mount = patient.places.proc, patient.places.sys / "fs" / "cgroup"
    whole = cpu.machine(proc)
    limit = min((bound.total for bound in cpu.cgroups(proc, mount)), default=whole.total)
    needs = max((_ram_mb(patient, name) for name in patient.declaration.models), default=0)
    told = f"{whole.total // MB:,} MB of RAM, {whole.free // MB:,} MB of that available"
    if limit < whole.total:
        told = f"a cgroup limits RAM to {limit // MB:,} MB of the machine's {whole.total // MB:,} MB"
    if needs > limit // MB:
        yield warn(f"{told}; a model declares {needs:,} MB on cpu", "raise the limit (memory.max), or lower memory_mb")
    elif limit < whole.total:
        yield ok(f"{told}; what is declared fits")
    else:
        yield ok(told)


def cgroups(patient: Patient) -> Iterator[Finding]:
    """Limits of processes: engines start many threads."""
    root = patient.places.sys / "fs" / "cgroup"
    file = root / "pids.max"
    try:
        most = file.read_text().strip()
    except FileNotFoundError:
        yield ok("no limit of processes of our own cgroup" if root.exists() else "there are no cgroups here")
        return
    if most != "max" and int(most) < 256:
        yield warn(
            f"{file} allows {most} processes and threads", "raise pids.max: engines start dozens of threads each"
        )
    else:
        yield ok(f"processes and threads: {most}")


def files(patient: Patient) -> Iterator[Finding]:
    """Whether there are enough file descriptors for the connections that are allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * patient.settings.max_connections + SPARE_FILES
    if soft >= needed or soft == resource.RLIM_INFINITY:
        yield ok(f"{soft:,} open files are allowed, {needed:,} may be needed")
        return
    remedy = f"ulimit -n {needed} (LimitNOFILE={needed} in a systemd unit), or lower [sidecar] max_connections"
    told = f"{soft:,} open files are allowed (at most {hard:,}), max_connections may need {needed:,}"
    yield fail(told, remedy) if soft < SPARE_FILES else warn(told, remedy)


def inotify(patient: Patient) -> Iterator[Finding]:
    """Whether changes of manifests can be noticed at once."""
    folder = patient.places.proc / "sys" / "fs" / "inotify"
    try:
        watches = int((folder / "max_user_watches").read_text())
        instances = int((folder / "max_user_instances").read_text())
    except FileNotFoundError:
        yield warn("the kernel has no inotify", "changes of manifests are noticed by looking; it takes seconds")
        return
    if watches < LEAST_WATCHES or instances < 2:
        yield warn(
            f"inotify: {watches} watches and {instances} instances for each user",
            "sysctl fs.inotify.max_user_watches=65536 fs.inotify.max_user_instances=256",
        )
    else:
        yield ok(f"inotify: {watches:,} watches, {instances:,} instances")


def clock(_: Patient) -> Iterator[Finding]:
    """Whether the clock tells a time that events and tokens can go by."""
    yield judge_clock(time.time())


def judge_clock(now: float) -> Finding:
    """The same of a given time, in unix seconds."""
    year = time.gmtime(now).tm_year
    if SANE_YEARS[0] <= year <= SANE_YEARS[1]:
        return ok(f"it is {time.strftime('%Y-%m-%d %H:%M', time.gmtime(now))} UTC")
    remedy = "set the clock (chrony, systemd-timesyncd): tokens expire and events are dated by it"
    return fail(f"the clock says that it is {year}", remedy)


def disk(patient: Patient) -> Iterator[Finding]:
    """Room for logs and state."""
    folder = patient.state_dir
    while not folder.exists():
        folder = folder.parent
    yield judge_disk(str(folder), shutil.disk_usage(folder).free // MB, _free_inodes(os.statvfs(folder)))
    yield from _logs(patient)


def judge_disk(folder: str, free_mb: int, free_inodes: int | None) -> Finding:
    """free_inodes: None where a file system has no such number."""
    remedy = "make room, or move [sidecar] state_dir: what cannot be written down cannot be started"
    if free_mb < LEAST_FREE_MB or free_inodes == 0:
        return fail(f"{folder}: {free_mb:,} MB free, {free_inodes} inodes", remedy)
    if free_mb < FEW_FREE_MB:
        return warn(f"{folder}: {free_mb:,} MB free", remedy)
    return ok(f"{folder}: {free_mb:,} MB free")


def _logs(patient: Patient) -> Iterator[Finding]:
    folder = patient.state_dir / "logs"
    limit = patient.settings.server_log_limit
    large = [path.name for path in folder.glob("*.log") if path.stat().st_size > 2 * limit] if folder.is_dir() else []
    if large:
        remedy = "start the sidecar, which cuts them, or lower server_log_limit"
        yield warn(f"logs are larger than server_log_limit: {', '.join(sorted(large))}", remedy)


def _free_inodes(told: os.statvfs_result) -> int | None:
    return told.f_favail if told.f_files else None


def _ram_mb(patient: Patient, name: str) -> int:
    """The least that a variant of the model declares on `cpu`, 0 if one needs none."""
    declared = [
        sum(amount for requirement, amount in variant.needs() if requirement == "cpu")
        for variant in patient.declaration.models[name].variants
        if not variant.external
    ]
    return min(declared, default=0)


def _requirements() -> Iterator[str]:
    try:
        told = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return  # it runs from its source
    for line in told:
        if "extra ==" not in line:
            yield line.split(";")[0].strip().partition("[")[0].split(">")[0].split("=")[0].split("<")[0].strip()


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
