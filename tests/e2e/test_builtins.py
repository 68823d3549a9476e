"""The built-in plugins in a running sidecar: in front of a server, with the settings that a manifest gives them."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from sidecar.builtin import usage
from tests.builtin.test_keys import hashed
from tests.e2e.conftest import Run
from tests.e2e.harness import Sidecar, seen, stub, until
from tests.servers import HTTP_SERVER
from tests.support import serving

CHAT = {"model": "m", "messages": []}


def chained(*names: str, mode: str = "chat") -> str:
    """A model behind these plugins."""
    return stub("m", mode=mode, model=f"chain = {json.dumps(names)}")


def port(sidecar: Sidecar) -> int:
    """Where the model's server listens."""
    return int(sidecar.model("m")["server"]["port"])


def rows(path: Path, count: int) -> list[dict[str, Any]]:
    """So many rows of usage, once they are written."""
    until(lambda: path.exists() and len(usage.read(path)) >= count, f"{count} rows are written")
    return usage.read(path)


def test_usage_limits_and_balance_work_by_name_alone(run: Run, tmp_path: Path) -> None:
    sidecar = run(chained("keys", "limits", "balance", "usage"))
    with sidecar.http() as http:
        answer = http.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "600"
        assert answer.headers["x-ratelimit-limit-tokens"] == "1000000"
        streamed = http.post("/v1/chat/completions", json={**CHAT, "stream": True})
        assert streamed.headers["x-ratelimit-limit-requests"] == "600"
    one, _ = rows(tmp_path / "state" / "usage.db", 2)
    assert (one["principal"], one["model"], one["end"], one["status"]) == ("tester", "m", "ok", 200)
    assert (one["input_tokens"], one["output_tokens"]) == (7, 4)


def test_limits_refuse_and_say_when_it_is_worth_another_try(run: Run) -> None:
    table = '[plugins.few]\nimport = "sidecar.builtin.limits:Limits"\nconfig = { requests_per_minute = 2 }\n'
    sidecar = run(chained("keys", "few"), files={"few.toml": table})
    with sidecar.http() as http:
        answers = [http.post("/v1/chat/completions", json=CHAT) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    refused = answers[-1]
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 25 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"


def test_what_is_in_flight_is_given_back_when_clients_leave_and_when_servers_die(run: Run) -> None:
    table = '[plugins.one]\nimport = "sidecar.builtin.limits:Limits"\nconfig = { concurrent_total = 1 }\n'
    model = stub("m", "--chunks", "100000", "--interval", "0.02", model='chain = ["keys", "one"]')
    sidecar = run(model, files={"one.toml": table})
    streamed, short = {**CHAT, "stream": True}, {**CHAT, "max_tokens": 1}

    def is_let_in() -> bool:
        return http.post("/v1/chat/completions", json=short).status_code == 200

    with sidecar.http() as http:
        with http.stream("POST", "/v1/chat/completions", json=streamed) as answer:
            assert answer.status_code == 200
            refused = http.post("/v1/chat/completions", json=short)
            assert refused.status_code == 429
            assert refused.json()["error"]["code"] == "concurrency_limit_exceeded"
            assert refused.headers["retry-after"] == "1"
        until(is_let_in, "what a client has left is given back")
        with http.stream("POST", "/v1/chat/completions", json=streamed) as answer:
            assert answer.status_code == 200
            assert not is_let_in()
            os.kill(int(sidecar.model("m")["server"]["pid"]), signal.SIGKILL)
            with pytest.raises(httpx.RemoteProtocolError):
                answer.read()
        until(is_let_in, "what a server did not finish is given back")


def test_params_change_what_the_server_gets(run: Run) -> None:
    table = '[plugins.fixed]\nimport = "sidecar.builtin.params:Params"\n'
    table += 'config = { set = { max_tokens = 2 }, default = { n = 1 }, strip = ["user"] }\n'
    sidecar = run(chained("keys", "fixed"), files={"fixed.toml": table})
    with sidecar.http() as http:
        answer = http.post("/v1/chat/completions", json={**CHAT, "user": "x", "max_tokens": 9, "seed": 5})
    assert answer.json()["usage"]["completion_tokens"] == 2
    got = json.loads(seen(port(sidecar))[-1]["body"])
    assert got == {**CHAT, "max_tokens": 2, "seed": 5, "n": 1}


def test_keys_in_a_file_come_and_go_without_a_reload(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"{hashed('sk-a')} anna models=other-*\n")
    table = f'[plugins.team]\nimport = "sidecar.builtin.keys:StaticKeys"\nconfig = {{ file = "{file}" }}\n'
    sidecar = run(chained("team"), files={"team.toml": table})

    def status(token: str) -> int:
        headers = {"authorization": f"Bearer {token}"}
        return httpx.post(f"{sidecar.url}/v1/chat/completions", json=CHAT, headers=headers, trust_env=False).status_code

    assert (status("sk-a"), status("sk-b")) == (403, 401)
    file.write_text(f"{hashed('sk-b')} bert\n")
    until(lambda: status("sk-b") == 200, "the new key is let in")
    assert status("sk-a") == 401


def test_anthropics_clients_get_errors_that_they_can_read(run: Run) -> None:
    sidecar = run(chained("keys", mode="messages"))
    url = f"{sidecar.url}/v1/messages"
    refused = httpx.post(url, json=CHAT, headers={"x-api-key": "wrong"}, trust_env=False)
    assert refused.status_code == 401
    error = {"type": "authentication_error", "message": "the API key is not known", "code": "invalid_api_key"}
    assert refused.json() == {"type": "error", "error": error}
    with sidecar.http() as http:
        unknown = http.post("/v1/messages", json={**CHAT, "model": "none"})
        assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
        assert http.post("/v1/messages", json=CHAT).status_code == 200


def test_tokens_are_checked_with_the_keys_of_a_file(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("jwt", reason='needs the extra "jwt"')
    from tests.builtin.test_jwt import AUDIENCE, BOTH, ISSUER, OTHER_RSA, token

    file = tmp_path / "jwks.json"
    file.write_bytes(BOTH)
    config = f'{{ issuer = "{ISSUER}", audience = "{AUDIENCE}", jwks_file = "{file}" }}'
    table = f'[plugins.tokens]\nimport = "sidecar.builtin.jwt:Jwt"\nconfig = {config}\n'
    sidecar = run(chained("tokens", "usage"), files={"tokens.toml": table})
    answers = [
        httpx.post(
            f"{sidecar.url}/v1/chat/completions",
            json=CHAT,
            headers={"authorization": f"Bearer {text}"},
            trust_env=False,
        )
        for text in (token(), token(OTHER_RSA), "sk-plain")
    ]
    assert [answer.status_code for answer in answers] == [200, 401, 401]
    assert answers[1].json()["error"]["code"] == "invalid_token"
    principals = [row["principal"] for row in rows(tmp_path / "state" / "usage.db", 3)]
    assert principals[0] == "anna"


def test_an_upload_finds_its_model_and_reaches_the_server_under_its_name(run: Run) -> None:
    sidecar = run(stub("m", mode="transcription", variant='model_name = "whisper-large"'))
    audio = bytes(range(32, 127)) * 1000
    with sidecar.http() as http:
        files = {"file": ("speech.wav", audio)}
        answer = http.post("/v1/audio/transcriptions", data={"model": "m", "language": "en"}, files=files)
        assert answer.status_code == 200
        missing = http.post("/v1/audio/transcriptions", data={"language": "en"}, files=files)
        assert (missing.status_code, missing.json()["error"]["code"]) == (400, "model_missing")
        broken = http.post(
            "/v1/audio/transcriptions", content=b"--x", headers={"content-type": "multipart/form-data; boundary=x"}
        )
        assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_form")
    (request,) = seen(port(sidecar))
    assert 'name="model"\r\n\r\nwhisper-large\r\n' in request["body"]
    assert audio.decode() in request["body"]


def test_servers_share_the_load_by_their_weights(run: Run) -> None:
    with serving(HTTP_SERVER, "--name", "big") as big, serving(HTTP_SERVER, "--name", "small") as small:
        variants = f'[{{ name = "big", url = "{big.url}", weight = 3 }}, {{ name = "small", url = "{small.url}" }}]'
        text = f'[models.m]\nmode = "chat"\nchain = ["keys", "shared"]\nvariants = {variants}\n'
        for name, strategy in (("w", "weighted"), ("r", "round_robin"), ("f", "failover")):
            text += f'[models.{name}]\nmode = "chat"\nbalance = "{strategy}"\nvariants = {variants}\n'
        table = '[plugins.shared]\nimport = "sidecar.builtin.balance:Balance"\nconfig = { policy = "weighted" }\n'
        sidecar = run(text, files={"shared.toml": table})
        with sidecar.http() as http:

            def served(name: str) -> str:
                return http.post("/v1/chat/completions", json={**CHAT, "model": name}).headers["x-served-by"]

            for name in "mwr":
                until(lambda name=name: served(name) == "small", "both are known to be healthy")  # type: ignore[misc] # a default binds the name of this turn
            counts = {name: Counter(served(name) for _ in range(12)) for name in "mwrf"}
        uneven, even = {"big": 9, "small": 3}, {"big": 6, "small": 6}
        assert counts == {"m": uneven, "w": uneven, "r": even, "f": {"big": 12}}
        names = [plugin["name"] for plugin in sidecar.status()["plugins"] if plugin["kind"] == "route"]
        assert names == ["balance:failover", "balance:round_robin", "balance:weighted", "shared"]
