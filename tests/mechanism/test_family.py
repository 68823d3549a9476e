"""Which processes are a server's: all that are proven to be, and no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.mechanism import procfs
from sidecar.mechanism.family import MARKER, Family, members
from sidecar.mechanism.procfs import Process
from tests import servers
from tests.servers import PROCESS
from tests.support import until

TITLED = str(Path(servers.__file__).with_name("titled.py"))
OURS = f"family-test-{os.getpid()}"  # nobody else's, also beside another run of the tests


class Program:
    """A program in a session of its own. children: in the order in which they were forked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.pid = process.pid
        self.process = process
        self.children: list[int] = []
        while self.line() != "ready":
            pass

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, "it has ended"
        if line.startswith("child "):
            self.children.append(int(line.split()[1]))
        return line

    def end_leader(self) -> None:
        """It is gone, number and all; its children live on."""
        self.process.kill()
        self.process.wait()

    def grow(self, pid: int) -> int:
        """Have one of its processes fork another."""
        os.kill(pid, signal.SIGUSR1)
        return int(self.line().split()[1])


@contextmanager
def running(*command: str, marker: str = OURS) -> Iterator[Program]:
    """All that it has forked are killed at the end."""
    env = {**os.environ, MARKER: marker}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True) as process:
        program = Program(process)
        try:
            yield program
        finally:
            for pid in program.children:
                os.kill(pid, signal.SIGKILL)
            process.kill()


@contextmanager
def titled(*flags: str) -> Iterator[Program]:
    """One that has overwritten its environment."""
    with running(sys.executable, TITLED, *flags) as program:
        yield program


def family(program: Program, marker: str = OURS) -> Family:
    """The program's, by its leader's identity."""
    found = procfs.process(program.pid)
    assert found is not None
    return Family(marker, (program.pid, found.started))


def pids(found: Family) -> set[int]:
    return {process.pid for process in found.members()}


# --- by mark and session ------------------------------------------------------------------------------------------


def test_a_family_is_the_session_and_whoever_left_it_with_the_mark() -> None:
    with running(sys.executable, PROCESS, "--child", "--daemon") as program:
        child, daemon = program.children
        assert os.getsid(daemon) == daemon
        assert pids(family(program)) == {program.pid, child, daemon}
        assert pids(Family(OURS, None)) == {program.pid, child, daemon}


def test_a_mark_is_no_prefix_of_another_servers() -> None:
    with running(sys.executable, PROCESS, marker=OURS + "-2"):
        assert Family(OURS, None).members() == []


def test_a_leader_that_started_at_another_time_is_another() -> None:
    with titled("child") as program:
        pid, started = family(program).leader or (0, 0)
        assert Family(OURS, (pid, started + 1)).members() == []


async def test_who_carries_the_mark_of_another_server_is_not_ours_though_we_forked_it() -> None:
    nested = f"{MARKER}={OURS}-other setsid {sys.executable} {PROCESS} > /dev/null & echo child $!"
    with running("/bin/sh", "-c", f"{nested}; exec {sys.executable} {PROCESS}") as program:
        [other] = program.children
        await until(lambda: procfs.variable(other, MARKER) == [f"{OURS}-other"], "it carries its own mark")
        await until(lambda: os.getsid(other) == other, "it has left the session")
        ours, theirs = members([family(program), Family(f"{OURS}-other", None)])
        assert [process.pid for process in ours] == [program.pid]
        assert [process.pid for process in theirs] == [other]


# --- with an overwritten environment ------------------------------------------------------------------------------


def test_an_overwritten_environment_shows_no_mark() -> None:
    with titled() as program:
        assert procfs.variable(program.pid, MARKER) == []


def test_a_family_without_marks_is_the_session_and_who_descends_from_it() -> None:
    with titled("child", "daemon") as program:
        assert pids(family(program)) == {program.pid, *program.children}


def test_who_was_seen_is_known_when_the_leader_has_ended() -> None:
    with titled("child", "daemon") as program:
        seen = family(program)
        seen.members()
        program.end_leader()
        assert pids(seen) == set(program.children)
        assert pids(family_of_the_past(seen)) == set()  # nothing else proves whose they are


def family_of_the_past(seen: Family) -> Family:
    """As a sidecar has it that never saw more than the leader's identity."""
    return Family(seen.marker, seen.leader)


def test_who_is_born_after_the_leaders_end_is_known_by_those_who_are() -> None:
    with titled("child", "daemon") as program:
        child, daemon = program.children
        seen = family(program)
        seen.members()
        program.end_leader()
        program.children += [program.grow(child), program.grow(daemon)]
        assert pids(seen) == set(program.children)  # one is of the session, the other descends


def test_who_is_gone_is_not_remembered() -> None:
    with running(sys.executable, PROCESS) as program:
        seen = family(program)
        seen.members()
        assert len(seen.known) == 1
        program.end_leader()
        assert seen.members() == []
        assert seen.known == set()


def test_many_looks_at_a_time_forget_nobody() -> None:
    with titled("child", "daemon") as program:
        seen = family(program)
        looks = [threading.Thread(target=seen.members) for _ in range(8)]
        for look in looks:
            look.start()
        for look in looks:
            look.join()
        program.end_leader()
        assert pids(seen) == set(program.children)


# --- what no real process can be made to show -----------------------------------------------------------------------


def process(pid: int, parent: int, started: int) -> Process:
    """One that leads a session and group of its own."""
    return Process(pid=pid, state="S", parent=parent, group=pid, session=pid, started=started, threads=1)


def show(monkeypatch: pytest.MonkeyPatch, *processes: Process) -> None:
    monkeypatch.setattr(procfs, "processes", lambda: iter(processes))
    monkeypatch.setattr(procfs, "still_there", lambda *_: True)
    monkeypatch.setattr(procfs, "variable", lambda *_: [])


def test_a_parents_number_that_was_given_to_a_younger_one_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    show(monkeypatch, process(100, 1, started=50), process(101, 100, started=60), process(102, 100, started=40))
    assert pids(Family(OURS, (100, 50))) == {100, 101}


def test_parents_in_a_circle_end_the_climb(monkeypatch: pytest.MonkeyPatch) -> None:
    show(monkeypatch, process(100, 1, 50), process(101, 102, 50), process(102, 101, 50))
    assert pids(Family(OURS, (100, 50))) == {100}


def test_a_deep_family_is_climbed(monkeypatch: pytest.MonkeyPatch) -> None:
    show(monkeypatch, *(process(pid, pid - 1, pid) for pid in range(100, 5100)))
    assert len(Family(OURS, (100, 100)).members()) == 5000
