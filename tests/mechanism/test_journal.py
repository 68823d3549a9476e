"""What is written down of the servers, so that the next sidecar finds them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
from pathlib import Path

import pytest

from sidecar.mechanism import durable, procfs
from sidecar.mechanism.journal import Journal, Record
from sidecar.mechanism.runner import MARKER, Launch, child_environment, spawn, take_over
from sidecar.mechanism.serverlog import ServerLog
from tests.support import PATIENCE_S, until

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


class SlowDisk:
    """Holds every write up until it is told to go on. written: how many servers each has recorded, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.written: list[int] = []
        self.overlapped = False
        self._busy = threading.Lock()
        self._replace = durable.replace
        monkeypatch.setattr(durable, "replace", self.replace)

    def replace(self, path: Path, content: bytes) -> None:
        self.overlapped |= not self._busy.acquire(blocking=False)
        self.entered.set()
        self.go_on.wait(PATIENCE_S)
        self._replace(path, content)
        self.written.append(len(json.loads(content)["servers"]))
        self._busy.release()


async def test_a_write_whose_caller_is_cancelled_is_finished_before_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, disk = Journal(tmp_path), SlowDisk(monkeypatch)
    first = asyncio.create_task(journal.write([RECORD]))
    await until(disk.entered.is_set, "the first is being written")
    second = asyncio.create_task(journal.write([RECORD] * 2))
    third = asyncio.create_task(journal.write([RECORD] * 3))
    await asyncio.sleep(0)
    first.cancel()
    second.cancel()
    assert [type(end) for end in await asyncio.gather(first, second, return_exceptions=True)] == [
        asyncio.CancelledError
    ] * 2
    disk.go_on.set()
    await third
    assert disk.written == [1, 2, 3]
    assert not disk.overlapped
    assert journal.read() == (RECORD,) * 3


async def test_a_storm_of_cancelled_writes_tears_nothing_and_the_last_one_stands(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    ends: list[BaseException | None] = []
    for storm in range(20):
        writes = [asyncio.create_task(journal.write([RECORD] * (storm * 10 + number))) for number in range(10)]
        await asyncio.sleep(0.001 * (storm % 3))
        for write in writes[storm % 2 :: 2]:
            write.cancel()
        await asyncio.sleep(0)
        ends += await asyncio.gather(*writes, return_exceptions=True)
        assert len(journal.read()) <= storm * 10 + 9
    assert {type(end) for end in ends} <= {type(None), asyncio.CancelledError}
    await journal.write([RECORD] * 3)
    assert journal.read() == (RECORD,) * 3
    assert not (tmp_path / "servers.json.new").exists()


async def test_a_write_that_fails_is_told_though_its_caller_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    journal, disk = Journal(tmp_path), SlowDisk(monkeypatch)
    (tmp_path / "servers.json.new").mkdir()
    write = asyncio.create_task(journal.write([]))
    await until(disk.entered.is_set, "it is being written")
    write.cancel()
    await asyncio.wait([write])
    disk.go_on.set()
    await until(lambda: "Is a directory" in caplog.text, "it is told")


async def test_only_the_very_process_is_taken_over(tmp_path: Path) -> None:
    argv = (sys.executable, "-c", "import time; time.sleep(60)")
    log = ServerLog(tmp_path, "a")
    env = child_environment(os.environ, {}, "mine:a-1")
    process = await spawn(Launch(argv=argv, env=env, cwd=tmp_path, marker="mine:a-1", log=log))
    try:
        started = process.started
        # The kernel closes the pipe that tells of a successful exec a moment before the new environment can be read.
        await until(lambda: procfs.variable(process.pid, MARKER) == ["mine:a-1"], "it carries its mark")
        assert take_over(process.pid, started + 1, "mine:a-1", log) is None
        assert take_over(process.pid, started, "mine:a-2", log) is None
        assert take_over(2**22 - 1, started, "mine:a-1", log) is None
        again = take_over(process.pid, started, "mine:a-1", log)
        assert again is not None
        assert [member.pid for member in again.family()] == [process.pid]
        again.let_go()
        assert not process.exited.done()
    finally:
        await process.stop(1)
