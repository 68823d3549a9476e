"""Every path that OpenAI-compatible servers have, models that are named elsewhere than in a body, and all other paths.

One sidecar for all of these tests, before a server whose every byte is a test's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from threading import Thread

import httpx
import pytest

from sidecar.builtin import interfaces
from tests.conformance.judge import Message
from tests.conformance.upstream import Exchange, Upstream
from tests.conformance.world import Client
from tests.e2e.conftest import free_block
from tests.e2e.harness import KEY, KEY_HASH, Sidecar, running

LIMITED = "sk-limited"
APP = "https://app.example"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nX-Request-Id: 7\r\n\r\n{}"
MODES = [
    interfaces.Chat,
    *(interfaces.Base, interfaces.Embedding, interfaces.Reranker, interfaces.Classifier, interfaces.Messages),
    *(interfaces.Responses, interfaces.Transcription, interfaces.Speech, interfaces.Image, interfaces.Realtime),
]
SIDECAR = """
[sidecar]
listen = "127.0.0.1:0"
state_dir = "{folder}/state"
ports = "{ports}"
chain = ["keys", "log"]
headroom_mb = 0
cors_origins = ["{app}"]

[plugins.keys]
import = "sidecar.builtin.keys:StaticKeys"
config = {{ keys = {{ "sha256:{key}" = "tester", "sha256:{limited}" = {{ principal = "few", models = ["chatty"] }} }} }}

[models.every]
mode = {modes}
variants = [{{ url = "{url}" }}]

[models.chatty]
mode = "chat"
aliases = ["org/chatty"]
variants = [{{ url = "{url}", model_name = "inner/chat", api_key = {{ env = "UPSTREAM_KEY" }} }}]

[models.socket]
mode = "chat"
variants = [{{ url = "unix:{folder}/server.sock" }}]

[models.heard]
mode = "transcription"
variants = [{{ url = "{url}", model_name = "whisper/1" }}]
"""


class SocketServer(ThreadingMixIn, UnixStreamServer):
    """A server on a unix socket, which tells what it was asked."""

    daemon_threads = True

    class Handler(BaseHTTPRequestHandler):
        """One connection."""

        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(b"{}")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers["content-length"])))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gives it
            """Say nothing."""

        def _answer(self, body: bytes) -> None:
            said = json.dumps({"path": self.path, "host": self.headers["host"], "body": body.decode()}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)


@contextmanager
def on_socket(path: Path) -> Iterator[None]:
    with SocketServer(str(path), SocketServer.Handler) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield
        server.shutdown()


class Here:
    """The sidecar, and the server that it has in front of it."""

    def __init__(self, sidecar: Sidecar, upstream: Upstream, http: httpx.Client) -> None:
        self.sidecar = sidecar
        self.upstream = upstream
        self.http = http

    def raw(self, method: str, path: str) -> Message:
        """Ask for a path just as it is, which clients do not."""
        client = Client(int(self.sidecar.url.rpartition(":")[2]))
        try:
            client.send(f"{method} {path} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
            return client.answer(method.encode())
        finally:
            client.close()

    def refused(self, answer: httpx.Response) -> tuple[int, str]:
        """Status and code of a refusal, of which the server has learnt nothing."""
        assert not self.upstream.settle()
        return answer.status_code, answer.json()["error"]["code"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    folder, upstream = tmp_path_factory.mktemp("endpoints"), Upstream()
    manifest = SIDECAR.format(
        folder=folder,
        app=APP,
        ports=free_block(),
        key=KEY_HASH,
        limited=hashlib.sha256(LIMITED.encode()).hexdigest(),
        modes=json.dumps([mode.provides for mode in MODES]),
        url=f"http://127.0.0.1:{upstream.port}",
    )
    try:
        env = {"UPSTREAM_KEY": "sk-upstream"}
        with (
            on_socket(folder / "server.sock"),
            running(folder, {"sidecar.toml": manifest}, env) as sidecar,
            sidecar.http() as http,
        ):
            yield Here(sidecar, upstream, http)
    finally:
        upstream.stop()


@pytest.fixture
def here(shared: Here) -> Here:
    shared.upstream.reset()
    shared.upstream.answer = ANSWER
    return shared


def target(exchange: Exchange) -> str:
    return exchange.target.decode()


# --- paths --------------------------------------------------------------------------------------------------------


def test_every_path_of_a_mode_leads_to_its_server(here: Here) -> None:
    for mode in MODES:
        for endpoint in mode.endpoints:
            if endpoint.method == "POST":
                assert here.http.post(endpoint.path, json={"model": "every"}).status_code == 200
                exchange = here.upstream.take()
                assert (exchange.method, target(exchange)) == (b"POST", endpoint.path)


def test_a_path_of_several_modes_is_that_of_the_models_mode(here: Here) -> None:
    assert here.http.post("/tokenize", json={"model": "chatty", "prompt": "x"}).status_code == 200
    assert json.loads(here.upstream.take().body) == {"model": "inner/chat", "prompt": "x"}
    here.upstream.forget()
    answer = here.http.post("/tokenize", json={"model": "heard"})
    assert here.refused(answer) == (400, "wrong_mode")
    assert answer.json()["error"]["message"].endswith("it answers at /v1/audio/transcriptions")
    assert here.refused(here.http.get("/tokenize")) == (405, "method_not_allowed")
    assert httpx.get(f"{here.sidecar.url}/-/healthy", trust_env=False).json() == {"status": "ok"}


# --- models in the query ------------------------------------------------------------------------------------------


def test_a_query_names_the_model_where_no_body_does(here: Here) -> None:
    path = "/v1/audio/transcriptions"
    form = {"files": {"file": ("a.wav", b"RIFF")}, "data": {"language": "en"}}
    assert here.http.post(f"{path}?a=1&model=heard&b=%20", **form).status_code == 200  # type: ignore[arg-type] # of a test
    exchange = here.upstream.take()
    assert target(exchange) == f"{path}?a=1&model=whisper%2F1&b=%20"
    assert b"whisper" not in exchange.body
    for body, kind in ((b"RIFF{}", "audio/wav"), (b"", "application/json")):
        answer = here.http.post(f"{path}?model=heard", content=body, headers={"content-type": kind})
        assert answer.status_code == 200
        exchange = here.upstream.take()
        assert (target(exchange), bytes(exchange.body)) == (f"{path}?model=whisper%2F1", body)


def test_query_and_body_must_name_the_same_model(here: Here) -> None:
    path = "/v1/chat/completions"
    answer = here.http.post(f"{path}?mod%65l=org%2Fchatty", json={"model": "org/chatty"})
    assert answer.status_code == 200
    exchange = here.upstream.take()
    assert target(exchange) == f"{path}?mod%65l=inner%2Fchat"
    assert json.loads(exchange.body) == {"model": "inner/chat"}
    here.upstream.forget()
    json_type = {"content-type": "application/json"}
    cases: list[tuple[str, bytes, dict[str, str], tuple[int, str]]] = [
        ("?model=chatty", b'{"model": "every"}', json_type, (400, "model_conflict")),
        ("?model=chatty", b'{"model": "every"}', {"content-type": "audio/wav"}, (400, "model_conflict")),
        ("?model=chatty", b'{"model": "every", "model": null}', json_type, (400, "invalid_json")),
        ("?model=chatty&model=every", b"{}", json_type, (400, "invalid_query")),
        ("?model=chatty", b"RIFF", json_type, (400, "invalid_json")),
        ("?model=", b"{}", json_type, (400, "model_missing")),
        ("?model=nobody", b"{}", json_type, (404, "model_not_found")),
    ]
    for query, body, headers, refusal in cases:
        assert here.refused(here.http.post(path + query, content=body, headers=headers)) == refusal, (query, body)


def test_a_server_may_listen_on_a_unix_socket(here: Here) -> None:
    body = '{"model": "socket"}'
    answers = [here.http.post("/v1/chat/completions", content=body).json() for _ in range(2)]
    assert answers == [{"path": "/v1/chat/completions", "host": "localhost", "body": body}] * 2
    with here.sidecar.client() as client:
        assert client.models.retrieve("socket").model_dump()["ready"]


# --- whatever else a server has -----------------------------------------------------------------------------------


def test_what_is_passed_through_reaches_the_server_as_it_is(here: Here) -> None:
    here.upstream.answer = b"HTTP/1.1 207 Odd\r\nContent-Length: 4\r\nX-Odd: 1\r\n\r\n\x00\xff\r\n"
    body = b"\x00 not JSON { \xff"
    cases = [
        ("PROPFIND", "/upstream/chatty/a%2Fb/..%2f/x?model=inner/chat&q=%7B", "/a%2Fb/..%2f/x?model=inner/chat&q=%7B"),
        ("DELETE", "/upstream/org%2Fchatty", "/"),
        ("PUT", "/upstream/chatty//double", "//double"),
        ("GET", "/upstream/heard/metrics", "/metrics"),
    ]
    for method, asked, expected in cases:
        content = body if method in ("PROPFIND", "PUT") else None
        answer = here.http.request(method, asked, content=content, headers={"x-own": "kept"})
        assert (answer.status_code, answer.reason_phrase, answer.headers["x-odd"]) == (207, "Odd", "1")
        assert answer.content == b"\x00\xff\r\n"
        exchange = here.upstream.take()
        assert (exchange.method.decode(), target(exchange)) == (method, expected)
        assert bytes(exchange.body) == (content or b"")
        assert exchange.values(b"x-own") == [b"kept"]
        assert exchange.values(b"authorization") == ([] if "heard" in asked else [b"Bearer sk-upstream"])
    assert here.http.head("/upstream/chatty/x").status_code == 207
    assert here.upstream.take().method == b"HEAD"


def test_no_path_leads_out_of_the_models_own_server(here: Here) -> None:
    assert here.raw("GET", "/upstream/chatty/../../-/status").status == 200
    assert target(here.upstream.take()) == "/../../-/status"
    here.upstream.forget()
    for path in ("..%2f-/x", "%2e%2e/x", "../-/status", "", "/x", "chatty%2Fx", "chatty%252F"):
        refused = here.raw("GET", f"/upstream/{path}")
        assert (refused.status, json.loads(refused.body)["error"]["code"]) == (404, "model_not_found"), path
    assert here.raw("TRACE", "/upstream/chatty/x").status == 405
    assert not here.upstream.settle()


def test_a_key_for_some_models_opens_no_others_by_any_way(here: Here) -> None:
    few = {"authorization": f"Bearer {LIMITED}"}
    assert here.http.get("/upstream/chatty/props", headers=few).status_code == 200
    assert here.http.post("/upstream/chatty/x", json={"model": "inner/chat"}, headers=few).status_code == 200
    here.upstream.forget()
    nobody = httpx.get(f"{here.sidecar.url}/upstream/chatty/props", trust_env=False)
    assert here.refused(nobody) == (401, "missing_api_key")
    assert here.refused(here.http.get("/upstream/heard/x", headers=few)) == (403, "model_not_allowed")
    assert here.refused(here.http.get("/upstream/chatty/x?model=every", headers=few)) == (400, "model_conflict")
    for kind in ("application/json", "text/plain", "audio/wav"):
        for body in (b' {"model": "whisper/1"}', b'\xef\xbb\xbf{"model": "whisper/1"}'):
            headers = {**few, "content-type": kind}
            answer = here.http.post("/upstream/chatty/v1/completions", content=body, headers=headers)
            assert here.refused(answer) == (400, "model_conflict")
    form = {"files": {"file": ("a.wav", b"RIFF")}, "data": {"model": "whisper/1"}, "headers": few}
    assert here.refused(here.http.post("/upstream/chatty/x", **form)) == (400, "model_conflict")  # type: ignore[arg-type] # of a test


# --- pages --------------------------------------------------------------------------------------------------------


def test_a_page_that_may_asks_before_and_reads_all_of_the_answer(here: Here) -> None:
    asks = {
        "origin": APP,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,x-own",
    }
    for path in ("/v1/chat/completions", "/upstream/chatty/x", "/v1/models", "/tokenize"):
        told = httpx.options(here.sidecar.url + path, headers=asks, trust_env=False)
        assert (told.status_code, told.content) == (204, b"")
        assert told.headers["access-control-allow-origin"] == APP
        assert told.headers["access-control-allow-headers"] == "authorization,x-own"
        assert "POST" in told.headers["access-control-allow-methods"]
        assert "content-length" not in told.headers
    assert not here.upstream.settle()
    own = b"access-control-allow-origin: https://other.example\r\nAccess-Control-Allow-Credentials: true\r\nVary: X\r\n"
    here.upstream.answer = ANSWER.replace(b"X-Request-Id", own + b"X-Request-Id")
    for path, body, status in (
        ("/v1/chat/completions", {"model": "chatty"}, 200),
        ("/v1/chat/completions", {"model": "none"}, 404),
        ("/v1/nowhere", {}, 404),
    ):
        answer = here.http.post(path, json=body, headers={"origin": APP})
        assert answer.status_code == status
        assert answer.headers.get_list("access-control-allow-origin") == [APP]
        assert answer.headers["access-control-expose-headers"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
        assert "Origin" in answer.headers["vary"]
    listed = here.http.get("/v1/models", headers={"origin": APP})
    assert listed.headers["access-control-allow-origin"] == APP


def test_no_other_page_may_ask_and_none_may_use_the_control_api(here: Here) -> None:
    asks = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    told = httpx.options(f"{here.sidecar.url}/v1/chat/completions", headers=asks, trust_env=False)
    assert here.refused(told) == (403, "origin_not_allowed")
    for origin in ({"origin": "https://evil.example"}, {}):
        answer = here.http.post("/v1/chat/completions", json={"model": "chatty"}, headers=origin)
        assert answer.status_code == 200
        assert answer.headers["vary"] == "Origin"
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    control = httpx.options(f"{here.sidecar.url}/-/status", headers={**asks, "origin": APP}, trust_env=False)
    read = httpx.get(f"{here.sidecar.url}/-/healthy", headers={"origin": APP}, trust_env=False)
    for answer in (control, read):
        assert not [name for name in answer.headers if name.startswith("access-control-allow")]
    assert here.http.options("/upstream/chatty/x", headers={"origin": APP}).status_code == 200
    assert here.upstream.settle()[-1].method == b"OPTIONS"  # one that is no question before a request
