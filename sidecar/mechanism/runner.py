"""Starts and stops server processes. A signal goes only to a process whose identity is proven, through a pidfd.

The leader is not reaped before its whole group is gone: while it is a zombie its number cannot be given to anybody
else, so the session id that the others are found by keeps its meaning.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from sidecar.mechanism import procfs
from sidecar.mechanism.family import MARKER as MARKER  # for those who start servers to know it, too
from sidecar.mechanism.family import Family, Identity
from sidecar.mechanism.serverlog import ServerLog

log = logging.getLogger(__name__)

_RESCAN_S = 0.05
_RESCAN_MOST_S = 1.0


class SpawnError(Exception):
    """The command could not be run at all; the text says why."""


class Exit(msgspec.Struct, frozen=True):
    """How a process ended. code: its exit status, or None with the signal's name."""

    code: int | None
    signal: str = ""

    def __str__(self) -> str:
        return f"was killed by {self.signal}" if self.signal else f"exited with code {self.code}"


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. env: the whole environment. marker: unique to this server."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: Path
    marker: str
    log: ServerLog


class ServerProcess:
    """A running server: its leader, and whatever the leader has forked.

    exited: resolves the moment that the leader ends, whether or not others of its group live on.
    kin: all its processes. popen: None for a server that another sidecar started.
    """

    def __init__(
        self, marker: str, log: ServerLog, pid: int, pidfd: int, popen: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.marker = marker
        self.log = log
        self.pid = pid
        found = procfs.process(pid)
        self.started = found.started if found else 0
        self.kin = Family(marker, (pid, self.started))
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._popen = popen
        self._pidfd = pidfd
        asyncio.get_running_loop().add_reader(pidfd, self._ended)

    def family(self) -> list[procfs.Process]:
        """The server's living processes. Reads all of /proc: keep it off the event loop."""
        return self.kin.members()

    def let_go(self) -> None:
        """Watch it no more, and leave it running."""
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        if self._popen is not None:
            self._popen.returncode = 0  # or its destructor would complain that it still runs

    def owns_port(self, port: int) -> bool:
        """Whether every socket that listens on the port is held by this server; False when none listens."""
        inodes = procfs.listeners(port)
        return bool(inodes) and inodes <= procfs.sockets(process.pid for process in self.family())

    async def stop(self, grace_s: float) -> None:
        """TERM to all, KILL to what is left after `grace_s`; returns when the group is confirmed empty, not before."""
        await _end(self.family, self.marker, signal.SIGTERM, grace_s)
        await _end(self.family, self.marker, signal.SIGKILL, None)
        await self.exited  # a pidfd becomes readable when the last thread has ended: then reaping does not block
        self._reap()

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if not self.exited.done():
            self.exited.set_result(_how_it_ended(self._pidfd))

    def _reap(self) -> None:
        if self._popen is not None:
            self._popen.wait()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


async def _end(
    find: Callable[[], list[procfs.Process]], marker: str, number: signal.Signals, patience_s: float | None
) -> None:
    """Signal the family, newcomers too, until it is empty or patience is at an end."""
    loop = asyncio.get_running_loop()
    deadline = None if patience_s is None else loop.time() + patience_s
    signalled: set[tuple[int, int]] = set()
    pause_s = _RESCAN_S / 5
    while family := await asyncio.to_thread(find):
        for process in family:
            if (process.pid, process.started) not in signalled:
                signalled.add((process.pid, process.started))
                send(process, number)
        if deadline is not None and loop.time() >= deadline:
            log.warning("%s: %d processes ignored %s", marker, len(family), number.name)
            return
        if number is signal.SIGKILL and pause_s >= _RESCAN_MOST_S:
            log.error("%s: pids %s survive SIGKILL", marker, [process.pid for process in family])
        pause_s = min(pause_s * 1.5, _RESCAN_S if deadline is not None else _RESCAN_MOST_S)
        await asyncio.sleep(pause_s)


def _how_it_ended(pidfd: int) -> Exit:
    try:
        info = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        info = None
    if info is None:
        return Exit(None, "an unknown cause")  # somebody else reaped it; that it is gone is certain
    if info.si_code == os.CLD_EXITED:
        return Exit(info.si_status)
    try:
        return Exit(None, signal.Signals(info.si_status).name)
    except ValueError:
        return Exit(None, f"signal {info.si_status}")  # a real-time signal has no name


async def spawn(launch: Launch) -> ServerProcess:
    """Start a server in a session of its own. Raises SpawnError with a reason that names the remedy."""
    try:
        popen = await asyncio.to_thread(_popen, launch)
    except OSError as error:
        raise SpawnError(_explain(launch, error)) from error
    except ValueError as error:  # a NUL in an argument, a "=" in the name of a variable
        raise SpawnError(f'"{launch.argv[0]}" could not be started: {error}') from error
    try:
        pidfd = os.pidfd_open(popen.pid)
    except OSError as error:  # out of file descriptors, most likely: what cannot be watched must not run
        popen.kill()
        await asyncio.to_thread(popen.wait)
        raise SpawnError(f"the server could not be watched: {error}") from error
    return ServerProcess(launch.marker, launch.log, popen.pid, pidfd, popen)


def take_over(pid: int, started: int, marker: str, log: ServerLog) -> ServerProcess | None:
    """The server that another sidecar started; None unless it `is_server`. Only to be asked of records since boot."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    if not is_server(pid, started, marker):  # after the pidfd: what is seen now is what the pidfd means
        os.close(pidfd)
        return None
    return ServerProcess(marker, log, pid, pidfd)


def is_server(pid: int, started: int, marker: str) -> bool:
    """Whether pid and start time are those of a living process, and its environment does not say that it is another.

    No mark at all is none that says so: vLLM and others set their title, which overwrites the environment.
    """
    found = procfs.process(pid)
    if found is None or not found.alive or found.started != started:
        return False
    marks = procfs.variable(pid, MARKER)
    return marks is not None and (not marks or marker in marks)


async def stop_marked(marker: str, grace_s: float, leader: Identity | None = None) -> None:
    """Stop the processes that carry a marker, and the family of their leader if that is known and there."""
    family = Family(marker, leader)
    await _end(family.members, marker, signal.SIGTERM, grace_s)
    await _end(family.members, marker, signal.SIGKILL, None)


def send(process: procfs.Process, number: signal.Signals) -> None:
    """Signal exactly the process that was seen: the pidfd pins it, the start time proves that it is still the same."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        now = procfs.process(process.pid)
        if now is not None and now.started == process.started:
            signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        pass  # it ended between the look and the signal, which is what the signal was for
    except PermissionError:
        log.exception("pid %d may not be sent %s", process.pid, number.name)
    finally:
        os.close(pidfd)


def child_environment(own: Mapping[str, str], extra: Mapping[str, str], marker: str) -> dict[str, str]:
    """The environment of a server: the sidecar's, what the manifest adds, and the marker.

    SPT_NOENV has setproctitle (PyPI) leave the environment in place, and the marker with it, for shorter titles.
    """
    return {"SPT_NOENV": "1", **own, **extra, MARKER: marker}


def _popen(launch: Launch) -> subprocess.Popen[bytes]:
    out, err = launch.log.open()
    with out, err:
        return subprocess.Popen(
            launch.argv,
            env=launch.env,
            cwd=launch.cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )


def _explain(launch: Launch, error: OSError) -> str:
    program = launch.argv[0]
    if error.errno == errno.ENOENT and not launch.cwd.is_dir():
        return f"the working directory {launch.cwd} does not exist"
    if error.errno == errno.ENOENT and "/" in program and (launch.cwd / program).exists():
        return f'"{program}" could not be started: the interpreter that its first line names does not exist'
    if error.errno == errno.ENOENT:
        return f'command not found: "{program}" is neither a path nor on PATH'
    if error.errno == errno.EACCES:
        return f'"{program}" may not be executed: {error.strerror}'
    return f'"{program}" could not be started: {error}'
