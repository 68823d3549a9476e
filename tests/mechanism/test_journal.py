"""What is written down of the servers, so that the next sidecar finds them."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from sidecar.mechanism import procfs
from sidecar.mechanism.journal import Journal, Record
from sidecar.mechanism.runner import MARKER, Launch, child_environment, spawn, take_over
from sidecar.mechanism.serverlog import ServerLog
from tests.support import until

BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
RECORD = Record(
    id="a-1", model="a", variant="default", fingerprint="f", devices=("cpu",), reserved_mb={"cpu": 5}, port=1, pid=2
)


async def test_what_was_written_is_read_by_the_next_one(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    assert first.read() == ()
    await first.write([RECORD])
    second = Journal(tmp_path)
    assert second.read() == (RECORD,)
    assert second.sidecar_id == first.sidecar_id
    await second.write([])
    assert first.read() == ()


async def test_records_from_before_a_reboot_mean_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    await journal.write([RECORD])
    file = tmp_path / "servers.json"
    file.write_text(file.read_text().replace(BOOT_ID, "another"))
    assert journal.read() == ()


async def test_a_file_that_makes_no_sense_is_put_aside(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    (tmp_path / "servers.json").write_bytes(b'{"version": 1')
    assert journal.read() == ()
    assert (tmp_path / "servers.json.unreadable").read_bytes() == b'{"version": 1'


async def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    await journal.write([RECORD])
    (tmp_path / "servers.json.new").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        await journal.write([])
    assert journal.read() == (RECORD,)


async def test_writes_at_once_follow_each_other_and_the_last_one_stands(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    await asyncio.gather(*(journal.write([RECORD] * count) for count in range(20)))
    assert journal.read() == (RECORD,) * 19


async def test_only_the_very_process_is_taken_over(tmp_path: Path) -> None:
    argv = (sys.executable, "-c", "import time; time.sleep(60)")
    log = ServerLog(tmp_path, "a")
    env = child_environment(os.environ, {}, "mine:a-1")
    process = await spawn(Launch(argv=argv, env=env, cwd=tmp_path, marker="mine:a-1", log=log))
    try:
        started = process.started
        # The kernel closes the pipe that tells of a successful exec a moment before the new environment can be read.
        await until(lambda: procfs.carries(process.pid, f"{MARKER}=mine:a-1"), "it carries its mark")
        assert take_over(process.pid, started + 1, "mine:a-1", log) is None
        assert take_over(process.pid, started, "mine:a-2", log) is None
        assert take_over(os.getpid(), _started(os.getpid()), "mine:a-1", log) is None
        assert take_over(2**22 - 1, started, "mine:a-1", log) is None
        again = take_over(process.pid, started, "mine:a-1", log)
        assert again is not None
        assert [member.pid for member in again.family()] == [process.pid]
        again.let_go()
        assert not process.exited.done()
    finally:
        await process.stop(1)


def _started(pid: int) -> int:
    found = procfs.process(pid)
    assert found is not None
    return found.started
