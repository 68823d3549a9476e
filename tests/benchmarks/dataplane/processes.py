"""Programs that run beside: started on a core, with their output in a file, and ended with the block."""

from __future__ import annotations

import http.client
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.dataplane.machine import pinned

START_S = 30.0
END_S = 30.0
_STEP_S = 0.02


class ProcessError(Exception):
    """A program did not start, or ended too early; with the end of what it said."""


@contextmanager
def started(
    argv: Sequence[str | Path], core: int | None, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program that ends with the block."""
    with log.open("wb") as output, pinned(core):
        process = subprocess.Popen(argv, stdout=output, stderr=output, env={**os.environ, **(env or {})})
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def await_true(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a program that was started is ready. Raises ProcessError."""
    deadline = time.monotonic() + START_S
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-2000:]
            raise ProcessError(f"{process.args!r} is not ready, exit code {process.poll()}:\n{said}")
        time.sleep(_STEP_S)


def answers(port: int, request: tuple[str, str, bytes, dict[str, str]]) -> bool:
    """Whether a request (method, path, body, headers) is answered with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request(*request)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
