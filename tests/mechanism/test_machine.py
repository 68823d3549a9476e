"""What the control floor learns of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidecar.mechanism.lock import StateDir
from sidecar.mechanism.machine import LocalMachine
from tests.servers import PROCESS


@contextmanager
def forking() -> Iterator[tuple[int, list[int]]]:
    """A leader that has forked a child of its session, and one that has left it; killed at the end."""
    command = [sys.executable, PROCESS, "--child", "--daemon"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as leader:
        assert leader.stdout is not None
        children = []
        while (line := leader.stdout.readline().split())[0] == "child":
            children.append(int(line[1]))
        try:
            yield leader.pid, children
        finally:
            for pid in (*children, leader.pid):
                os.kill(pid, signal.SIGKILL)


async def test_a_family_has_also_those_who_left_the_session(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    with forking() as (leader, children):
        families = await LocalMachine(state).families({leader, 2**22 - 1})
    state.close()
    assert families[leader].keys() == {leader, *children}
    assert families[leader][leader] > 0
    assert families[2**22 - 1] == {}
