"""SIGKILL under load: of a server in the middle of streams, of the sidecar in the middle of everything."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier

import httpx
import pytest

from tests.chaos.world import Traffic, accounted_for, doomed, marked, nothing_left, servers
from tests.e2e.conftest import Run, free_block
from tests.e2e.harness import Sidecar, alive, llama, running, settings, stub
from tests.support import free_port

STREAMS = 20


def test_a_server_killed_under_twenty_streams_breaks_each_of_them_and_nothing_else(run: Run) -> None:
    sidecar = run(stub("victim", "--interval", "0.05"), llama("good"))
    sidecar.ask("good")
    sidecar.cli("start", "victim")
    begun = Barrier(STREAMS + 1)

    def stream() -> bytes:
        received = b""
        body = {"model": "victim", "stream": True, "max_tokens": 1000, "messages": []}
        with sidecar.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
            pieces = answer.iter_raw()
            received += next(pieces)
            begun.wait(20)
            with pytest.raises(httpx.RemoteProtocolError):  # a broken connection, never a clean end
                for piece in pieces:
                    received += piece
        return received

    good = servers(sidecar)["good"]
    with Traffic(lambda: sidecar.url, "good") as traffic, ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(stream) for _ in range(STREAMS)]
        begun.wait(20)
        os.kill(sidecar.pid("victim"), signal.SIGKILL)
        received = [one.result(20) for one in streams]
        assert sidecar.ask("victim").startswith("victim-0")  # by a new one
        traffic.flows()
    for answer in received:
        assert b"[DONE]" not in answer
        last = json.loads(answer.strip().splitlines()[-1].removeprefix(b"data: "))
        assert last["error"]["code"] == "upstream_failed"
        assert "was killed by SIGKILL while it was serving" in last["error"]["message"]
    assert servers(sidecar)["good"] == good
    assert sidecar.starts("victim") == 2
    accounted_for(sidecar)


@contextmanager
def at_once(folder: Path, manifests: dict[str, str]) -> Iterator[Sidecar]:
    """The next sidecar, on the address of the one that has just been killed."""
    with doomed(folder, manifests, ["sidecar"]) as sidecar:
        sidecar.wait_until_listening()
        yield sidecar


def fixed_address(folder: Path) -> dict[str, str]:
    """Manifests of a sidecar that listens where it listened before, with a stub and a llama.cpp."""
    base = settings(folder / "state", free_block()).replace("127.0.0.1:0", f"127.0.0.1:{free_port()}")
    return {"sidecar.toml": base, "a.toml": stub("a"), "b.toml": llama("b")}


def kill_and_go_on(folder: Path, manifests: dict[str, str], times: int) -> list[float]:
    """Kill the sidecar under load, time and again. How long each time nobody answered, in seconds."""
    gaps = []
    with at_once(folder, manifests) as sidecar:
        assert all(sidecar.ask(name) for name in "ab")
        before, url = servers(sidecar), sidecar.url
        with Traffic(lambda: url, "a", "b", clients=2):
            sidecar.process.kill()
            began = time.monotonic()
            sidecar.process.wait()
    for _ in range(times):
        with at_once(folder, manifests) as sidecar:
            assert sidecar.url == url
            with Traffic(lambda: url, "a", "b", clients=2) as traffic:
                traffic.flows(1)
                gaps.append(time.monotonic() - began)
                traffic.flows(20)
                assert servers(sidecar) == before
                assert sidecar.starts("a") == sidecar.starts("b") == 0
                accounted_for(sidecar)
                sidecar.process.kill()
                began = time.monotonic()
                sidecar.process.wait()
    assert {server.id for server in before.values()} == marked(folder).keys()
    with running(folder, manifests) as sidecar:
        assert servers(sidecar) == before
    nothing_left(folder)
    assert not any(alive(server.pid) for server in before.values())
    return gaps


def test_a_sidecar_killed_under_load_and_started_at_once_has_its_servers_untouched(tmp_path: Path) -> None:
    kill_and_go_on(tmp_path, fixed_address(tmp_path), 1)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_sidecar_killed_under_load_thirty_times_has_its_servers_untouched(tmp_path: Path) -> None:
    gaps = kill_and_go_on(tmp_path, fixed_address(tmp_path), 30)
    print(f"from SIGKILL to the next answer: {sorted(gaps)[15]:.2f} s, at most {max(gaps):.2f} s")
