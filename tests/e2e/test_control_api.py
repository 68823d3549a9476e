"""Who may use `/-/`, and what it does."""

from __future__ import annotations

import concurrent.futures
import socket

import httpx
import pytest

from tests.e2e.conftest import Run
from tests.e2e.harness import Sidecar, cli, stub, until


def call(sidecar: Sidecar, method: str, path: str, **headers: str) -> httpx.Response:
    """A request without the client's key, with these headers (underscores for dashes)."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.request(method, sidecar.url + path, headers=named, trust_env=False, timeout=20)


def test_health_is_for_everybody(run: Run) -> None:
    sidecar = run(stub("m"))
    assert call(sidecar, "GET", "/-/healthy", host="probe.example", x_forwarded_for="10.0.0.1").status_code == 200
    assert call(sidecar, "GET", "/-/ready", host="probe.example").json() == {"status": "ready"}


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "rebound.example"}, "unknown_host"),
        ({"host": "rebound.example:8080", "origin": "http://rebound.example:8080"}, "unknown_host"),
        ({"origin": "https://evil.example"}, "foreign_origin"),
        ({"origin": "null"}, "foreign_origin"),
        ({"origin": "http://127.0.0.1:1"}, "foreign_origin"),
        ({"sec_fetch_site": "cross-site"}, "foreign_origin"),
        ({"x_forwarded_for": "203.0.113.7"}, "not_loopback"),
        ({"forwarded": "for=203.0.113.7"}, "not_loopback"),
    ],
)
def test_web_pages_and_forwarded_callers_are_kept_out(run: Run, headers: dict[str, str], code: str) -> None:
    sidecar = run(stub("m"))
    for method, path in (("POST", "/-/models/m/start"), ("POST", "/-/models/m/stop"), ("GET", "/-/status")):
        answer = call(sidecar, method, path, **headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, code)
    assert sidecar.starts("m") == 0


def test_the_admin_token_opens_what_the_address_does_not(run: Run) -> None:
    sidecar = run(stub("m"), extra='admin_token = { env = "ADMIN" }', env={"ADMIN": "s3cret"})
    outside = {"x_forwarded_for": "203.0.113.7", "host": "gateway.example"}
    assert call(sidecar, "GET", "/-/status", **outside).status_code == 403
    assert call(sidecar, "GET", "/-/status", authorization="Bearer wrong", **outside).status_code == 401
    assert call(sidecar, "GET", "/-/status", authorization="Bearer s3cret", **outside).status_code == 200
    assert call(sidecar, "POST", "/-/models/m/start", authorization="Bearer s3cret", **outside).status_code == 200
    assert "s3cret" not in "".join(sidecar.log)


def test_start_and_stop_may_be_called_twice_and_at_once(run: Run) -> None:
    sidecar = run(stub("m"))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        starts = list(pool.map(lambda _: call(sidecar, "POST", "/-/models/m/start"), range(5)))
        assert {answer.json()["state"] for answer in starts} == {"ready"}
        stops = list(pool.map(lambda _: call(sidecar, "POST", "/-/models/m/stop"), range(5)))
        assert {answer.status_code for answer in stops} == {200}
    assert sidecar.starts("m") == 1
    assert sidecar.model("m")["server"] is None
    assert call(sidecar, "POST", "/-/models/m/stop").json()["message"] == "it was not running"


def test_stop_waits_for_requests_in_flight_and_force_does_not(run: Run) -> None:
    sidecar = run(stub("m", "--chunks", "20", "--interval", "0.05"))
    body = {"model": "m", "stream": True, "messages": []}
    with sidecar.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        pieces = answer.iter_raw()
        received = next(pieces)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            stopping = pool.submit(call, sidecar, "POST", "/-/models/m/stop")
            until(lambda: sidecar.state("m") == "draining", "it drains")
            received += b"".join(pieces)
            assert stopping.result().status_code == 200
    assert b"[DONE]" in received
    endless = {**body, "max_tokens": 100000}
    with sidecar.http() as http, http.stream("POST", "/v1/chat/completions", json=endless) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        assert call(sidecar, "POST", "/-/models/m/stop?force=true").status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            b"".join(pieces)


def test_names_with_slashes_and_unknown_names(run: Run) -> None:
    sidecar = run(stub("m").replace("models.m", 'models."org/m"'))
    assert call(sidecar, "POST", "/-/models/org/m/start").json()["model"] == "org/m"
    assert call(sidecar, "POST", "/-/models/org/n/start").json()["error"]["code"] == "model_not_found"
    assert call(sidecar, "POST", "/-/models/org/m/reboot").json()["error"]["code"] == "unknown_path"
    assert sidecar.ask("org/m").startswith("m-0")


def test_plan_tells_what_a_request_would_move(run: Run) -> None:
    cap = '[devices.part]\nmatch = { class = "cpu" }\nmemory_mb = 150\n'
    sidecar = run(stub("a"), stub("b"), files={"devices.toml": cap})
    sidecar.ask("a")
    assert call(sidecar, "GET", "/-/plan").json()["actions"] == []
    actions = call(sidecar, "GET", "/-/plan?want=b").json()["actions"]
    assert [(action["action"], action["model"], action["reason"]) for action in actions] == [("Stop", "a", "Evicted")]
    assert sidecar.state("a") == "ready"  # it was only a question
    assert "makes room for b" in sidecar.cli("plan", "--want", "b").stdout


def test_a_second_sidecar_on_the_state_directory_refuses(run: Run) -> None:
    sidecar = run(stub("m"))
    second = cli("run", str(sidecar.folder / "manifests"), check=False)
    assert second.returncode == 1
    assert f"in use by another sidecar (pid {sidecar.process.pid})" in second.stderr


def test_a_taken_address_is_told(run: Run) -> None:
    sidecar = run(stub("m"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        text = (sidecar.folder / "manifests" / "sidecar.toml").read_text()
        other = sidecar.folder / "other" / "sidecar.toml"
        other.parent.mkdir()
        other.write_text(text.replace("127.0.0.1:0", address).replace("/state", "/other-state"))
        second = cli("run", str(other.parent), check=False)
    assert second.returncode == 1
    assert f"cannot listen on {address}: Address already in use" in second.stderr
