"""The sidecar's own log, its request log, and what its servers say: on the command line and over HTTP."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e import forked
from tests.e2e.conftest import Run, free_block
from tests.e2e.harness import KEY, PATIENCE_S, Sidecar, cli, running, settings, stub, until, write

# Serves as the stub does, and says each line that stands in a file, as it comes.
PARROT = """
import pathlib, sys, threading, time
sys.argv = sys.argv[1:]
path = pathlib.Path(sys.argv.pop(1))
def speak():
    at = 0
    while True:
        content = path.read_bytes() if path.exists() else b""
        if len(content) > at:
            sys.stderr.buffer.write(content[at:])
            sys.stderr.flush()
            at = len(content)
        time.sleep(0.02)
threading.Thread(target=speak, daemon=True).start()
exec(compile(pathlib.Path(sys.argv[0]).read_text(), sys.argv[0], "exec"))
"""


def parrot(name: str, words: Path, **options: Any) -> str:
    """A model whose server says what is written to a file."""
    plain = stub(name, **options)
    script = json.dumps(str(Path(__file__).resolve().parents[1] / "servers" / "http_server.py"))
    return plain.replace(script, f'"-c", {json.dumps(PARROT)}, {script}, {json.dumps(str(words))}')


class Output:
    """What a command says on stdout, as it says it."""

    def __init__(self, path: Path, *arguments: str) -> None:
        self._path = path
        with path.open("wb") as out:
            self.process = forked.spawn(arguments, os.environ, out=out.fileno())

    @property
    def lines(self) -> list[str]:
        return self._path.read_text().splitlines()

    def has(self, text: str) -> bool:
        return any(text in line for line in self.lines)

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(PATIENCE_S) == 0
        if self.process.stderr is not None:
            self.process.stderr.close()


@contextmanager
def saying(path: Path, *arguments: str) -> Iterator[Output]:
    output = Output(path, *arguments)
    try:
        yield output
    finally:
        output.close()


def logs(sidecar: Sidecar, model: str = "m", **asked: str) -> httpx.Response:
    url = f"{sidecar.url}/-/models/{model}/logs"
    return httpx.get(url, params=asked, trust_env=False, timeout=PATIENCE_S)


def texts(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [line["text"] for line in answer.json()["lines"]]


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """A sidecar that logs JSON and has a server that has said something; shared by tests that only look."""
    folder = tmp_path_factory.mktemp("logs")
    (folder / "words").write_bytes(
        b"loading\ncaf\xe9 \x1b[31mred\x1b[0m\x1b[2J\n" + b"x" * 100_000 + b"\nan error: 17\n"
    )
    requests = (
        f'[plugins.requests]\nimport = "sidecar.builtin.log:Log"\nconfig = {{ path = "{folder}/requests.log" }}\n'
    )
    chain = 'chain = ["keys", "requests", "log"]'
    ports = settings(folder / "state", free_block()).replace('chain = ["keys", "log"]', chain)
    manifests = {
        "sidecar.toml": ports + requests,
        "m.toml": parrot("m", folder / "words"),
        "flaky.toml": stub("flaky", "--close-after-chunks", "1"),
        "dead.toml": '[models.dead]\nmode = "chat"\nvariants = [{ url = "http://127.0.0.1:9" }]',
    }
    with running(folder, manifests, {"SIDECAR_LOG_FORMAT": "json"}) as sidecar:
        sidecar.ask("m")
        until(lambda: "an error: 17" in texts(logs(sidecar)), "it has spoken")
        yield sidecar


# --- servers' logs ----------------------------------------------------------------------------------------------------


def test_a_servers_lines_are_told_over_http(sidecar: Sidecar) -> None:
    answer = logs(sidecar).json()
    first, *_, last = (line for line in answer["lines"] if line["stream"] == "err")
    assert first["text"] == "loading"
    assert last["text"] == "an error: 17"
    assert abs(last["at"] - time.time()) < PATIENCE_S
    assert (answer["gone"], answer["given_up"]) == (False, False)
    assert texts(logs(sidecar, tail="1")) == ["an error: 17"]
    assert texts(logs(sidecar, grep="err[a-z]+: [0-9]+", stream="err")) == ["an error: 17"]
    assert texts(logs(sidecar, stream="err"))[1] == "caf\ufffd \x1b[31mred\x1b[0m\x1b[2J"
    until(lambda: not texts(logs(sidecar, since=datetime.now(UTC).isoformat())), "all of it is of before")
    assert "loading" in texts(logs(sidecar, since="1h"))
    assert texts(logs(sidecar, after=answer["next"])) == []


def test_who_asks_wrongly_is_told_so(sidecar: Sidecar) -> None:
    assert logs(sidecar, grep="(?=x)").json()["error"]["message"].startswith("the lines asked for: grep: invalid perl")
    assert logs(sidecar, "nobody").json()["error"]["code"] == "model_not_found"
    assert logs(sidecar, "dead").json()["error"]["code"] == "no_log"
    assert logs(sidecar, previous="true").json()["error"]["message"].startswith("there has been only one run")
    url = f"{sidecar.url}/-/models/m/logs"
    assert httpx.get(url, headers={"x-forwarded-for": "1.2.3.4"}, trust_env=False).status_code == 403


def test_people_see_lines_and_their_terminal_stays_whole(sidecar: Sidecar) -> None:
    shown = sidecar.cli("logs", "m", "--stream", "err").stdout.splitlines()
    assert (shown[0], shown[1], shown[-1]) == ("loading", "caf\ufffd red", "an error: 17")
    assert len(shown[2]) < 20_000
    [stamped] = sidecar.cli("logs", "m", "-t", "-n", "1").stdout.splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d err  an error: 17", stamped)
    [line] = sidecar.cli("logs", "m", "--json", "--grep", "17$").stdout.splitlines()
    assert json.loads(line)["text"] == "an error: 17"
    assert sidecar.cli("logs", "m", "--since", "2020-01-31T12:00", "--tail", "1").stdout == "an error: 17\n"


def test_exit_codes_tell_what_was_wrong(sidecar: Sidecar) -> None:
    assert sidecar.cli("logs", "nobody", check=False).returncode == 1
    assert sidecar.cli("logs", "m", "--grep", "(", check=False).returncode == 1
    assert sidecar.cli("logs", "m", "--follow", "--previous", check=False).returncode == 1
    assert sidecar.cli("logs", "m", "--since", "soon", check=False).returncode == 2
    assert cli("logs", "m", "--url", "http://127.0.0.1:1", check=False).returncode == 3


def test_who_follows_hears_over_restarts_of_the_server_and_of_the_sidecar(tmp_path: Path) -> None:
    first, _, last = free_block().partition("-")
    words = tmp_path / "words"
    words.write_text("one\n")
    ports = f"{int(first) + 1}-{last}"
    listen = settings(tmp_path / "state", ports, 'on_exit = "keep"').replace("127.0.0.1:0", f"127.0.0.1:{first}")
    manifests = {"sidecar.toml": listen, "m.toml": parrot("m", words)}
    state = tmp_path / "state" / "logs"
    with running_and_kept(tmp_path, manifests) as one:
        one.ask("m")
        pid = one.pid("m")
        with saying(tmp_path / "said", "logs", "m", "--follow", "--url", one.url) as output:
            until(lambda: output.has("one"), "what there was is heard")
            append(words, "two\n")
            until(lambda: output.has("two"), "what comes is heard")
            assert one.stop() == 0  # and those who follow do not keep it
            append(words, "while nobody looked\n")
            until(lambda: "nobody looked" in (state / "m.err.log").read_text(), "it writes on without a sidecar")
            with running(tmp_path, manifests) as two:
                until(lambda: output.has("while nobody looked"), "it is heard from the next sidecar")
                assert two.pid("m") == pid
                append(words, "three\n")
                until(lambda: output.has("three"), "it goes on")
                two.cli("stop", "m")
                words.write_text("another run\n")
                two.ask("m")
                until(lambda: output.has("another run"), "the new server is heard")
                assert texts(logs(two, stream="err", previous="true"))[-1] == "three"
                two.cli("stop", "m")
            said = [line for line in output.lines if not line.startswith("listening")]  # the server says so
    assert said == ["one", "two", "while nobody looked", "three", "another run"]


@contextmanager
def running_and_kept(folder: Path, manifests: dict[str, str]) -> Iterator[Sidecar]:
    """A sidecar that ends within, and leaves its servers."""
    with running(folder, manifests) as sidecar:
        yield sidecar
        assert sidecar.process.poll() == 0


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@pytest.mark.soak
def test_a_server_that_never_stops_talking_fills_no_disk_and_can_be_read(run: Run) -> None:
    script = "import os\nwhile True: os.write(2, b'%s %d\\n' % (b'x' * 80, 7) * 500)"
    model = stub("chatty", variant='load_timeout = "60s"').replace(
        json.dumps(str(Path(__file__).resolve().parents[1] / "servers" / "http_server.py")),
        f'"-c", {json.dumps(script)}',
    )
    sidecar = run(model, extra='server_log_limit = "1MB"')
    with pytest.raises(httpx.ReadTimeout), sidecar.http() as http:
        http.post("/v1/chat/completions", json={"model": "chatty", "messages": []}, timeout=0.5)
    folder = sidecar.folder / "state" / "logs"
    until((folder / "chatty.err.log.1").exists, "it is cut")
    assert (folder / "chatty.err.log.1").stat().st_size <= 2 * 2**20
    assert len(texts(logs(sidecar, "chatty", tail="5"))) == 5
    assert httpx.get(f"{sidecar.url}/-/healthy", trust_env=False).json() == {"status": "ok"}
    sidecar.cli("stop", "chatty", "--force")


# --- the sidecar's own ------------------------------------------------------------------------------------------------


def test_each_line_is_a_json_object_with_time_level_and_logger(sidecar: Sidecar) -> None:
    lines = [json.loads(line) for line in list(sidecar.log)]
    for line in lines:
        assert {"ts", "level", "logger", "message"} <= line.keys()
        assert datetime.fromisoformat(line["ts"]).tzinfo == UTC
    assert sidecar.status()["log"]["lost"] == 0


def test_a_sidecar_that_does_not_start_says_why_in_the_same_form(tmp_path: Path) -> None:
    faulty = tmp_path / "sidecar.toml"
    for text, why in (("[sidecar]\nlisten = 7\n", "[sidecar] is faulty"), ("", "cannot be used")):
        faulty.write_text(text or f'[sidecar]\nstate_dir = "{faulty}"\n')
        done = cli("run", str(tmp_path), "--log-format", "json", check=False)
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        assert done.returncode == 1
        assert why in lines[-1]["message"]
        assert lines[-1]["logger"] == "sidecar.stderr"


def test_what_is_logged_of_a_request_has_its_trace(sidecar: Sidecar) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"authorization": f"Bearer {KEY}", "traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    body = {"model": "m", "messages": [], "stream": True}
    with sidecar.http() as http:
        http.post("/v1/chat/completions", json=body, headers=headers)

    def told() -> list[dict[str, Any]]:
        return [line for line in map(json.loads, list(sidecar.log)) if line.get("trace_id") == trace]

    until(lambda: bool(told()), "it is in the log")
    [line] = told()
    assert (line["logger"], line["model"], line["fields"]["status"]) == ("sidecar.plugins.log", "m", 200)


def test_a_flood_of_requests_that_fail_is_a_few_lines_and_a_count(sidecar: Sidecar) -> None:
    def told() -> list[dict[str, Any]]:
        lines = map(json.loads, list(sidecar.log))
        return [line for line in lines if ".dataplane." in line["logger"] and line.get("model") == "flaky"]

    def fail(_: int) -> None:
        with pytest.raises(httpx.RemoteProtocolError), sidecar.http() as http:
            asked = {"model": "flaky", "messages": [], "stream": True}
            http.post("/v1/chat/completions", json=asked, headers={"x-request-id": "req-18"})

    with ThreadPoolExecutor(
        30
    ) as threads:  # each waits for half a second, in case that its server says why it has ended
        list(threads.map(fail, range(30)))
    until(lambda: len(told()) == 20, "so many are told")
    assert (told()[0]["level"], told()[0]["fields"]["request_id"]) == ("warning", "req-18")
    assert sidecar.status()["log"] == {"lost": 0, "suppressed": 10}
    numbers = httpx.get(f"{sidecar.url}/metrics", trust_env=False).text
    assert "\nsidecar_log_suppressed_total 10" in numbers
    assert "\nsidecar_log_lost_total 0" in numbers
    assert len(told()) == 20


def test_the_request_log_is_in_a_file_of_its_own_as_well(sidecar: Sidecar) -> None:
    path = sidecar.folder / "requests.log"

    def requests() -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    httpx.get(f"{sidecar.url}/v1/chat/completions", trust_env=False)
    named = {"x-request-id": "req-17"}
    httpx.post(f"{sidecar.url}/v1/chat/completions", json={"model": "m"}, headers=named, trust_env=False)
    until(lambda: any(one["status"] == 401 for one in requests()), "it is written down")
    served = next(one for one in requests() if one["status"] == 200)
    assert (served["model"], served["principal"], served["method"], served["mode"]) == ("m", "tester", "POST", "chat")
    assert served["output_tokens"] > 0
    assert served["bytes_in"] > 0
    assert "client" not in served
    assert (served["request_id"], next(one for one in requests() if one["status"] == 401)["request_id"]) == (
        "",
        "req-17",
    )


def test_nobody_who_reads_the_log_slowly_slows_the_sidecar(tmp_path: Path) -> None:
    write(tmp_path / "manifests" / "sidecar.toml", settings(tmp_path / "state", free_block()))
    process = forked.spawn(["run", str(tmp_path / "manifests")], os.environ)
    assert process.stderr is not None
    try:
        found = next(filter(None, (re.search(r"(http://[\d.]+:\d+) serves", line) for line in process.stderr)))
        # From here on nobody reads. Each request is a line, and the pipe holds twelve of them.
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        with httpx.Client(headers={"authorization": f"Bearer {KEY}"}, trust_env=False, timeout=PATIENCE_S) as http:
            for _ in range(50):
                assert http.post(f"{found[1]}/v1/chat/completions", json={"model": "none"}).status_code == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.stderr.close()
