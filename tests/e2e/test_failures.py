"""What clients and operators are told when a server does not come up, or goes wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time

import httpx
import openai
import pytest

from tests.e2e.conftest import Run
from tests.e2e.harness import Sidecar, alive, seen, stats, stub, until
from tests.servers import HTTP_SERVER


def refusal(sidecar: Sidecar, model: str) -> openai.APIStatusError:
    """The error that a client gets for the model."""
    with pytest.raises(openai.APIStatusError) as refused:
        sidecar.ask(model)
    return refused.value


def test_a_command_that_is_not_there_is_told_to_client_and_operator(run: Run) -> None:
    sidecar = run(stub("ghost").replace('"{python}"', '"no-such-engine"'))
    error = refusal(sidecar, "ghost")
    assert (error.status_code, error.code) == (503, "spawn_failed")
    assert 'command not found: "no-such-engine"' in str(error)
    condition = sidecar.model("ghost")["conditions"][0]
    assert (condition["status"], condition["reason"]) == ("false", "SpawnFailed")
    assert 'command not found: "no-such-engine"' in condition["message"]


def test_a_server_that_exits_at_once_is_told_with_its_last_words(run: Run) -> None:
    flags = ("--exit-after", "0", "--exit-code", "7", "--stderr-line", "CUDA error: out of memory")
    sidecar = run(stub("fleeting", *flags))
    began = time.monotonic()
    error = refusal(sidecar, "fleeting")
    assert time.monotonic() - began < 5
    assert (error.status_code, error.code) == (503, "exited")
    assert "exited with code 7" in str(error)
    assert "CUDA error: out of memory" in str(error)
    assert int(error.response.headers["retry-after"]) >= 1
    until(lambda: "CUDA error" in sidecar.model("fleeting")["conditions"][0]["message"], "the condition says so, too")
    again = refusal(sidecar, "fleeting")  # in backoff: refused at once, with the same reason, and nothing is started
    assert again.code == "exited"
    assert sidecar.starts("fleeting") == 1


def test_a_server_that_never_gets_healthy_is_given_up_at_its_load_timeout(run: Run) -> None:
    sidecar = run(stub("sick", "--unhealthy-for", "inf", variant='load_timeout = "4s"'))
    error = refusal(sidecar, "sick")
    assert (error.status_code, error.code) == (503, "load_timeout")
    assert "not ready within load_timeout (4 s): health check answered 503" in str(error)
    until(lambda: sidecar.model("sick")["server"] is None, "it is stopped")


def test_a_port_taken_by_a_stranger_is_noticed_and_not_served(run: Run) -> None:
    """The server forks away from its port; somebody else answers there before it does."""
    script = f"""
import os, subprocess, sys, time
env = dict(os.environ); env.pop("SIDECAR_SERVER")
program = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=2, start_new_session=True).pid)"
stranger = [sys.executable, {HTTP_SERVER!r}, "--port", sys.argv[1]]  # its parent ends, so it is nobody's child
pid = subprocess.run([sys.executable, "-c", program, *stranger], env=env, stdout=subprocess.PIPE, check=True).stdout
print(int(pid), file=sys.stderr, flush=True)
time.sleep(600)
"""
    model = stub("robbed").replace(json.dumps(HTTP_SERVER), f'"-c", {json.dumps(script)}')
    sidecar = run(model.replace('"--port", "{port}"', '"{port}"'))
    try:
        error = refusal(sidecar, "robbed")
        assert (error.status_code, error.code) == (503, "port_taken")
        assert "another program listens on port" in str(error)
    finally:
        log = next((sidecar.folder / "state" / "logs").glob("robbed.err.log*"))
        os.kill(int(log.read_text().split()[0]), signal.SIGKILL)


def test_a_crash_while_serving_is_noticed_at_once_with_exit_code_and_last_words(run: Run) -> None:
    sidecar = run(stub("brittle", "--die-after-chunks", "2", "--exit-code", "9", "--stderr-line", "assertion failed"))
    body = {"model": "brittle", "stream": True, "messages": []}
    with sidecar.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        received = b""
        with pytest.raises(httpx.RemoteProtocolError):  # a broken connection, not a clean end
            for piece in answer.iter_raw():
                received += piece
    assert b"[DONE]" not in received
    last = received.strip().splitlines()[-1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_failed"
    until(lambda: sidecar.state("brittle") == "Exited", "the condition says so")
    message = sidecar.model("brittle")["conditions"][0]["message"]
    assert "exited with code 9 while it was serving" in message
    assert "assertion failed" in message


def test_a_client_that_leaves_before_the_first_byte_is_cancelled_upstream(run: Run) -> None:
    sidecar = run(stub("mute", "--hang-head"))
    sidecar.cli("start", "mute")
    port = sidecar.model("mute")["server"]["port"]
    with pytest.raises(httpx.ReadTimeout), sidecar.http() as http:
        http.post("/v1/chat/completions", json={"model": "mute", "messages": []}, timeout=0.3)
    until(lambda: stats(port)["aborted"] == 1, "the server sees the client leave")
    until(lambda: sidecar.model("mute")["server"]["in_flight"] == 0, "the lease comes back")


def test_waiting_clients_that_leave_take_their_demand_with_them(run: Run) -> None:
    sidecar = run(stub("slow", "--unhealthy-for", "2"))
    with pytest.raises(httpx.ReadTimeout), sidecar.http() as http:
        http.post("/v1/chat/completions", json={"model": "slow", "messages": []}, timeout=0.3)
    until(lambda: sidecar.model("slow")["waiting"] == 0, "nobody waits")
    until(lambda: sidecar.state("slow") == "ready", "the start goes on for those who come later")


def test_a_slow_client_slows_its_own_server_and_nothing_piles_up(run: Run) -> None:
    sidecar = run(stub("gusher", "--chunks", "4000000"))
    sidecar.cli("start", "gusher")
    before = _resident_mb(sidecar.process.pid)
    body = json.dumps({"model": "gusher", "stream": True, "messages": []}).encode()
    with socket.create_connection(("127.0.0.1", int(sidecar.url.rpartition(":")[2]))) as stalled:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        stalled.sendall(f"{head}authorization: Bearer sk-test-e2e\r\n\r\n".encode() + body)
        assert stalled.recv(100).startswith(b"HTTP/1.1 200")
        grown = threading.Event()
        grown.wait(2)  # time in which an unbounded relay would take hundreds of MB
        assert _resident_mb(sidecar.process.pid) - before < 20
        assert sidecar.model("gusher")["server"]["in_flight"] == 1
    until(lambda: sidecar.model("gusher")["server"]["in_flight"] == 0, "the lease comes back")


def test_sigterm_lets_a_stream_finish_and_then_stops_the_server(run: Run) -> None:
    sidecar = run(stub("steady", "--chunks", "30", "--interval", "0.05"))
    body = {"model": "steady", "stream": True, "messages": []}
    with sidecar.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        pieces = answer.iter_raw()
        received = next(pieces)
        pid = sidecar.pid("steady")
        sidecar.process.send_signal(signal.SIGTERM)
        received += b"".join(pieces)
    assert b"[DONE]" in received
    assert sidecar.process.wait(20) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_second_sigterm_does_not_wait_for_streams(run: Run) -> None:
    sidecar = run(stub("endless", "--chunks", "100000", "--interval", "0.05"))
    body = {"model": "endless", "stream": True, "messages": []}
    with sidecar.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        pieces = answer.iter_raw()  # kept: a client that lets go of it leaves
        next(pieces)
        sidecar.process.send_signal(signal.SIGTERM)
        until(lambda: any("draining" in line for line in sidecar.log), "the first is taken")
        sidecar.process.send_signal(signal.SIGTERM)
        assert sidecar.process.wait(15) == 0


def test_a_server_that_ignores_sigterm_and_forks_is_stopped_whole(run: Run) -> None:
    flags = ("--ignore-term", "--fork-grandchild", "--fork-daemon")
    sidecar = run(stub("stubborn", *flags, variant='stop_timeout = "300ms"'))
    sidecar.ask("stubborn")
    counts = stats(sidecar.model("stubborn")["server"]["port"])
    pids = [counts["pid"], *counts["children"]]
    assert len(pids) == 3
    sidecar.cli("stop", "stubborn")
    for pid in pids:
        until(lambda pid=pid: not alive(pid), f"pid {pid} is gone", 5)  # type: ignore[misc] # a lambda with a default
    assert sidecar.model("stubborn")["server"] is None
    assert sidecar.status()["devices"][0]["reserved_mb"] == 0


def test_the_request_that_finds_a_server_just_killed_gets_its_answer_from_a_new_one(run: Run) -> None:
    sidecar = run(stub("phoenix"))
    sidecar.ask("phoenix")
    os.kill(sidecar.pid("phoenix"), signal.SIGKILL)
    assert sidecar.ask("phoenix").startswith("phoenix-0")
    assert sidecar.starts("phoenix") == 2
    assert len(seen(sidecar.model("phoenix")["server"]["port"])) == 1


def _resident_mb(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:  # noqa: PTH123 - one line of a pseudo file
        return int(file.read().split()[1]) * 4096 // 2**20


def test_a_crash_loop_backs_off_and_ends_until_somebody_starts_it(run: Run) -> None:
    """A server that gets ready and dies at once: the first death is forgiven, the next ones cost time."""
    sidecar = run(stub("looping", "--exit-after", "0.3", model="auto_start = true"))
    until(lambda: sidecar.starts("looping") >= 3, "it is tried again")
    until(lambda: sidecar.state("looping") == "Exited", "it backs off")
    again = refusal(sidecar, "looping")
    assert int(again.response.headers["retry-after"]) >= 1
    starts = sidecar.starts("looping")
    assert starts <= 4
    sidecar.cli("start", "looping", check=False)  # a person's word is a fresh start, though it dies again
    assert sidecar.starts("looping") > starts


def test_the_clients_error_tells_how_the_server_ended(run: Run) -> None:
    flags = ("--die-after-chunks", "2", "--exit-code", "9", "--stderr-line", "assertion failed")
    sidecar = run(stub("brittle", *flags))
    body = {"model": "brittle", "stream": True, "messages": []}
    with sidecar.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        received = b""
        with pytest.raises(httpx.RemoteProtocolError):
            for piece in answer.iter_raw():
                received += piece
    message = json.loads(received.strip().splitlines()[-1].removeprefix(b"data: "))["error"]["message"]
    assert "exited with code 9 while it was serving" in message
    assert "assertion failed" in message


def test_stopping_a_model_that_is_starting_refuses_who_waits_for_it(run: Run) -> None:
    sidecar = run(stub("slow", "--unhealthy-for", "60"))
    answers: list[openai.APIStatusError] = []
    waiter = threading.Thread(target=lambda: answers.append(refusal(sidecar, "slow")))
    waiter.start()
    until(lambda: sidecar.model("slow")["waiting"] == 1, "somebody waits")
    sidecar.cli("stop", "slow")
    waiter.join(10)
    assert answers[0].code == "stopped"
    assert sidecar.model("slow")["server"] is None
    assert sidecar.starts("slow") == 1


def test_hostile_bodies_cost_little_and_nothing_before_the_key_is_known(run: Run) -> None:
    sidecar = run(stub("mirror", variant='model_name = "other"'))
    nested = b'{"a":[' + b'{"model":"mirror"},' * 50_000 + b'0],"model":"mirror","messages":[]}'
    twice = b'{"model":"mirror","model":"mirror"}'
    with sidecar.http() as http:
        began = time.monotonic()
        deep = http.post("/v1/chat/completions", content=b'{"x":' + b"[" * 100_000, headers={"authorization": ""})
        assert deep.status_code == 401
        assert (
            http.post("/v1/chat/completions", content=b'{"x":' + b"[" * 100_000).json()["error"]["code"]
            == "invalid_json"
        )
        long = b'{"model":"' + b"ab" * 5_000_000 + b'"}'
        assert http.post("/v1/chat/completions", content=long).json()["error"]["code"] == "model_not_found"
        assert http.post("/v1/chat/completions", content=twice).json()["error"]["code"] == "invalid_json"
        assert time.monotonic() - began < 5
        began = time.monotonic()
        assert http.post("/v1/chat/completions", content=nested).status_code == 200
        assert time.monotonic() - began < 3
    (request,) = seen(sidecar.model("mirror")["server"]["port"])
    assert request["body"].encode() == nested.replace(b'],"model":"mirror"', b'],"model":"other"')
