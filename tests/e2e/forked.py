"""Runs `sidecar ...` in processes that are forked from one in which it is imported already.

They are the same program, in a process of its own, without the second that Python takes to import it: hundreds of them
are started in these tests. Where the interpreter itself is told something, or the test is about the very command, a new
one is started instead (`as_usual`).
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from multiprocessing import reduction
from pathlib import Path
from typing import Any, TextIO

_PRELOADED = ["sidecar.surfaces.cli.run", "sidecar.surfaces.cli.remote", "sidecar.surfaces.cli.local", __name__]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(_PRELOADED)
_OF_THE_INTERPRETER = ("PYTHON", "LD_", "MALLOC_")


class _Passed:
    """A file descriptor on its way into another process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getstate__(self) -> Any:
        return reduction.DupFd(self.number)

    def __setstate__(self, passed: Any) -> None:
        self.number = passed.detach()


class Forked:
    """A process like `subprocess.Popen`, as far as the tests need one. stderr: what it says, if that was asked for."""

    def __init__(self, process: Any, stderr: TextIO | None) -> None:
        self.stderr = stderr
        self._process = process

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        code: int | None = self._process.exitcode
        return code

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("sidecar", timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


AnyProcess = Forked | subprocess.Popen[str]


def as_usual(env: Mapping[str, str]) -> bool:
    """Whether these variables concern the interpreter, so that a new one is needed."""
    return any(
        name.startswith(_OF_THE_INTERPRETER) and name != "PYTHONUNBUFFERED" and os.environ.get(name) != value
        for name, value in env.items()
    )


def spawn(arguments: Sequence[str], env: Mapping[str, str], *program: str, out: int | None = None) -> AnyProcess:
    """`sidecar ARGUMENTS`, of which one hears what it says on stderr. env: all of its variables.

    program: a module, and arguments that come first, in the place of `sidecar`. out: where stdout goes; else nowhere.
    """
    if as_usual(env) or program not in ((), ("sidecar",)):
        command = [sys.executable, "-m", *(program or ("sidecar",)), *arguments]
        stdout = subprocess.DEVNULL if out is None else out
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=stdout, text=True, env=dict(env))
    reading, writing = os.pipe()
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - of the descriptor alone
        process = _start(arguments, env, nowhere.fileno() if out is None else out, writing)
    os.close(writing)
    return Forked(process, os.fdopen(reading, encoding="utf-8", errors="replace"))


def call(
    arguments: Sequence[str], env: Mapping[str, str], timeout_s: float, *, check: bool
) -> subprocess.CompletedProcess[str]:
    """`sidecar ARGUMENTS`, to its end. Raises subprocess.CalledProcessError if it is to be checked."""
    if as_usual(env):
        command = [sys.executable, "-m", "sidecar", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=check, timeout=timeout_s, env=dict(env))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = Forked(_start(arguments, env, out.fileno(), err.fileno()), None)
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
        said: list[str] = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode("utf-8"))
    done = subprocess.CompletedProcess(["sidecar", *arguments], code, said[0], said[1])
    if check:
        done.check_returncode()
    return done


def _start(arguments: Sequence[str], env: Mapping[str, str], stdout: int, stderr: int) -> Any:
    work = (list(arguments), dict(env), str(Path.cwd()), _Passed(stdout), _Passed(stderr))
    process = _CONTEXT.Process(target=_run, args=work, daemon=True)
    process.start()
    return process


def _run(arguments: list[str], env: dict[str, str], folder: str, stdout: _Passed, stderr: _Passed) -> None:
    """In the new process."""
    from sidecar.surfaces.cli import main

    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    os.dup2(stdout.number, 1)
    os.dup2(stderr.number, 2)
    os.close(stdout.number)
    os.close(stderr.number)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), encoding="utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), encoding="utf-8", write_through=True)
    sys.argv = ["sidecar", *arguments]
    main(arguments, prog_name="sidecar")
