"""Models that no manifest declares, but a route plugin has: the same care as for all others, whoever asks for them."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import Run, free_block
from tests.e2e.harness import KEY, PATIENCE_S, Sidecar, running, settings, stats, stub, until
from tests.servers import HTTP_SERVER
from tests.support import Program, free_port, serving

ROUTER = """
import json
import os
from pathlib import Path

from plugin_sdk import ModelInfo, Reject, Route, Target


class Router(Route):
    def models(self):
        return [ModelInfo(name="listed", aliases=("nick", "declared"), modes=("chat",), created=7)]

    def resolve(self, request, targets):
        if targets:
            return None
        self.log.warning("resolve %s (%s) for %s", request.model, request.listed, request.principal.id)
        table = json.loads(os.environ["TABLE"])
        if request.model == "forbidden":
            raise Reject(403, "not for you", code="plan_too_small")
        if request.model == "nowhere":
            return Target(name="nowhere", base_url="")
        if request.model not in table:
            return None
        url, *timeout = table[request.model]
        return Target(name="far", base_url=url, timeout_s=timeout[0] if timeout else None)

    def finished(self, target, outcome):
        self.log.warning("finished %s %s %s", outcome.model, target.name, outcome.end.value)
"""
CHAIN = '["keys", "router", "balance", "log"]'
GUEST = f'"sha256:{hashlib.sha256(b"sk-guest").hexdigest()}" = {{ principal = "guest", models = ["nick", "un*"] }}'


def manifests(root: Path) -> dict[str, str]:
    """With the router in the default chain, which the declared model has too."""
    text = settings(root / "state", free_block()).replace('["keys", "log"]', CHAIN)
    text = text.replace('"tester" }', f'"tester", {GUEST} }}')
    faulty = stub("faulty").replace("chat", "chatt")
    return {"sidecar.toml": text, "plugins/router.py": ROUTER, "declared.toml": stub("declared"), "f.toml": faulty}


@pytest.fixture(scope="module")
def server() -> Iterator[Program]:
    with serving(HTTP_SERVER, "--name", "far", "--interval", "0.05") as found:
        yield found


@pytest.fixture(scope="module")
def sidecar(server: Program, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    root = tmp_path_factory.mktemp("supplied")
    with ExitStack() as stack:
        hanging = stack.enter_context(serving(HTTP_SERVER, "--hang-head"))
        broken = stack.enter_context(serving(HTTP_SERVER, "--close-after-chunks", "2"))
        table: dict[str, Any] = {name: [server.url] for name in ("listed", "unlisted", "declared", "faulty")}
        table |= {"dead": [f"http://127.0.0.1:{free_port()}"], "slow": [hanging.url, 0.2], "broken": [broken.url]}
        yield stack.enter_context(running(root, manifests(root), env={"TABLE": json.dumps(table)}))


def ask(sidecar: Sidecar, model: str, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
    with sidecar.http() as http:
        return http.post(path, json={"model": model, "messages": [], **more})


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def said(sidecar: Sidecar, words: str) -> bool:
    return any(words in line for line in list(sidecar.log))


def test_they_are_served_by_name_by_alias_and_before_they_are_listed(sidecar: Sidecar) -> None:
    for name in ("listed", "nick", "unlisted"):
        answer = ask(sidecar, name)
        assert (answer.status_code, answer.headers["x-served-by"]) == (200, "far")
    until(lambda: said(sidecar, "finished listed far ok"), "the plugin is told of the end")
    assert said(sidecar, "resolve listed (True) for tester")
    until(lambda: said(sidecar, "resolve unlisted (False) for tester"), "it is told that nobody lists it")
    assert not said(sidecar, "resolve nick")
    until(lambda: any(" model=unlisted " in line and " variant=far " in line for line in sidecar.log), "it is logged")
    assert sidecar.ask("unlisted", stream=False).startswith("far-0")


def test_their_servers_can_be_asked_for_anything(sidecar: Sidecar) -> None:
    with sidecar.http() as http:
        for name in ("nick", "unlisted"):
            assert http.get(f"/upstream/{name}/health").json() == {"status": "ok"}
        assert code(http.get("/upstream/nobody/health")) == (404, "model_not_found")


def test_they_stand_in_the_list_behind_the_declared_ones(sidecar: Sidecar) -> None:
    with sidecar.client() as client:
        entries = client.models.list().data
        one = client.models.retrieve("nick")
    assert [(entry.id, entry.owned_by) for entry in entries] == [("declared", "sidecar"), ("listed", "sidecar")]
    assert (one.id, one.created) == ("listed", 7)
    assert one.model_extra == {"aliases": ["nick"], "modes": ["chat"], "ready": None}  # the other alias is declared


def test_a_declared_name_is_never_theirs(sidecar: Sidecar) -> None:
    assert ask(sidecar, "declared").headers["x-served-by"] == "declared"
    until(lambda: said(sidecar, "lists declared, which others have"), "it is told")
    assert code(ask(sidecar, "faulty")) == (404, "model_not_found")


def test_who_is_not_known_learns_nothing_and_reaches_no_plugin(sidecar: Sidecar) -> None:
    names = ("listed", "unlisted", "secret-name", "forbidden")
    with httpx.Client(base_url=sidecar.url, trust_env=False, timeout=PATIENCE_S) as http:
        answers = [http.post("/v1/chat/completions", json={"model": name, "messages": []}) for name in names]
        answers += [http.get("/v1/models"), http.get("/v1/models/listed"), http.get("/v1/models/none")]
    assert {code(answer) for answer in answers} == {(401, "missing_api_key")}
    assert len({answer.text for answer in answers}) == 1
    assert not said(sidecar, "resolve secret-name")
    assert not said(sidecar, "model=secret-name")  # statistics have only names that mean something


def test_who_may_use_some_is_told_of_no_others(sidecar: Sidecar) -> None:
    headers = {"authorization": "Bearer sk-guest"}
    with httpx.Client(base_url=sidecar.url, headers=headers, trust_env=False, timeout=PATIENCE_S) as http:
        assert [entry["id"] for entry in http.get("/v1/models").json()["data"]] == ["listed"]
        assert http.get("/v1/models/listed").status_code == 200
        assert http.get("/v1/models/declared").json()["error"]["message"] == 'there is no model "declared"'
        near = http.post("/v1/chat/completions", json={"model": "undeclared", "messages": []})
        assert near.json()["error"]["message"] == 'there is no model "undeclared"; see /v1/models'


def test_what_nobody_knows_is_not_found_in_the_shape_of_the_api(sidecar: Sidecar) -> None:
    unknown = ask(sidecar, "unlistd")
    assert code(unknown) == (404, "model_not_found")
    assert ask(sidecar, "liste").json()["error"]["message"] == 'there is no model "liste"; near it: listed'
    assert ask(sidecar, "none", "/v1/messages").json()["type"] == "error"
    assert code(ask(sidecar, "x" * 201)) == (404, "model_not_found")
    assert not said(sidecar, "resolve xxx")
    assert code(ask(sidecar, "")) == (400, "model_missing")


def test_a_mode_that_the_model_has_not_is_told_and_one_without_any_has_all(sidecar: Sidecar) -> None:
    wrong = ask(sidecar, "nick", "/v1/embeddings")
    assert code(wrong) == (400, "wrong_mode")
    assert 'the model "listed" is of mode chat, not embedding' in wrong.json()["error"]["message"]
    assert ask(sidecar, "unlisted", "/v1/embeddings").status_code == 200


@pytest.mark.parametrize(
    ("model", "status", "error"),
    [
        ("forbidden", 403, "plan_too_small"),
        ("nowhere", 503, "route_unavailable"),
        ("dead", 502, "upstream_failed"),
        ("slow", 502, "upstream_failed"),
    ],
)
def test_what_goes_wrong_is_told_with_its_code(sidecar: Sidecar, model: str, status: int, error: str) -> None:
    assert code(ask(sidecar, model)) == (status, error)
    until(lambda: said(sidecar, f"code={error}"), "the outcome says so")


def test_a_stream_that_breaks_off_is_no_clean_end(sidecar: Sidecar) -> None:
    text = ""
    body = {"model": "broken", "stream": True}
    broken_off = pytest.raises(httpx.RemoteProtocolError)
    with sidecar.http() as http, broken_off, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        for piece in answer.iter_text():
            text += piece
    assert "upstream_failed" in text
    assert "[DONE]" not in text


def test_a_client_that_leaves_is_cancelled_upstream(sidecar: Sidecar, server: Program) -> None:
    before = stats(server.port)["aborted"]
    body = {"model": "listed", "stream": True, "max_tokens": 10_000}
    with sidecar.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_raw())
    until(lambda: stats(server.port)["aborted"] == before + 1, "the server notices")
    until(lambda: said(sidecar, "finished listed far client_gone"), "the plugin is told")


def test_a_reload_keeps_the_list_and_requests_in_flight(run: Run, server: Program, tmp_path: Path) -> None:
    files = manifests(tmp_path)
    sidecar = run(files=files, env={"TABLE": json.dumps({"listed": [server.url]})})
    texts: list[str] = []
    begun = threading.Event()

    def stream() -> None:
        body = {"model": "nick", "stream": True, "max_tokens": 30}
        with sidecar.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
            for piece in answer.iter_text():
                texts.append(piece)
                begun.set()

    reader = threading.Thread(target=stream)
    reader.start()
    assert begun.wait(PATIENCE_S)
    sidecar.write("plugins/router.py", ROUTER.replace('"nick"', '"nick", "new"'))
    until(lambda: said(sidecar, "generation 2"), "the new version is in force")
    assert ask(sidecar, "new").status_code == 200
    sidecar.write("sidecar.toml", files["sidecar.toml"].replace('"router", ', ""))
    until(lambda: ask(sidecar, "listed").status_code == 404, "without the plugin there is no such model")
    sidecar.process.send_signal(signal.SIGTERM)  # the stream is drained, and not cut
    reader.join(PATIENCE_S)
    assert sidecar.process.wait(PATIENCE_S) == 0
    assert "".join(texts).rstrip().endswith("[DONE]")
    assert KEY not in "".join(sidecar.log)
