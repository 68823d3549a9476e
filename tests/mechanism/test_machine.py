"""What the control floor learns of this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from sidecar.mechanism import procfs
from sidecar.mechanism.journal import Record
from sidecar.mechanism.lock import StateDir
from sidecar.mechanism.machine import Job, LocalMachine, LocalServer
from sidecar.mechanism.serverlog import ServerLog
from tests import servers
from tests.servers import PROCESS
from tests.support import PATIENCE_S, until

TITLED = str(Path(servers.__file__).with_name("titled.py"))


class Machine:
    """A sidecar's hold on this machine; what it starts is stopped at the end."""

    def __init__(self, state: StateDir) -> None:
        self.state = state
        self.local = LocalMachine(state)
        self.started: list[LocalServer] = []

    async def start(self, server_id: str, *argv: str) -> tuple[LocalServer, set[int]]:
        """A server that is ready, and the pids of all its processes."""
        job = Job(server=server_id, model=server_id, argv=(sys.executable, *argv), env={}, cwd=self.state.path)
        server = await self.local.spawn(job)
        self.started.append(server)
        out = ServerLog(self.state.logs, server_id).out
        await until(lambda: "ready" in out.read_text(), "it is ready")
        children = [int(line.split()[1]) for line in out.read_text().splitlines() if line.startswith("child ")]
        return server, {server.pid, *children}

    def next(self) -> LocalMachine:
        """As the next sidecar on this state directory has it."""
        return LocalMachine(self.state)


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    state = StateDir(tmp_path)
    machine = Machine(state)
    yield machine
    for server in machine.started:
        await asyncio.wait_for(server.stop(0), PATIENCE_S)
    state.close()


def record(server_id: str, server: LocalServer) -> Record:
    return Record(
        id=server_id,
        model=server_id,
        variant="default",
        fingerprint="f",
        devices=(),
        reserved_mb={},
        pid=server.pid,
        started=server.started,
    )


def alive(pid: int) -> bool:
    found = procfs.process(pid)
    return found is not None and found.alive


async def test_a_family_has_also_those_who_left_the_session(machine: Machine) -> None:
    server, pids = await machine.start("a", PROCESS, "--child", "--daemon")
    other, others = await machine.start("b", TITLED, "child", "daemon")
    families = await machine.local.families({server.pid, other.pid, 2**22 - 1})
    assert families[server.pid].keys() == pids
    assert families[other.pid].keys() == others
    assert len(pids) == len(others) == 3
    assert families[server.pid][server.pid] > 0
    assert families[2**22 - 1] == {}


async def test_a_log_goes_by_the_models_name_and_the_next_sidecar_finds_it(machine: Machine) -> None:
    server, _ = await machine.start("before-0123abcd", PROCESS)
    await server.cap_log("after", 10**6)
    log = ServerLog(machine.state.logs, "after")
    assert "ready" in log.out.read_text()
    assert not ServerLog(machine.state.logs, "before-0123abcd").now.exist()
    assert await server.last_lines() == log.tail() != []
    stale = record("before-0123abcd", server)
    for found in (msgspec.structs.replace(stale, model="after"), msgspec.structs.replace(stale, id="after-0123abcd")):
        again = machine.next()._log_of(found)
        assert again.name == "after"


async def test_a_family_is_counted_and_stopped_though_its_leader_has_died(machine: Machine) -> None:
    server, pids = await machine.start("a", TITLED, "child", "daemon")
    await machine.local.families({server.pid})
    os.kill(server.pid, signal.SIGKILL)
    await server.exited
    families = await machine.local.families({server.pid})
    assert families[server.pid].keys() == pids - {server.pid}
    await server.stop(PATIENCE_S)
    assert not any(alive(pid) for pid in pids)


async def test_one_with_an_overwritten_mark_is_left_behind_too_and_can_be_stopped(machine: Machine) -> None:
    server, pids = await machine.start("a", TITLED, "child", "daemon")
    marked, _ = await machine.start("b", PROCESS)
    await machine.local.record([record("a", server)])
    following = machine.next()
    assert await following.left_behind() == {"b"}  # it has not read yet what is recorded
    await following.recorded()
    assert await following.left_behind() == {"a", "b"}
    await asyncio.wait_for(following.stop_left_behind("a", PATIENCE_S), PATIENCE_S)
    assert not any(alive(pid) for pid in pids)
    assert alive(marked.pid)
    assert await following.left_behind() == {"b"}


async def test_a_recorded_number_that_is_another_processs_now_is_not_left_behind(machine: Machine) -> None:
    server, pids = await machine.start("a", TITLED, "child")
    await machine.local.record([msgspec.structs.replace(record("b", server), started=server.started - 1)])
    following = machine.next()
    await following.recorded()
    assert await following.left_behind() == set()
    await following.stop_left_behind("b", PATIENCE_S)
    assert all(alive(pid) for pid in pids)
