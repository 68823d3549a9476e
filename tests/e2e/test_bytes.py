"""What reaches the server is what the client sent, and the other way round, but for what the manifest says."""

from __future__ import annotations

import json

from tests.e2e.conftest import Run
from tests.e2e.harness import KEY, running, seen, settings, stub


def test_a_body_reaches_the_server_byte_by_byte(run: Run) -> None:
    sidecar = run(stub("mirror"))
    unknown = b'"x_unknown": {"model": "inner", "n": 1.50e2}, "tools":[{"a":"\\u00e9"}]'
    body = b'{ "model" :"mirror",\n"messages":[], ' + unknown + b" }"
    with sidecar.http() as http:
        answer = http.post(
            "/v1/chat/completions", content=body, headers={"x-custom": "kept", "content-type": "application/json"}
        )
    assert answer.status_code == 200
    assert answer.headers["x-served-by"] == "mirror"
    (request,) = seen(sidecar.model("mirror")["server"]["port"])
    assert request["body"].encode() == body
    headers = {name.lower(): value for name, value in request["headers"]}
    assert headers["x-custom"] == "kept"


def test_only_the_models_name_is_replaced_and_only_where_the_server_calls_it_otherwise(run: Run) -> None:
    sidecar = run(stub("mirror", model='aliases = ["gpt-4"]', variant='model_name = "org/mirror-7b"'))
    said = b'"messages":[{"role":"user","content":"\\"model\\": \\"gpt-4\\""}]'
    body = b'{"metadata":{"model":"gpt-4"}, "model" : "gpt-4" , ' + said + b"}"
    with sidecar.http() as http:
        assert http.post("/v1/chat/completions", content=body).status_code == 200
    (request,) = seen(sidecar.model("mirror")["server"]["port"])
    assert request["body"].encode() == body.replace(b'"model" : "gpt-4"', b'"model" : "org/mirror-7b"')


def test_the_clients_key_stays_here_and_the_upstreams_own_key_is_put_in(run: Run) -> None:
    key = 'api_key = { env = "UPSTREAM_KEY" }'
    sidecar = run(stub("mirror"), stub("vault", variant=key), env={"UPSTREAM_KEY": "sk-upstream"})
    with sidecar.http() as http:
        for model in ("mirror", "vault"):
            answer = http.post("/v1/chat/completions?a=1&b=%20", json={"model": model, "messages": []})
            assert answer.status_code == 200
    (open_one,) = seen(sidecar.model("mirror")["server"]["port"])
    (keyed,) = seen(sidecar.model("vault")["server"]["port"])
    assert KEY not in json.dumps([open_one, keyed])
    assert "authorization" not in {name.lower() for name, _ in open_one["headers"]}
    assert [value for name, value in keyed["headers"] if name.lower() == "authorization"] == ["Bearer sk-upstream"]
    assert keyed["path"] == "/v1/chat/completions?a=1&b=%20"
    assert "sk-upstream" not in json.dumps(sidecar.status()) + "".join(sidecar.log)


def test_the_servers_errors_are_passed_on_as_they_are(run: Run) -> None:
    sidecar = run(stub("grumpy", "--status", "422"))
    with sidecar.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": "grumpy", "messages": []})
    assert answer.status_code == 422
    assert answer.headers["x-served-by"] == "grumpy"


def test_a_reranker_and_a_base_model_answer_at_their_paths(run: Run) -> None:
    sidecar = run(stub("ranker", mode="reranker"), stub("continuer", mode="base"))
    with sidecar.http() as http:
        ranked = http.post("/v1/rerank", json={"model": "ranker", "query": "q", "documents": ["a", "b"]})
        assert ranked.status_code == 200
        assert ranked.headers["x-served-by"] == "ranker"
        continued = http.post("/v1/completions", json={"model": "continuer", "prompt": "p"})
        assert continued.headers["x-served-by"] == "continuer"
        swapped = http.post("/v1/rerank", json={"model": "continuer", "query": "q", "documents": []})
        assert swapped.json()["error"]["code"] == "wrong_mode"


def test_bad_requests_get_errors_in_openais_shape(run: Run) -> None:
    sidecar = run(stub("mirror"), extra='max_body = "10KB"')
    big = json.dumps({"model": "mirror", "messages": ["x" * 20_000]}).encode()
    cases = [
        (b"no json", 400, "invalid_json"),
        (b"[]", 400, "invalid_type"),
        (b'"text"', 400, "invalid_type"),
        (b'{"model": 5}', 400, "invalid_type"),
        (b'{"messages": []}', 400, "model_missing"),
        (b'{"model": ""}', 400, "model_missing"),
        (b'{"model": "mirrro"}', 404, "model_not_found"),
        (b'{"model": "mirror"', 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"", 400, "invalid_json"),
        (big, 413, "body_too_large"),
    ]
    with sidecar.http() as http:
        for body, status, code in cases:
            answer = http.post("/v1/chat/completions", content=body)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (status, code), body[:40]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["message"]
        chunked = http.post("/v1/chat/completions", content=iter([big[:9000], big[9000:]]))
        assert chunked.json()["error"]["code"] == "body_too_large"
        assert http.get("/v1/chat/completions").json()["error"]["code"] == "method_not_allowed"
        assert http.post("/v1/nope").json()["error"]["code"] == "unknown_path"
        assert http.get("/nowhere").json()["error"]["code"] == "unknown_path"
    assert sidecar.starts("mirror") == 0


def test_a_server_that_runs_elsewhere_is_routed_to_and_never_touched(run: Run) -> None:
    here = run(stub("remote"))
    here.ask("remote")
    port = here.model("remote")["server"]["port"]
    other = f"""
[models.remote]
mode = "chat"
[[models.remote.variants]]
url = "http://127.0.0.1:{port}"
model_name = "called-otherwise"
[models.dead]
mode = "chat"
variants = [{{ url = "http://127.0.0.1:1" }}]
"""
    there = here.folder / "there"
    manifests = {"sidecar.toml": settings(there / "state", "39000-39001"), "models.toml": other}
    with running(there, manifests) as sidecar:
        assert sidecar.ask("remote").startswith("remote-0")
        assert json.loads(seen(port)[-1]["body"])["model"] == "called-otherwise"
        with sidecar.http() as http:
            answer = http.post("/v1/chat/completions", json={"model": "dead", "messages": []})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "external_unhealthy")
        assert "does not answer" in answer.json()["error"]["message"]
        sidecar.cli("stop", "remote")
    assert here.state("remote") == "ready"  # the other sidecar's end did not touch it
