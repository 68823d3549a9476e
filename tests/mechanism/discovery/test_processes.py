"""How a server was started and what it holds, of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidecar.mechanism.discovery import processes
from sidecar.mechanism.family import MARKER

WAIT = "print('there', flush=True); import sys; sys.stdin.read()"


@contextmanager
def running(*command: str, **more: str) -> Iterator[int]:
    """A process that has begun, and waits; its environment is `more` alone."""
    env = {"PATH": os.environ["PATH"], **more}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd="/tmp") as process:  # noqa: S108 - a folder that is there
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_command_folder_and_what_engines_read_are_known() -> None:
    with running(
        sys.executable, "-c", WAIT, "--port", "1", HF_HOME="/models", CUDA_VISIBLE_DEVICES="0", SHELL="x"
    ) as pid:
        held = processes.held([pid], {pid: {"nvidia:0": 100}, 1: {"nvidia:0": 5}})
    assert held.command == (sys.executable, "-c", WAIT, "--port", "1")
    assert held.env == {"HF_HOME": "/models", "CUDA_VISIBLE_DEVICES": "0"}
    assert (held.cwd, held.devices, held.ours, held.why) == ("/tmp", {"nvidia:0": 100}, False, "")  # noqa: S108 - as above
    assert held.private_mb >= 1


def test_memory_is_that_of_all_that_it_has_started() -> None:
    hold = "block = bytearray(60_000_000); "
    child = f"import subprocess, sys; {hold}subprocess.run([sys.executable, '-c', {hold + WAIT!r}])"
    with running(sys.executable, "-c", child) as pid:
        held = processes.held([pid], {})
    assert 110 < held.private_mb < 400


def test_a_title_is_no_command() -> None:
    with running("bash", "-c", f'exec -a "vLLM engine core" {sys.executable} -c "{WAIT}"') as pid:
        held = processes.held([pid], {})
    assert (held.command, held.pid) == ((), pid)
    assert 'has put a title in the place of its command line ("vLLM engine core")' in held.why


def test_servers_of_a_sidecar_carry_its_mark() -> None:
    with running(sys.executable, "-c", WAIT, **{MARKER: "m-1"}) as pid:
        assert processes.held([pid], {}).ours


def test_one_that_cannot_be_seen_or_is_gone_is_told() -> None:
    assert "cannot be seen" in processes.held([], {}).why
    with running(sys.executable, "-c", WAIT) as pid:
        pass
    assert "cannot be seen" in processes.held([pid], {}).why


def test_programs_that_serve_no_models_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "redis-server").symlink_to(sys.executable)
    with running(str(tmp_path / "redis-server"), "-c", WAIT) as pid, running(sys.executable, "-c", WAIT) as other:
        assert processes.serves_no_models([pid])
        assert not processes.serves_no_models([pid, other])
    assert not processes.serves_no_models([])
