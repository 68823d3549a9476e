"""Manifests change under a running sidecar: what is good is taken over, what is bad keeps its last good form."""

from __future__ import annotations

import json

from tests.e2e.conftest import Run
from tests.e2e.harness import stub, until


def test_a_bad_manifest_keeps_its_last_good_form_and_stops_nobody(run: Run) -> None:
    sidecar = run(stub("a"), stub("b"))
    sidecar.ask("a")
    sidecar.ask("b")
    pids = sidecar.pid("a"), sidecar.pid("b")
    sidecar.write("model-0.toml", stub("a").replace("memory_mb", "memroy_mb"))
    until(lambda: sidecar.status()["problems"] != [], "the problem is told")
    status = sidecar.status()
    assert 'unknown key "memroy_mb"; did you mean "memory_mb"?' in status["problems"][0]
    assert status["problems"][0].startswith(str(sidecar.folder / "manifests" / "model-0.toml") + ":")
    assert status["kept"] == ["a"]
    sidecar.write("model-1.toml", "this is no toml")
    until(lambda: sidecar.status()["kept"] == ["a", "b"], "both are kept")
    assert sidecar.ask("a").startswith("a-0")
    assert (sidecar.pid("a"), sidecar.pid("b")) == pids


def test_a_change_restarts_that_model_alone_and_only_if_it_must(run: Run) -> None:
    sidecar = run(stub("a"), stub("b"))
    sidecar.ask("a")
    sidecar.ask("b")
    untouched = sidecar.pid("b")
    first = sidecar.pid("a")
    sidecar.write("model-0.toml", stub("a", model='aliases = ["alpha"]\nidle_timeout = "1h"'))
    until(lambda: sidecar.model("a")["aliases"] == ["alpha"], "the alias is taken over")
    assert sidecar.ask("alpha").startswith("a-0")
    assert sidecar.pid("a") == first  # an alias is no reason to restart
    sidecar.write("model-0.toml", stub("a", "--chunks", "2"))
    until(lambda: sidecar.model("a")["server"] is None, "the old server is stopped")
    assert sidecar.ask("a").split() == ["a-0", "a-1"]
    assert sidecar.pid("b") == untouched


def test_a_changed_server_in_use_finishes_first(run: Run) -> None:
    sidecar = run(stub("a", "--chunks", "60", "--interval", "0.05"))
    body = {"model": "a", "stream": True, "messages": []}
    with sidecar.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        pieces = answer.iter_raw()
        received = next(pieces)
        sidecar.write("model-0.toml", stub("a", "--chunks", "2"))
        until(lambda: sidecar.state("a") == "draining", "it drains")
        received += b"".join(pieces)
    assert b"[DONE]" in received
    assert sidecar.ask("a").split() == ["a-0", "a-1"]


def test_a_removed_model_is_stopped_and_unknown(run: Run) -> None:
    sidecar = run(stub("a"), stub("b"))
    sidecar.ask("a")
    (sidecar.folder / "manifests" / "model-0.toml").unlink()
    until(lambda: [model["name"] for model in sidecar.status()["models"]] == ["b"], "it is gone")
    with sidecar.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": "a", "messages": []})
    assert answer.json()["error"]["code"] == "model_not_found"
    until(lambda: sidecar.status()["devices"][0]["reserved_mb"] == 0, "its memory is free")


def test_an_emptied_directory_removes_nothing(run: Run) -> None:
    sidecar = run(stub("a"))
    sidecar.ask("a")
    pid = sidecar.pid("a")
    for file in (sidecar.folder / "manifests").iterdir():
        file.unlink()
    until(lambda: sidecar.status()["problems"] != [], "it is told")
    assert "taken for a mistake" in sidecar.status()["problems"][0]
    assert sidecar.pid("a") == pid
    with sidecar.http() as http:  # and the key is still asked for
        assert http.post("/v1/chat/completions", headers={"authorization": "Bearer no"}).status_code == 401


def test_a_broken_sidecar_toml_does_not_open_the_door(run: Run) -> None:
    sidecar = run(stub("a"))
    sidecar.write("sidecar.toml", "[sidecar\n")
    until(lambda: sidecar.status()["problems"] != [], "it is told")
    with sidecar.http() as http:
        body = json.dumps({"model": "a", "messages": []}).encode()
        answer = http.post("/v1/chat/completions", content=body, headers={"authorization": "Bearer no"})
        assert answer.status_code == 401
        assert http.post("/v1/chat/completions", content=body).status_code == 200
