"""A real sidecar under a service manager: news, sockets that outlive it, and servers that outlive it, too."""

from __future__ import annotations

import concurrent.futures
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import free_block
from tests.e2e.harness import Sidecar, alive, settings, stub, until, write
from tests.support import free_port

# What a manager does between fork and exec: descriptor 3 is the socket, and the variables name the new process.
_HANDED = 'import os, sys; os.environ["LISTEN_PID"] = str(os.getpid()); os.execv(sys.executable, sys.argv[1:])'
_LIFE = ("READY", "RELOADING", "STOPPING")


@contextmanager
def started(root: Path, *, env: dict[str, str], held: socket.socket | None = None) -> Iterator[Sidecar]:
    """A sidecar as a service manager starts it, with the socket that it holds; killed if it is there at the end."""
    command = [sys.executable, "-m", "sidecar", "run", str(root / "manifests")]
    preset: dict[str, str] = {}
    if held is not None:
        command = [sys.executable, "-c", _HANDED, *command]
        preset = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "sidecar.socket"}
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **preset, **env},
        pass_fds=(3,) if held is not None else (),
        preexec_fn=(lambda: os.dup2(held.fileno(), 3)) if held is not None else None,  # noqa: PLW1509 - one thread here
    )
    sidecar = Sidecar(root, process)
    try:
        sidecar.wait_until_listening()
        yield sidecar
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        sidecar.close()


class Manager:
    """What hears the news."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(20)

    def next(self, *kinds: str) -> str:
        """The next piece of news of these kinds."""
        while True:
            said = self.socket.recv(4096).decode()
            if said.partition("=")[0] in kinds:
                return said


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    heard = Manager(tmp_path / "notify")
    with heard.socket:
        yield heard


def test_a_manager_hears_how_it_is_and_over_restarts_no_connection_is_refused_and_no_server_lost(
    tmp_path: Path, manager: Manager
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held, concurrent.futures.ThreadPoolExecutor() as pool:
        port = held.getsockname()[1]
        own = settings(tmp_path / "state", free_block(), 'on_exit = "keep"')
        text = own.replace("127.0.0.1:0", f"127.0.0.1:{port}") + stub("m")
        write(tmp_path / "manifests/all.toml", text)
        answered: list[int] = []
        stop = [False]
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
        with started(tmp_path, env=env, held=held) as sidecar:
            assert manager.next(*_LIFE) == "READY=1"
            assert sidecar.url == f"http://127.0.0.1:{port}"
            over = pool.submit(_ask_until_stopped, port, answered, stop)
            assert sidecar.ask("m")
            assert manager.next("WATCHDOG") == "WATCHDOG=1"
            until(lambda: "1 of 1 servers ready, 0 requests in flight" in manager.next("STATUS"), "the status told")
            server = sidecar.pid("m")
            assert not {b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"LISTEN_FDS"} & _variables(server)

            write(tmp_path / "manifests/more.toml", stub("n"))
            sidecar.process.send_signal(signal.SIGHUP)
            assert manager.next(*_LIFE).startswith("RELOADING=1\nMONOTONIC_USEC=")
            assert manager.next(*_LIFE) == "READY=1"
            assert sidecar.model("n")  # in force when it says so

            sidecar.process.send_signal(signal.SIGTERM)
            most_s = 30 + 10 + 15  # drain_timeout, stop_timeout, and to put away
            assert manager.next(*_LIFE) == f"STOPPING=1\nEXTEND_TIMEOUT_USEC={most_s}000000"
            assert sidecar.process.wait(20) == 0
        assert alive(server)
        waiting = len(answered)
        with started(tmp_path, env={}, held=held) as sidecar:
            until(lambda: len(answered) > waiting + 3, "requests after the restart")
            stop[0] = True
            over.result(20)
            assert set(answered) == {200}
            assert sidecar.pid("m") == server
            sidecar.write("all.toml", text.replace('"keep"', '"stop"'))
            httpx.post(f"{sidecar.url}/-/reload", trust_env=False).raise_for_status()
            assert sidecar.stop() == 0
        assert not alive(server)


def _variables(pid: int) -> set[bytes]:
    return {entry.partition(b"=")[0] for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")}


def _ask_until_stopped(port: int, answered: list[int], stop: list[bool]) -> None:
    """One request after the other, each on a connection of its own: a refused one raises."""
    while not stop[0]:
        answered.append(httpx.get(f"http://127.0.0.1:{port}/-/healthy", trust_env=False, timeout=20).status_code)
        time.sleep(0.01)


def test_a_socket_other_than_the_one_declared_is_refused(tmp_path: Path) -> None:
    text = settings(tmp_path / "state", free_block()).replace("127.0.0.1:0", "127.0.0.1:9")
    write(tmp_path / "manifests/all.toml", text + stub("m"))
    port = free_port()
    command = ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", sys.executable, "-m", "sidecar", "run"]
    served = subprocess.Popen([*command, str(tmp_path / "manifests")], stderr=subprocess.PIPE, text=True)
    with served, concurrent.futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(_ask_once, port)
        said = served.communicate(timeout=20)[1]
        asked.result(20)
    assert served.returncode == 1
    assert re.search(rf"listens on 127\.0\.0\.1:{port}, and the manifests say 127\.0\.0\.1:9: ListenStream=", said)


def _ask_once(port: int) -> None:
    """A connection, which wakes the service."""
    for _ in range(500):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.02)  # it is not there yet
    raise AssertionError("nobody listens")
