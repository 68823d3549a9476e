"""What /proc says about real processes and sockets."""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.mechanism import procfs
from tests.servers import PROCESS

MARKER = f"SIDECAR_SERVER=procfs-test-{os.getpid()}"  # nobody else's, also beside another run of the tests


@contextmanager
def program(*flags: str, marker: str = "", session: bool = True) -> Iterator[tuple[int, list[int]]]:
    """`tests.servers.process`: its pid, and its children's. All are killed at the end."""
    env = dict(os.environ)
    if marker:
        name, _, env_value = marker.partition("=")
        env[name] = env_value
    with subprocess.Popen(
        [sys.executable, PROCESS, *flags], stdout=subprocess.PIPE, text=True, env=env, start_new_session=session
    ) as process:
        assert process.stdout is not None
        children: list[int] = []
        try:
            for line in process.stdout:
                if line == "ready\n":
                    break
                children.append(int(line.split()[1]))
            yield process.pid, children
        finally:
            for pid in (*children, process.pid):
                os.kill(pid, 9)


def test_this_process_is_known() -> None:
    found = procfs.process(os.getpid())
    assert found is not None
    assert (found.parent, found.group, found.session) == (os.getppid(), os.getpgid(0), os.getsid(0))
    assert found.alive
    assert found.threads >= 1
    assert found.started == procfs.process(os.getpid()).started  # type: ignore[union-attr]  # we are still here


def test_a_process_that_is_gone_is_none() -> None:
    done = subprocess.Popen(["true"])
    done.wait()
    assert procfs.process(done.pid) is None


def test_a_zombie_is_not_alive() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        found = procfs.process(process.pid)
        assert found is not None
        assert (found.state, found.alive) == ("Z", False)


@pytest.mark.parametrize("name", ["with space", "a) R 1 (b", ")) ((", "Z\nX"])
def test_a_programs_name_does_not_confuse_the_reader(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.symlink_to(shutil.which("sleep") or "")
    with subprocess.Popen([path, "60"]) as process:
        found = procfs.process(process.pid)
        process.kill()
    assert found is not None
    assert (found.pid, found.parent) == (process.pid, os.getpid())


def test_every_process_is_listed() -> None:
    pids = {found.pid for found in procfs.processes()}
    assert {os.getpid(), os.getppid()} <= pids


def test_what_stands_in_an_environment_is_found() -> None:
    with program(marker=MARKER) as (pid, _):
        name, _, marker = MARKER.partition("=")
        assert procfs.variable(pid, name) == [marker]
        assert procfs.variable(pid, name[:-1]) == []
        marked = procfs.marked(MARKER[:-1])
        assert {value: [found.pid for found in who] for value, who in marked.items()} == {MARKER[-1]: [pid]}
    assert procfs.variable(2**22 + 1, name) is None


def test_who_has_a_number_is_told_by_the_start_time() -> None:
    found = procfs.process(os.getpid())
    assert found is not None
    assert procfs.still_there(os.getpid(), found.started)
    assert not procfs.still_there(os.getpid(), found.started - 1)
    assert not procfs.still_there(2**22 + 1, 0)


def test_memory_that_is_mapped_from_a_file_is_not_counted(tmp_path: Path) -> None:
    size = 64 * 2**20
    weights = tmp_path / "weights"
    weights.touch()
    os.truncate(weights, size)
    before = procfs.private_mb(os.getpid())
    assert before > 0
    with weights.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapped:
        assert mapped[::4096].count(0) == size // 4096  # every page is resident now
        assert procfs.private_mb(os.getpid()) - before < 32
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE) as own:
        own.write(b"x" * size)
        assert procfs.private_mb(os.getpid()) - before > 32


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert procfs.private_mb(2**22 + 1) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0"])  # noqa: S104 - for a moment
def test_a_listener_is_found_with_its_owner(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        port = listener.getsockname()[1]
        inode = os.fstat(listener.fileno()).st_ino
        assert procfs.listeners(port) == procfs.listening()[port] == {inode}
        assert inode in procfs.sockets([os.getpid()])
        assert inode not in procfs.sockets([os.getppid()])
    assert procfs.listeners(port) == set()


def test_two_listeners_on_a_port_are_both_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
        with socket.create_server(("127.0.0.2", port)) as two:
            assert procfs.listeners(port) == {os.fstat(one.fileno()).st_ino, os.fstat(two.fileno()).st_ino}


def test_a_connection_is_no_listener() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        assert procfs.listeners(client.getsockname()[1]) == set()
        assert len(procfs.listeners(listener.getsockname()[1])) == 1


def test_a_bound_socket_that_does_not_listen_is_no_listener() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert procfs.listeners(bound.getsockname()[1]) == set()


def test_processes_that_are_gone_hold_no_sockets() -> None:
    assert procfs.sockets([2**22 + 1]) == set()
