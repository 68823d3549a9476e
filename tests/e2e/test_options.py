"""Each option of a manifest does what it says: take it away, and one of these fails."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import Run
from tests.e2e.harness import Sidecar, alive, cli, running, seen, settings, stub, until, write
from tests.servers import HTTP_SERVER

CAP = '[devices.part]\nmatch = { class = "cpu" }\nmemory_mb = 150\n'


def refused(sidecar: Sidecar, model: str) -> str:
    """The code of the error that a client gets."""
    with sidecar.http() as http:
        answer = http.post("/v1/chat/completions", json={"model": model, "messages": []})
    return str(answer.json()["error"]["code"])


def test_a_pinned_model_is_neither_evicted_nor_stopped_for_being_idle(run: Run) -> None:
    pinned = stub("pinned", model='pinned = true\nidle_timeout = "100ms"')
    sidecar = run(pinned, stub("other"), files={"devices.toml": CAP})
    sidecar.ask("pinned")
    assert refused(sidecar, "other") == "insufficient_memory"
    assert sidecar.state("pinned") == "ready"


def test_of_two_idle_models_the_one_with_the_lower_priority_goes(run: Run) -> None:
    cap = CAP.replace("150", "250")
    sidecar = run(stub("high", model="priority = 5"), stub("low"), stub("new"), files={"devices.toml": cap})
    sidecar.ask("low")
    sidecar.ask("high")
    sidecar.ask("low")  # used last, and goes all the same
    sidecar.ask("new")
    assert (sidecar.state("high"), sidecar.state("low")) == ("ready", "Stopped")


def test_an_auto_started_model_evicts_nobody(run: Run) -> None:
    sidecar = run(
        stub("first", model="auto_start = true\npriority = 1"),
        stub("second", model="auto_start = true"),
        files={"devices.toml": CAP},
    )
    until(lambda: sidecar.state("first") == "ready", "the more important one is up")
    assert sidecar.state("second") == "InsufficientMemory" or sidecar.state("second") == "WaitingForMemory"
    assert sidecar.starts("second") == 0


def test_headroom_is_kept_free(run: Run) -> None:
    sidecar = run(stub("a"))
    total = sidecar.status()["devices"][0]["status"]["total_mb"]
    text = (sidecar.folder / "manifests" / "sidecar.toml").read_text()
    sidecar.write("sidecar.toml", text.replace("headroom_mb = 0", f"headroom_mb = {total - 50}"))
    until(lambda: sidecar.status()["devices"][0]["usable_mb"] == 50, "the headroom is taken over")
    assert refused(sidecar, "a") == "unplaceable"


def test_a_command_is_run_in_its_cwd_with_its_environment(run: Run) -> None:
    script = "import os, sys; sys.exit(' '.join((os.getcwd(), os.environ['COLOUR'], os.environ['MODEL'])))"
    model = stub("where", variant='cwd = "sub"\nenv = { COLOUR = "{env.TINT}", MODEL = "{model}" }')
    model = model.replace(json.dumps(HTTP_SERVER), f'"-c", {json.dumps(script)}')
    sidecar = run(model, files={"sub/empty.toml": ""}, env={"TINT": "blue"})
    with sidecar.http() as http:
        message = http.post("/v1/chat/completions", json={"model": "where", "messages": []}).json()["error"]["message"]
    assert f"{sidecar.folder}/manifests/sub blue where" in message


def test_a_foreign_listener_is_served_where_the_manifest_says_so(run: Run) -> None:
    """As with `docker run -p`: the process that listens is no child of the command."""
    script = f"""
import os, subprocess, sys
env = {{name: value for name, value in os.environ.items() if name != "SIDECAR_SERVER"}}
proxy = subprocess.Popen([sys.executable, {HTTP_SERVER!r}, "--port", sys.argv[1]], env=env, start_new_session=True)
print(proxy.pid, file=sys.stderr, flush=True)
proxy.wait()
"""
    model = stub("boxed", variant="foreign_listener = true").replace(
        json.dumps(HTTP_SERVER), f'"-c", {json.dumps(script)}'
    )
    sidecar = run(model.replace('"--port", "{port}"', '"{port}"'))
    try:
        assert sidecar.ask("boxed")
    finally:
        log = next((sidecar.folder / "state" / "logs").glob("boxed.err.log"))
        os.kill(int(log.read_text().split()[0]), signal.SIGKILL)


def test_a_servers_log_is_cut_above_its_limit_and_its_end_is_kept(run: Run) -> None:
    script = """
import sys, time
for number in range(40000):
    print("line", number, "x" * 80, file=sys.stderr)
sys.stderr.flush()
time.sleep(60)
"""
    model = stub("chatty").replace(json.dumps(HTTP_SERVER), f'"-c", {json.dumps(script)}')
    sidecar = run(model, extra='server_log_limit = "100KB"')
    with pytest.raises(httpx.ReadTimeout), sidecar.http() as http:
        http.post("/v1/chat/completions", json={"model": "chatty", "messages": []}, timeout=1)
    logs = sidecar.folder / "state" / "logs"
    until((logs / "chatty.err.log.1").exists, "the log is cut")
    assert (logs / "chatty.err.log").stat().st_size <= 100_000
    assert b"line 39999" in (logs / "chatty.err.log.1").read_bytes()
    assert (logs / "chatty.err.log.1").stat().st_size <= 50_000


def test_requests_are_cut_off_when_the_time_to_drain_is_over(run: Run) -> None:
    sidecar = run(stub("endless", "--chunks", "100000", "--interval", "0.05"), extra='drain_timeout = "1s"')
    body = {"model": "endless", "stream": True, "messages": []}
    with sidecar.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        pieces = answer.iter_raw()  # kept: a client that lets go of it leaves
        next(pieces)
        pid = sidecar.pid("endless")
        began = time.monotonic()
        assert sidecar.stop() == 0
    assert 0.9 < time.monotonic() - began < 10
    assert not alive(pid)


def test_an_allowed_host_may_use_the_control_api(run: Run) -> None:
    sidecar = run(stub("m"), extra='allowed_hosts = ["gpu-box.lan"]')
    for host, status in (("gpu-box.lan:8080", 200), ("other.lan", 403)):
        answer = httpx.get(f"{sidecar.url}/-/status", headers={"host": host}, trust_env=False)
        assert answer.status_code == status


def test_only_insecure_allows_an_open_address_without_auth(tmp_path: Path) -> None:
    text = settings(tmp_path / "state", "38000-38010").replace("127.0.0.1:0", "0.0.0.0:0")
    text = text.replace('chain = ["keys", "log"]', "chain = []")
    write(tmp_path / "refused" / "sidecar.toml", text)
    result = cli("run", str(tmp_path / "refused"), check=False)
    assert result.returncode == 1
    assert "can be reached from other machines, and the default chain has no auth plugin" in result.stderr
    manifests = {"sidecar.toml": text.replace("[sidecar]", "[sidecar]\ninsecure = true"), "m.toml": stub("m")}
    with running(tmp_path, manifests) as sidecar:
        port = sidecar.url.rpartition(":")[2]
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json={"model": "m", "messages": []})
        assert answer.status_code == 200


def test_a_port_of_the_range_that_is_taken_is_passed_over(run: Run) -> None:
    sidecar = run(stub("m"))
    ports = next(
        line for line in (sidecar.folder / "manifests" / "sidecar.toml").read_text().splitlines() if "ports" in line
    )
    first = int(ports.split('"')[1].partition("-")[0])
    with socket.create_server(("127.0.0.1", first)):
        sidecar.ask("m")
        assert sidecar.model("m")["server"]["port"] > first
    assert len(seen(sidecar.model("m")["server"]["port"])) == 1


def test_a_models_own_chain_replaces_the_default_one(run: Run) -> None:
    sidecar = run(stub("open", model="chain = []"), stub("closed"))
    for model, status in (("open", 200), ("closed", 401)):
        answer = httpx.post(f"{sidecar.url}/v1/chat/completions", json={"model": model, "messages": []}, timeout=20)
        assert answer.status_code == status
