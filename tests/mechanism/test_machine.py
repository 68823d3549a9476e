"""What the control floor learns of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sidecar.mechanism.lock import StateDir
from sidecar.mechanism.machine import LocalMachine
from tests.servers import PROCESS
from tests.support import until


async def test_a_family_has_also_those_who_left_the_session(tmp_path: Path) -> None:
    state = StateDir(tmp_path)
    flags = [sys.executable, PROCESS, "--child", "--daemon"]
    with subprocess.Popen(flags, stdout=subprocess.PIPE, text=True, start_new_session=True) as leader:
        assert leader.stdout is not None
        children = []
        while (line := leader.stdout.readline().split())[0] == "child":
            children.append(int(line[1]))
        try:
            families = await LocalMachine(state).families({leader.pid, 2**22 - 1})
            assert families[leader.pid].keys() == {leader.pid, *children}
            assert families[leader.pid][leader.pid] > 0
            assert families[2**22 - 1] == {}
            assert os.getpid() not in families[leader.pid]
        finally:
            for pid in (*children, leader.pid):
                os.kill(pid, 9)
    await until(lambda: leader.poll() is not None, "it is gone")
    state.close()
