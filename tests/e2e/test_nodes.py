"""One repository for many machines: a real sidecar with labels, which has what is for its node and no more."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Sidecar, alive, cli, running, settings, stub, until

A100 = {"SIDECAR_LABELS": "gpu=a100,rack=a"}
FOR_A100 = 'nodes = { gpu = "a*", rack = ["a", "b"] }'
FOR_H200 = 'nodes = { gpu = "h200" }\naliases = ["best"]'


def manifests(folder: Path) -> dict[str, str]:
    """Models for everybody, for some, and for others; one of them may run in two ways."""
    there = '[[models.both.variants]]\nurl = "http://127.0.0.1:9"\nname = "there"\nnodes = { gpu = "h200" }\n'
    return {
        "sidecar.toml": settings(folder / "state", "21100-21119"),
        "any.toml": stub("any"),
        "here.toml": stub("here", model=FOR_A100),
        "there.toml": stub("there", model=FOR_H200),
        "both.toml": stub("both") + there,
        "typo.toml": stub("typo", model='nodes = { rakc = "a" }'),
    }


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One on an A100 in rack a."""
    folder = tmp_path_factory.mktemp("nodes")
    with running(folder, manifests(folder), A100) as one:
        yield one


def error(sidecar: Sidecar, path: str) -> dict[str, Any]:
    """What the sidecar answers to somebody who asks for what is not there."""
    with sidecar.http() as http:
        response = http.get(path) if path.startswith("/-/") else http.post("/v1/chat/completions", json={"model": path})
    assert response.status_code == 404
    found: dict[str, Any] = response.json()["error"]
    return found


def test_it_has_what_is_for_its_node_and_counts_what_is_not(sidecar: Sidecar) -> None:
    status = sidecar.status()
    assert [model["name"] for model in status["models"]] == ["any", "both", "here"]
    assert status["problems"] == []
    assert status["elsewhere"] == {"there": "gpu = h200", "typo": "rakc = a"}
    assert (status["labels"]["gpu"], status["labels"]["rack"]) == ("a100", "a")
    assert "2 models are for other nodes (this one: " in sidecar.cli("status").stdout
    assert "not for this node: there, typo\n" in sidecar.cli("plan").stderr
    assert any("2 models are for other nodes: there, typo; this one has " in line for line in sidecar.log)


def test_what_is_elsewhere_is_explained_and_not_served(sidecar: Sidecar) -> None:
    for name in ("there", "best"):
        result = sidecar.cli("explain", name, check=False)
        assert result.returncode == 1
        assert 'sidecar: "there" is for other nodes: gpu = h200; this one has ' in result.stderr
        assert error(sidecar, name)["code"] == "model_not_found"
    with sidecar.http() as http:
        assert [model["id"] for model in http.get("/v1/models").json()["data"]] == ["any", "both", "here"]


def test_a_label_that_is_misspelt_is_noticed_by_who_asks_for_the_model(sidecar: Sidecar) -> None:
    told = sidecar.cli("explain", "typo", check=False).stderr
    assert '"typo" is for other nodes: rakc = a; this one has ' in told
    assert 'did you mean "rack"?' in told


def test_a_way_to_run_a_model_that_is_for_other_nodes_is_told(sidecar: Sidecar) -> None:
    assert "for other nodes: gpu = h200" in sidecar.cli("explain", "both").stdout


def test_a_server_whose_model_moves_to_other_nodes_is_stopped_and_the_others_stay(sidecar: Sidecar) -> None:
    assert sidecar.ask("here")
    assert sidecar.ask("any")
    moved, stays = sidecar.pid("here"), sidecar.pid("any")
    sidecar.write("here.toml", stub("here", model=FOR_A100.replace("a*", "h*")))
    until(lambda: not alive(moved), "the server of a model for others is stopped")
    assert any("the model is for other nodes: gpu = h*, rack = a or b" in line for line in sidecar.log)
    assert sidecar.status()["elsewhere"] == {
        "here": "gpu = h*, rack = a or b",
        "there": "gpu = h200",
        "typo": "rakc = a",
    }
    assert sidecar.pid("any") == stays
    sidecar.write("here.toml", stub("here", model=FOR_A100))
    until(lambda: "here" not in sidecar.status()["elsewhere"], "it is for this node again")


def test_the_machine_is_written_down_and_planned_for_elsewhere(sidecar: Sidecar, tmp_path: Path) -> None:
    assert sidecar.ask("any")
    written = sidecar.cli("devices", "--json").stdout
    found = json.loads(written)
    assert (found["running"], found["labels"]["gpu"], found["revision"]) == (True, "a100", sidecar.status()["applied"])
    assert "any" in [server["model"] for server in found["servers"]]
    (tmp_path / "devices.json").write_text(written)
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "other.toml").write_text(stub("other", memory_mb=50, model="auto_start = true"))
    arguments = ("plan", str(tmp_path / "manifests"), "--against", str(tmp_path / "devices.json"), "--json")
    planned = json.loads(cli(*arguments, env={"SIDECAR_LABELS": ""}).stdout)
    assert ("Drain", "any") in [(action["action"], action["model"]) for action in planned["actions"]]
    assert ("Start", "other") in [(action["action"], action["model"]) for action in planned["actions"]]
    result = sidecar.cli("devices", "--label", "gpu=h200", check=False)
    assert (result.returncode, "has labels of its own" in result.stderr) == (2, True)


def test_with_other_labels_at_the_next_start_servers_for_others_are_stopped_and_the_rest_is_taken_over(
    tmp_path: Path,
) -> None:
    with running(tmp_path, manifests(tmp_path), A100) as first:
        assert first.ask("here")
        assert first.ask("any")
        gone, stays = first.pid("here"), first.pid("any")
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    with running(tmp_path, {}, {"SIDECAR_LABELS": "gpu=h200"}) as second:
        assert [model["name"] for model in second.status()["models"]] == ["any", "both", "there"]
        assert second.pid("any") == stays
        until(lambda: not alive(gone), "the server of a model for others is stopped")
        assert second.status()["elsewhere"] == {"here": "gpu = a*, rack = a or b", "typo": "rakc = a"}


def test_a_label_that_is_none_is_wrong_usage(tmp_path: Path) -> None:
    for arguments, env in ((["--label", "gpu"], {}), ([], {"SIDECAR_LABELS": "gpu"})):
        result = cli("run", str(tmp_path), *arguments, check=False, env=env)
        assert result.returncode == 2
        assert "expected KEY=VALUE, such as gpu=h200" in result.stderr
