"""What the chaos tests share: sidecars that may die, the processes that they leave, and clients that never rest."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from sidecar.mechanism import procfs
from sidecar.mechanism.runner import MARKER
from tests.e2e import forked
from tests.e2e.harness import KEY, PATIENCE_S, Sidecar, until, write

Manifests = Mapping[str, str]

HEADERS = {"authorization": f"Bearer {KEY}"}


@contextmanager
def doomed(folder: Path, manifests: Manifests, command: list[str]) -> Iterator[Sidecar]:
    """A sidecar that may end at any moment, started by `python -m COMMAND run MANIFESTS`. Its servers live on."""
    for name, text in manifests.items():
        write(folder / "manifests" / name, text)
    process = forked.spawn(["run", str(folder / "manifests")], {**os.environ, "PYTHONUNBUFFERED": "1"}, *command)
    sidecar = Sidecar(folder, process)
    try:
        yield sidecar
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        sidecar.close()


def marked(folder: Path) -> dict[str, list[int]]:
    """The living processes that carry the mark of the sidecars on this state directory: pids by server id."""
    identity = folder / "state" / "id"
    if not identity.exists():
        return {}
    found = procfs.marked(f"{MARKER}={identity.read_text().strip()}:")
    return {server: [process.pid for process in processes] for server, processes in found.items()}


def nothing_left(folder: Path) -> None:
    """Fail unless every process of every server of this state directory has ended."""
    until(lambda: not marked(folder), f"no server is left of {folder}", 10)


class Seen(msgspec.Struct, frozen=True):
    """A server as the status has it."""

    id: str
    pid: int
    port: int


def servers(sidecar: Sidecar) -> dict[str, Seen]:
    """The servers that have a process, by model."""
    found = {model["name"]: model["server"] for model in sidecar.status()["models"]}
    return {
        name: Seen(server["id"], server["pid"], server["port"])
        for name, server in found.items()
        if server and server["pid"]
    }


def recorded(folder: Path) -> dict[str, Seen]:
    """The servers that are written down with a process, by model."""
    path = folder / "state" / "servers.json"
    records: list[dict[str, Any]] = json.loads(path.read_bytes())["servers"] if path.exists() else []
    return {one["model"]: Seen(one["id"], one["pid"], one["port"]) for one in records if one["pid"]}


def accounted_for(sidecar: Sidecar) -> None:
    """Fail unless what runs, what is told and what is reserved come to agree: no orphan, no duplicate."""

    def agree() -> bool:
        status = sidecar.status()
        known = {model["server"]["id"]: model["server"] for model in status["models"] if model["server"]}
        reserved = sum(sum(server["reserved_mb"].values()) for server in known.values())
        told = sum(device["reserved_mb"] for device in status["devices"])
        return marked(sidecar.folder).keys() == known.keys() and reserved == told

    until(agree, "every process belongs to a server of the status")


class Traffic:
    """Clients that ask for models over and over. failures: every answer but the right one.

    url: looked up for each request, for it changes when a sidecar is started anew.
    """

    def __init__(self, url: Callable[[], str], *models: str, clients: int = 1, pause_s: float = 0.01) -> None:
        self.failures: list[str] = []
        self.answers = 0
        self.slowest_s = 0.0
        self._url = url
        self._pause_s = pause_s
        self._ended = threading.Event()
        names = [name for name in models for _ in range(clients)]
        self._threads = [threading.Thread(target=self._ask, args=(name,), daemon=True) for name in names]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def flows(self, count: int = 5) -> None:
        """Wait until so many more requests have been answered."""
        target = self.answers + count
        until(lambda: self.answers >= target or bool(self.failures), f"{count} more answers")
        assert not self.failures, self.failures[:3]

    def _ask(self, model: str) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        with httpx.Client(headers=HEADERS, timeout=PATIENCE_S, trust_env=False) as client:
            while not self._ended.wait(self._pause_s):
                began = time.monotonic()
                try:
                    answer = client.post(f"{self._url()}/v1/chat/completions", json=body)
                except httpx.HTTPError as error:
                    self.failures.append(f"{model}: {type(error).__name__}: {error}")
                    continue
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                if answer.status_code == 200 and answer.json()["choices"]:
                    self.answers += 1
                else:
                    self.failures.append(f"{model}: {answer.status_code} {answer.text}")
