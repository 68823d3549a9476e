"""Processes that are stopped by SIGSTOP, as a debugger or a frozen cgroup does, and go on by SIGCONT."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.chaos.world import Traffic, accounted_for, servers
from tests.e2e.conftest import Run
from tests.e2e.harness import Sidecar, alive, llama, stub, until


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The process does nothing for as long as the block lasts."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGCONT)


@contextmanager
def streaming(sidecar: Sidecar, model: str, words: int) -> Iterator[Iterator[bytes]]:
    """A streamed answer of so many words that has begun."""
    body = {"model": model, "stream": True, "max_tokens": words, "messages": []}
    with sidecar.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        yield answer.iter_raw()


def test_a_server_frozen_while_it_serves_holds_up_nobody_goes_on_where_it_was_and_can_be_stopped(run: Run) -> None:
    sidecar = run(stub("slow", "--interval", "0.02", variant='stop_timeout = "300ms"'), llama("good"))
    sidecar.ask("good")
    with streaming(sidecar, "slow", 30) as pieces:
        received = next(pieces)
        before = servers(sidecar)
        with frozen(before["slow"].pid), Traffic(lambda: sidecar.url, "good", clients=2) as traffic:
            traffic.flows(100)
            assert sidecar.model("slow")["server"]["in_flight"] == 1
        received += b"".join(pieces)
    assert b"slow-29" in received
    assert received.endswith(b"data: [DONE]\n\n")
    assert servers(sidecar) == before
    with frozen(before["slow"].pid):  # it does not see SIGTERM; SIGKILL does not ask
        sidecar.cli("stop", "slow")
        assert not alive(before["slow"].pid)


def test_a_server_frozen_while_it_loads_is_given_up_at_its_deadline_or_goes_on_before_it(run: Run) -> None:
    late = 'load_timeout = "2s"\nstop_timeout = "200ms"'
    patient = stub("patient", "--unhealthy-for", "2", variant='load_timeout = "20s"')
    sidecar = run(stub("lost", "--unhealthy-for", "1.5", variant=late), patient, llama("good"))
    answers: dict[str, httpx.Response] = {}

    def ask(model: str) -> None:
        with sidecar.http() as http:
            answers[model] = http.post("/v1/chat/completions", json={"model": model, "messages": []})

    clients = [threading.Thread(target=ask, args=(name,)) for name in ("lost", "patient")]
    for client in clients:
        client.start()
    until(lambda: {"lost", "patient"} <= servers(sidecar).keys(), "both have a process")
    with frozen(sidecar.pid("patient")), frozen(sidecar.pid("lost")), Traffic(lambda: sidecar.url, "good") as traffic:
        traffic.flows()
        clients[0].join()
        assert answers["lost"].json()["error"]["code"] == "load_timeout"
        assert "not ready within load_timeout (2 s)" in sidecar.model("lost")["conditions"][0]["message"]
        assert sidecar.state("patient") == "starting"
    clients[1].join()
    assert answers["patient"].status_code == 200
    assert sidecar.starts("patient") == 1


def test_a_sidecar_that_was_frozen_goes_on_as_if_nothing_had_been(run: Run) -> None:
    """A stream ends whole, requests that came meanwhile are served, and no server is taken for dead or for late."""
    late = stub("late", "--unhealthy-for", "0.6", variant='load_timeout = "1s"')
    sidecar = run(stub("a", "--interval", "0.02"), llama("b"), late)
    sidecar.ask("b")
    with streaming(sidecar, "a", 100) as pieces, Traffic(lambda: sidecar.url, "b", clients=3) as traffic:
        received = next(pieces)
        starting = threading.Thread(target=sidecar.cli, args=("start", "late"))
        starting.start()
        until(lambda: "late" in servers(sidecar), "it has a process")
        before = servers(sidecar)
        with frozen(sidecar.process.pid):
            time.sleep(1.7)  # longer than load_timeout, within which the server gets ready
        traffic.flows(30)
        received += b"".join(pieces)
        starting.join()
    assert b"a-99" in received
    assert received.endswith(b"data: [DONE]\n\n")
    assert not traffic.failures
    assert traffic.slowest_s > 1.2
    assert servers(sidecar) == before
    assert sidecar.state("late") == "ready"
    accounted_for(sidecar)
