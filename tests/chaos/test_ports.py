"""Strangers on the ports that servers were to have, or had."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.chaos.conftest import Rivals
from tests.chaos.world import Traffic, accounted_for, doomed, servers
from tests.e2e.conftest import Run
from tests.e2e.harness import alive, llama, running, seen, stub, until
from tests.servers import HTTP_SERVER


@contextmanager
def stranger(port: int) -> Iterator[int]:
    """A program that answers on the port as a server would, and is none of ours. Its pid."""
    command = [sys.executable, HTTP_SERVER, "--port", str(port), "--name", "stranger"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == f"listening {port}\n"
            yield process.pid
        finally:
            process.kill()


def served_by(sidecar_url: str, model: str) -> str:
    """Who answers for the model."""
    headers = {"authorization": "Bearer sk-test-e2e"}
    url = f"{sidecar_url}/v1/chat/completions"
    answer = httpx.post(url, json={"model": model, "messages": []}, headers=headers, timeout=30, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-served-by"]


def test_a_port_stolen_before_bind_or_from_a_dead_server_is_told_and_the_next_try_has_another(run: Run) -> None:
    sidecar = run(stub("robbed", "--delay-bind", "1", model="auto_start = true"), llama("good"), stub("heir"))
    sidecar.ask("good")
    until(lambda: "robbed" in servers(sidecar), "it has a port and a process, and does not listen yet")
    first = servers(sidecar)["robbed"]
    with stranger(first.port) as pid, Traffic(lambda: sidecar.url, "good") as traffic:
        until(lambda: sidecar.state("robbed") in ("PortTaken", "Exited"), "the theft is noticed")
        message = sidecar.model("robbed")["conditions"][0]["message"]
        assert f"another program listens on port {first.port}" in message or "Address already in use" in message
        until(lambda: sidecar.state("robbed") == "ready", "it is tried again")
        second = servers(sidecar)["robbed"]
        assert second.port != first.port
        assert served_by(sidecar.url, "robbed") == "robbed"
        assert seen(first.port) == []  # nothing was ever sent to the stranger
        assert alive(pid)
        traffic.flows()
        sidecar.ask("heir")
        dead = servers(sidecar)["heir"]
        os.kill(dead.pid, signal.SIGKILL)
        with stranger(dead.port):
            assert served_by(sidecar.url, "heir") == "heir"
            assert servers(sidecar)["heir"].port != dead.port
            assert seen(dead.port) == []
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
    with stranger(first.port) as pid, running(tmp_path, manifests) as again:
        assert served_by(again.url, "a") == "a"
        assert servers(again)["a"].port != first.port
        assert seen(first.port) == []
        assert alive(pid)


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
