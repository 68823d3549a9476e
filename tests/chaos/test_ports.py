"""Strangers on the ports that servers were to have, or had."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.chaos.conftest import Rivals
from tests.chaos.world import Traffic, accounted_for, doomed, servers
from tests.e2e.conftest import Run
from tests.e2e.harness import alive, llama, running, stub, until


@contextmanager
def stranger(port: int) -> Iterator[None]:
    """Somebody else listens on the port, to whom nobody may talk."""
    listeners: list[socket.socket] = []

    def listens() -> bool:
        """False while a process that has just been killed still holds the port."""
        with contextlib.suppress(OSError):
            listeners.append(socket.create_server(("127.0.0.1", port)))
        return bool(listeners)

    until(listens, "the port is the stranger's")
    with listeners[0] as listener:
        listener.setblocking(False)
        yield
        with pytest.raises(BlockingIOError):
            listener.accept()


def served_by(sidecar_url: str, model: str) -> str:
    """Who answers for the model."""
    headers = {"authorization": "Bearer sk-test-e2e"}
    url = f"{sidecar_url}/v1/chat/completions"
    answer = httpx.post(url, json={"model": model, "messages": []}, headers=headers, timeout=30, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-served-by"]


def test_a_port_stolen_before_bind_or_from_a_dead_server_is_told_and_the_next_try_has_another(run: Run) -> None:
    sidecar = run(stub("robbed", "--delay-bind", "2", model="auto_start = true"), llama("good"), stub("heir"))
    sidecar.ask("good")
    until(lambda: "robbed" in servers(sidecar), "it has a port and a process, and does not listen yet")
    first = servers(sidecar)["robbed"]
    with stranger(first.port), Traffic(lambda: sidecar.url, "good") as traffic:
        until(lambda: sidecar.state("robbed") in ("PortTaken", "Exited"), "the theft is noticed")
        message = sidecar.model("robbed")["conditions"][0]["message"]
        assert f"another program listens on port {first.port}" in message or "Address already in use" in message
        until(lambda: sidecar.state("robbed") == "ready", "it is tried again")
        second = servers(sidecar)["robbed"]
        assert second.port != first.port
        assert served_by(sidecar.url, "robbed") == "robbed"
        traffic.flows()
        sidecar.ask("heir")
        dead = servers(sidecar)["heir"]
        os.kill(dead.pid, signal.SIGKILL)
        with stranger(dead.port):
            assert served_by(sidecar.url, "heir") == "heir"
            assert servers(sidecar)["heir"].port != dead.port
    accounted_for(sidecar)


def test_a_stranger_on_the_port_of_a_server_that_died_while_nobody_looked_gets_no_request(
    tmp_path: Path, rivals: Rivals
) -> None:
    manifests = rivals("stub")
    with doomed(tmp_path, manifests, ["sidecar"]) as sidecar:
        sidecar.wait_until_listening()
        sidecar.ask("a")
        first = servers(sidecar)["a"]
        sidecar.process.kill()
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: not alive(first.pid), "it is gone")
    with stranger(first.port), running(tmp_path, manifests) as again:
        assert served_by(again.url, "a") == "a"
        assert servers(again)["a"].port != first.port


@pytest.mark.soak
def test_a_range_of_ports_that_strangers_hold_is_told(tmp_path: Path, rivals: Rivals) -> None:
    manifests = dict(rivals("stub"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        lines = manifests["sidecar.toml"].splitlines()
        manifests["sidecar.toml"] = "\n".join(
            f'ports = "{port}-{port}"' if line.startswith("ports") else line for line in lines
        )
        with running(tmp_path, manifests) as sidecar:
            with sidecar.http() as http:
                answer = http.post("/v1/chat/completions", json={"model": "a", "messages": []})
            assert answer.json()["error"]["code"] == "no_port"
            assert f"all ports from {port} to {port} are taken" in sidecar.model("a")["conditions"][0]["message"]
            listener.close()
            sidecar.cli("start", "a")
            assert servers(sidecar)["a"].port == port
