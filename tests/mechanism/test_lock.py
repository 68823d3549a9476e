"""One sidecar to a state directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.mechanism.lock import StateDir, StateDirError
from tests.support import write

HOLDER = """
import subprocess, sys, pathlib
from sidecar.mechanism.lock import StateDir
state = StateDir(pathlib.Path(sys.argv[1]))
child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_the_directory_is_made_for_this_user_alone(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "a" / "state")
    assert (tmp_path / "a" / "state").stat().st_mode & 0o777 == 0o700
    assert state.logs == tmp_path / "a" / "state" / "logs"
    state.close()


def test_a_second_one_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    write(tmp_path, {"lock": "1234567890 from long ago"})
    first = StateDir(tmp_path)
    for _ in range(2):  # the refused one must not have harmed the file either
        with pytest.raises(StateDirError) as refused:
            StateDir(tmp_path)
        assert str(refused.value) == f"state_dir {tmp_path} is in use by another sidecar (pid {os.getpid()})"
    first.close()
    StateDir(tmp_path).close()


def test_the_lock_ends_with_the_process_though_a_server_of_it_lives_on(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        server = int(holder.stdout.readline())
        try:
            with pytest.raises(StateDirError, match=f"pid {holder.pid}"):
                StateDir(tmp_path)
            holder.kill()
            holder.wait()
            StateDir(tmp_path).close()
        finally:
            os.kill(server, 9)


def test_a_path_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, {"file": ""})
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateDirError, match=f"state_dir {path} cannot be used"):
            StateDir(path)
