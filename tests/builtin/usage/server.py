"""A real PostgreSQL server on a socket in a folder of its own, without a port; stopped at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

PATIENCE_S = 30.0


def programs() -> Path:
    """Where Debian keeps them: of the newest version, and not on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    assert on_path, "no PostgreSQL server is installed: apt-get install postgresql"
    return Path(on_path).parent


class Server:
    """A server that can be stopped in every way, and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self._as = {"user": "nobody"} if os.getuid() == 0 else {}  # PostgreSQL refuses to run as root
        if self._as:
            os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
        flags = ["--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8", "--locale=C"]
        self._run([str(programs() / "initdb"), "-D", str(folder / "data"), *flags])

    def dsn(self) -> str:
        return f"host={self.folder} dbname=postgres user=postgres"

    def start(self) -> None:
        flags = [
            f"-cunix_socket_directories={self.folder}",
            "-clisten_addresses=",
            "-cfsync=off",
            "-cshared_buffers=8MB",
        ]
        command = [str(programs() / "postgres"), "-D", str(self.folder / "data"), *flags]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **self._as)  # type: ignore[call-overload] # user= by name
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                psycopg.connect(self.dsn()).close()
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                assert self.process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """As a power cut would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(PATIENCE_S)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGINT)
            self.process.wait(PATIENCE_S)

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """What a statement gives; it is committed at once."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def _run(self, command: list[str]) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd="/", **self._as)  # type: ignore[call-overload] # as above


@contextmanager
def running() -> Iterator[Server]:
    """In a short path, since that of a socket may have 107 characters at most."""
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as folder:
        server = Server(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()
