"""Servers that misbehave, beside one that does not: it serves throughout, and what is wrong with the others is told."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.chaos.world import Seen, Traffic, accounted_for, servers
from tests.e2e.conftest import free_block
from tests.e2e.harness import Sidecar, alive, llama, running, settings, stats, stub, until

LOG_LIMIT_MB = 1
IMPATIENT = 'load_timeout = "1s"\nstop_timeout = "300ms"'

BAD = {
    "stubborn": stub("stubborn", "--ignore-term", variant='stop_timeout = "5s"'),
    "next": stub("next"),
    "breeder": stub("breeder", "--ignore-term", "--fork-grandchild", "--fork-daemon", variant=IMPATIENT),
    "late": stub("late", "--delay-bind", "600", variant=IMPATIENT),
    "mayfly": stub("mayfly", "--exit-after", "0", "--exit-code", "42", "--stderr-line", "no such layer"),
    "sick": stub("sick", "--unhealthy-for", "inf", variant=IMPATIENT),
    "deaf": stub("deaf", "--hang-health", variant=IMPATIENT),
    "busy": stub("busy", "--status", "503"),
    "rude": stub("rude", "--close-after-chunks", "2"),
    "leaky": stub("leaky", "--leak-mb-per-s", "200", memory_mb=60),
    "greedy": stub("greedy", "--allocate-mb", "200", memory_mb=60),
    "chatty": stub("chatty", "--print-mb", "100"),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sidecar, Traffic, Seen]]:
    """All of them in one sidecar, and clients that ask the good one without a pause."""
    folder = tmp_path_factory.mktemp("zoo")
    base = settings(folder / "state", free_block(), f'server_log_limit = "{LOG_LIMIT_MB}MiB"')
    files = {f"{name}.toml": text for name, text in BAD.items()}
    with running(folder, {"sidecar.toml": base, "good.toml": llama("good"), **files}) as sidecar:
        sidecar.ask("good")
        sidecar.ask("leaky")  # it takes its time
        with Traffic(lambda: sidecar.url, "good", clients=2) as traffic:
            yield sidecar, traffic, servers(sidecar)["good"]


@pytest.fixture
def sidecar(zoo: tuple[Sidecar, Traffic, Seen]) -> Iterator[Sidecar]:
    """The sidecar with all of them; whatever the test does to the others, the good one has to serve."""
    sidecar, traffic, good = zoo
    yield sidecar
    traffic.flows()
    assert servers(sidecar)["good"] == good
    accounted_for(sidecar)


def ask(sidecar: Sidecar, model: str, **more: Any) -> httpx.Response:
    """The answer as it comes."""
    with sidecar.http() as http:
        return http.post("/v1/chat/completions", json={"model": model, "messages": [], **more})


def told(sidecar: Sidecar, model: str) -> list[str]:
    """A model's conditions as lines."""
    return [f"{one['reason']}: {one['message']}" for one in sidecar.model(model)["conditions"]]


@pytest.mark.parametrize(
    ("model", "code", "reason", "why"),
    [
        ("late", "load_timeout", "LoadTimeout", "not ready within load_timeout (1 s): nothing listens on its port"),
        ("mayfly", "exited", "Exited", "exited with code 42 before it was ready"),
        ("sick", "load_timeout", "LoadTimeout", "not ready within load_timeout (1 s): health check answered 503"),
        ("deaf", "load_timeout", "LoadTimeout", "not ready within load_timeout (1 s)"),
    ],
)
def test_one_that_never_serves_ends_in_a_condition_that_says_why(
    sidecar: Sidecar, model: str, code: str, reason: str, why: str
) -> None:
    answer = ask(sidecar, model)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)
    assert why in answer.json()["error"]["message"]
    assert any(line.startswith(reason) and why in line for line in told(sidecar, model))
    until(lambda: model not in servers(sidecar), "nothing of it is left")


def test_a_stop_that_hangs_delays_no_start(sidecar: Sidecar) -> None:
    ask(sidecar, "stubborn")
    server = servers(sidecar)["stubborn"]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{sidecar.url}/-/models/stubborn/stop?force=true", timeout=0.3, trust_env=False)
    assert sidecar.state("stubborn") == "stopping"
    began = time.monotonic()
    assert ask(sidecar, "next").status_code == 200
    assert time.monotonic() - began < 4  # the stop takes five
    assert sidecar.state("stubborn") == "stopping"
    assert alive(server.pid)


def test_one_that_forks_goes_with_all_that_it_forked(sidecar: Sidecar) -> None:
    ask(sidecar, "breeder")
    server = servers(sidecar)["breeder"]
    children = stats(server.port)["children"]
    assert len(children) == 2
    os.kill(server.pid, signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in children), "what it left behind is cleared away")
    until(lambda: any("was killed by SIGKILL" in line for line in told(sidecar, "breeder")), "it is told")


def test_one_that_answers_503_is_passed_on_and_left_alone(sidecar: Sidecar) -> None:
    answer = ask(sidecar, "busy")
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "it does not want to")
    before = servers(sidecar)["busy"]
    assert ask(sidecar, "busy").status_code == 503
    assert servers(sidecar)["busy"] == before


@pytest.mark.parametrize("stream", [True, False])
def test_one_that_closes_in_the_middle_of_a_body_is_never_passed_off_as_whole(sidecar: Sidecar, stream: bool) -> None:
    received = b""
    body = {"model": "rude", "stream": stream, "messages": []}
    with (
        sidecar.http() as http,
        pytest.raises(httpx.RemoteProtocolError),
        http.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        for piece in answer.iter_raw():
            received += piece
    assert b"[DONE]" not in received
    before = servers(sidecar)["rude"]
    with pytest.raises(httpx.RemoteProtocolError):
        ask(sidecar, "rude")
    assert servers(sidecar)["rude"] == before


def test_those_that_take_more_memory_than_declared_are_told(sidecar: Sidecar) -> None:
    models = ("leaky", "greedy")
    for model in models:
        ask(sidecar, model)
    for model in models:
        until(lambda model=model: told_too_low(sidecar, model), f"{model} takes more")  # type: ignore[misc] # a default
        assert sum(sidecar.model(model)["server"]["observed_mb"].values()) > 60
        assert sidecar.state(model) == "ready"
        assert sidecar.cli("stop", model).returncode == 0


def told_too_low(sidecar: Sidecar, model: str) -> bool:
    """Whether a condition says that the model takes more than is declared."""
    return any(
        line.startswith("DeclaredTooLow: variant default declares 60 MB on cpu") for line in told(sidecar, model)
    )


def test_one_that_prints_a_hundred_megabytes_has_its_log_cut(sidecar: Sidecar) -> None:
    assert ask(sidecar, "chatty").status_code == 200

    def logged_mb() -> float:
        return sum(file.stat().st_size for file in (sidecar.folder / "state" / "logs").glob("chatty*")) / 2**20

    until(lambda: logged_mb() < 2 * LOG_LIMIT_MB, "its log is short")
    assert logged_mb() > 0
