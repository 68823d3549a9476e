"""Manifests change under a running sidecar: what is good is taken over, what is bad keeps its last good form."""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import Run
from tests.e2e.harness import alive, running, seen, stub, until


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
    until(lambda: sidecar.state("a") == "ready" and sidecar.pid("a") != first, "it was up, so it comes back changed")
    assert not alive(first)
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


def test_what_a_broken_file_declared_outlives_further_revisions(run: Run) -> None:
    """sidecar.toml breaks, then another file changes: the keys, which stood in the broken file, still count."""
    sidecar = run(stub("a"))
    sidecar.write("sidecar.toml", "[sidecar\n")
    until(lambda: sidecar.status()["problems"] != [], "it is told")
    sidecar.write("model-0.toml", stub("a", model='aliases = ["alpha"]'))
    until(lambda: sidecar.model("a")["aliases"] == ["alpha"], "a good model's change is taken over all the same")
    assert sidecar.ask("alpha").startswith("a-0")
    with sidecar.http() as http:
        assert http.post("/v1/chat/completions", headers={"authorization": "Bearer no"}).status_code == 401


def test_taking_the_sidecar_table_away_does_not_open_the_door(run: Run) -> None:
    sidecar = run(stub("a"))
    sidecar.write("sidecar.toml", "# nothing here\n")
    until(lambda: sidecar.status()["problems"] != [], "it is told")
    assert "there is no [sidecar] any more; what it said stays in force" in sidecar.status()["problems"][0]
    with sidecar.http() as http:
        assert http.post("/v1/chat/completions", headers={"authorization": "Bearer no"}).status_code == 401


def test_a_removed_chain_is_refused_where_others_can_reach_it(run: Run) -> None:
    """The address that is listened on counts, not the one that the manifest has by now."""
    sidecar = run(stub("a"), extra="# here")
    text = (sidecar.folder / "manifests" / "sidecar.toml").read_text()
    assert sidecar.stop() == 0
    for file in (sidecar.folder / "manifests").glob("sidecar.toml"):
        file.unlink()
    open_to_all = text.replace('"127.0.0.1:0"', '"0.0.0.0:0"')
    with running(sidecar.folder, {"sidecar.toml": open_to_all}) as exposed:
        exposed.write("sidecar.toml", text.replace('chain = ["keys", "log"]', "chain = []"))
        until(lambda: exposed.status()["problems"] != [], "it is told")
        assert "can be reached from other machines" in exposed.status()["problems"][0]
        with exposed.http() as http:
            assert http.post("/v1/chat/completions", headers={"authorization": "Bearer no"}).status_code == 401


def test_what_needs_no_restart_reaches_a_running_server(run: Run) -> None:
    sidecar = run(stub("a"))
    sidecar.ask("a")
    pid = sidecar.pid("a")
    revision = sidecar.status()["applied"]
    sidecar.write("model-0.toml", stub("a", variant='model_name = "renamed"'))
    until(lambda: sidecar.status()["applied"] != revision, "the revision is taken over")
    sidecar.ask("a")
    assert sidecar.pid("a") == pid
    assert '"renamed"' in seen(sidecar.model("a")["server"]["port"])[-1]["body"]


def test_an_auto_started_model_comes_back_after_a_change(run: Run) -> None:
    sidecar = run(stub("a", model="auto_start = true"))
    until(lambda: sidecar.state("a") == "ready", "it is up from the start")
    first = sidecar.pid("a")
    sidecar.write("model-0.toml", stub("a", memory_mb=120, model="auto_start = true"))
    until(lambda: sidecar.state("a") == "ready" and sidecar.pid("a") != first, "the changed one is up")


def test_a_directory_that_was_away_for_a_while_is_taken_up_again(run: Run) -> None:
    sidecar = run(stub("a"))
    manifests = sidecar.folder / "manifests"
    manifests.rename(sidecar.folder / "away")
    until(lambda: "no such directory" in str(sidecar.status()["problems"]), "it is told")
    (sidecar.folder / "away").rename(manifests)
    until(lambda: sidecar.status()["problems"] == [], "all is well again")
    assert sidecar.ask("a").startswith("a-0")


def test_a_new_external_server_is_waited_for_until_it_has_been_probed(run: Run) -> None:
    sidecar = run(stub("a"))
    sidecar.ask("a")
    port = sidecar.model("a")["server"]["port"]
    sidecar.write("ext.toml", f'[models.ext]\nmode = "chat"\nvariants = [{{ url = "http://127.0.0.1:{port}" }}]\n')
    until(lambda: any(model["name"] == "ext" for model in sidecar.status()["models"]), "it is declared")
    assert sidecar.ask("ext").startswith("a-0")


def test_a_renamed_model_keeps_its_server(run: Run) -> None:
    sidecar = run(stub("before"))
    sidecar.ask("before")
    pid = sidecar.pid("before")
    sidecar.write("model-0.toml", stub("before").replace("models.before", "models.after"))
    until(lambda: any(model["name"] == "after" for model in sidecar.status()["models"]), "it has its new name")
    assert sidecar.pid("after") == pid
    assert sidecar.ask("after").startswith("before")
    assert sidecar.starts("before") + sidecar.starts("after") == 1
    said = sidecar.cli("logs", "after").stdout
    assert said
    sidecar.write("model-1.toml", stub("before"))  # another one, with a log of its own
    until(lambda: any(model["name"] == "before" for model in sidecar.status()["models"]), "it is declared")
    sidecar.cli("stop", "after")
    assert sidecar.cli("logs", "after").stdout.startswith(said)
    assert "no run of a server of before" in sidecar.cli("logs", "before", check=False).stderr
    sidecar.write("model-0.toml", stub("before").replace("models.before", "models.third"))
    until(lambda: any(model["name"] == "third" for model in sidecar.status()["models"]), "it has its third name")
    assert sidecar.cli("logs", "third").stdout.startswith(said)  # though no server of it is up


@pytest.mark.parametrize("allowed", [False, True])
def test_an_emptied_source_removes_models_only_if_it_may(run: Run, allowed: bool) -> None:
    sidecar = run(stub("only"), extra=f"allow_empty = {str(allowed).lower()}")
    sidecar.ask("only")
    sidecar.write("model-0.toml", "# nothing\n")
    if allowed:
        until(lambda: not sidecar.status()["models"], "it is removed")
        return
    until(lambda: any("declares no model any more" in one for one in sidecar.status()["problems"]), "it is told")
    assert sidecar.ask("only").startswith("only")
    assert sidecar.starts("only") == 1
