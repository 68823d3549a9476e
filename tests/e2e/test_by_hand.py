"""Operators drain and pin models of a running sidecar, from the command line and over HTTP."""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from sidecar.surfaces.cli import main
from tests.e2e.conftest import free_block
from tests.e2e.harness import Sidecar, running, settings, stub, until

CAP = '[devices.part]\nmatch = { class = "cpu" }\nmemory_mb = 150\n'


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """A machine on which one of two models fits."""
    folder: Path = tmp_path_factory.mktemp("by-hand")
    manifests = {
        "sidecar.toml": settings(folder / "state", free_block()),
        "part.toml": CAP,
        "a.toml": stub("a", "--chunks", "20", "--interval", "0.05"),
        "b.toml": stub("b", model="pinned = true"),
    }
    with running(folder, manifests) as found:
        yield found


def cli(sidecar: Sidecar, *arguments: str) -> Result:
    """Run a command of the command line against it, without a process of its own."""
    return CliRunner().invoke(main, [*arguments, "--url", sidecar.url])


def post(sidecar: Sidecar, model: str, verb: str) -> dict[str, str]:
    answer: dict[str, str] = httpx.post(f"{sidecar.url}/-/models/{model}/{verb}", trust_env=False, timeout=20).json()
    return answer


def events(sidecar: Sidecar, model: str) -> list[str]:
    return [json.loads(line)["type"] for line in cli(sidecar, "events", "--model", model, "--json").stdout.splitlines()]


def test_a_drained_model_finishes_what_is_in_flight_refuses_what_comes_and_is_gone(sidecar: Sidecar) -> None:
    body = {"model": "a", "stream": True, "messages": []}
    with sidecar.http() as http, concurrent.futures.ThreadPoolExecutor() as pool:
        with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            pieces = answer.iter_raw()
            received = next(pieces)
            draining = pool.submit(sidecar.cli, "drain", "a")
            until(lambda: sidecar.state("a") == "draining", "it drains")
            refused = http.post("/v1/chat/completions", json=body)
            received += b"".join(pieces)
        assert draining.result().stdout == "a is out of service\n"
    assert b"[DONE]" in received
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "drained")
    assert "retry-after" not in refused.headers
    model = sidecar.model("a")
    assert (model["server"], model["drained"], model["conditions"][0]["reason"]) == (None, True, "Drained")
    assert post(sidecar, "a", "drain") == {"model": "a", "state": "drained", "message": "it was drained already"}
    assert "out of service" in cli(sidecar, "explain", "a").stdout
    assert cli(sidecar, "undrain", "a").stdout == "a is in service\n"
    assert cli(sidecar, "undrain", "a").stdout == "a is in service: it was not drained\n"
    assert sidecar.ask("a").startswith("a-0")
    assert [kind for kind in events(sidecar, "a") if "rained" in kind] == ["Drained", "Undrained"]


def test_start_puts_a_drained_model_back_into_service(sidecar: Sidecar) -> None:
    post(sidecar, "a", "drain")
    assert post(sidecar, "a", "start")["state"] == "ready"
    assert sidecar.model("a")["drained"] is False


def test_a_pinned_model_is_not_evicted_until_it_is_unpinned(sidecar: Sidecar) -> None:
    sidecar.ask("a")
    assert cli(sidecar, "pin", "a").stdout == "a is pinned\n"
    assert json.loads(cli(sidecar, "pin", "a", "--json").stdout) == {
        "model": "a",
        "state": "pinned",
        "message": "it was pinned already, by the operator",
    }
    assert sidecar.model("a")["pinned"] == "operator"
    assert "pinned" in cli(sidecar, "status").stdout
    refused = cli(sidecar, "start", "b")
    assert (refused.exit_code, "insufficient_memory" in refused.stderr) == (1, True)
    assert cli(sidecar, "unpin", "a").stdout == "a is unpinned\n"
    assert post(sidecar, "b", "start")["state"] == "ready"
    assert sidecar.model("a")["server"] is None


def test_what_a_manifest_pins_only_the_manifest_unpins(sidecar: Sidecar) -> None:
    assert sidecar.model("b")["pinned"] == "manifest"
    assert cli(sidecar, "unpin", "b").stdout == "b is pinned: its manifest says so: only a change of that unpins it\n"


def test_an_unknown_verb_is_told_which_there_are(sidecar: Sidecar) -> None:
    answer = httpx.post(f"{sidecar.url}/-/models/a/reboot", trust_env=False)
    assert answer.status_code == 404
    assert "start, stop, drain, undrain, pin, unpin" in answer.json()["error"]["message"]


def test_top_counts_what_models_do_and_tells_who_holds_the_memory(sidecar: Sidecar) -> None:
    post(sidecar, "b", "start")
    before = json.loads(cli(sidecar, "top", "--once", "--json", "--interval", "0.1").stdout)["report"]
    sidecar.ask("b")
    frame = json.loads(cli(sidecar, "top", "--once", "--json", "--interval", "0.1").stdout)
    (then,) = (model for model in before["models"] if model["name"] == "b")
    (now,) = (model for model in frame["report"]["models"] if model["name"] == "b")
    assert (now["state"], now["pinned"], now["devices"]) == ("ready", "manifest", ["cpu"])
    assert now["requests"] == then["requests"] + 1
    assert now["tokens_out"] > then["tokens_out"]
    (cpu,) = (device["holders"] for device in frame["report"]["devices"] if device["label"] == "cpu")
    assert [holding["model"] for holding in cpu["servers"]] == ["b"]
    assert cpu["ours_mb"] + cpu["foreign_mb"] + cpu["reserved_mb"] + cpu["free_mb"] == cpu["total_mb"]
    assert frame["events"]
