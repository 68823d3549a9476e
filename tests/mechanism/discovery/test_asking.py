"""What servers of each kind answer is understood; what answers nothing, for ever or too much holds up nobody."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sidecar.mechanism.discovery import asking, sockets
from sidecar.mechanism.discovery.asking import Answer, Served
from sidecar.mechanism.discovery.sockets import Listener, listeners
from tests.support import write

LLAMA = {"data": [{"id": "qwen.gguf", "owned_by": "llamacpp"}]}
PLAIN = {"data": [{"id": "m"}, {"id": "n"}]}
OLLAMA = {"/v1/models": {"data": [{"id": "x", "owned_by": "library"}]}, "/api/tags": {"models": [{"name": "x:latest"}]}}
TEI = {"model_id": "bge", "model_type": {"reranker": {"id2label": {}}}}

KINDS: dict[str, tuple[dict[str, Any], Answer]] = {
    "llama.cpp": ({"/v1/models": LLAMA}, Answer("llama.cpp", (Served("qwen.gguf"),))),
    "an older llama.cpp": (
        {"/v1/models": PLAIN, "/props": {"default_generation_settings": {}}},
        Answer("llama.cpp", (Served("m"), Served("n"))),
    ),
    "vLLM": ({"/v1/models": {"data": [{"id": "q", "owned_by": "vllm"}]}}, Answer("vLLM", (Served("q"),))),
    "SGLang": (
        {"/v1/models": {"data": [{"id": "e", "owned_by": "sglang"}]}, "/get_model_info": {"is_generation": False}},
        Answer("SGLang", (Served("e", ("embedding",)),)),
    ),
    "TEI": ({"/info": TEI}, Answer("TEI", (Served("bge", ("reranker",)),))),
    "Ollama": (
        {**OLLAMA, "/api/show": {"capabilities": ["embedding"]}},
        Answer("Ollama", (Served("x:latest", ("embedding",)),)),
    ),
    "an Ollama without models": ({"/api/tags": {"models": []}}, Answer("Ollama", why="is an Ollama without models")),
    "another": ({"/v1/models": PLAIN}, Answer("", (Served("m"), Served("n")))),
    "a sidecar": ({"/v1/models": {"data": [{"id": "m", "owned_by": "sidecar"}]}}, Answer(why=asking.SIDECAR)),
    "one that asks for a key": ({"/v1/models": 401}, Answer(why=asking.NEEDS_KEY)),
    "a web server": ({"/": "<html>"}, Answer(why=asking.NO_MODELS)),
    "odd lists": (
        {"/v1/models": {"data": [{"id": 5}, "x", {}]}, "/info": {"model_id": 1}},
        Answer(why=asking.NO_MODELS),
    ),
    "no JSON": ({"/v1/models": "[" * 100_000}, Answer(why=asking.NO_MODELS)),
    "far too much": ({"/v1/models": "x" * (asking.MOST_BYTES + 2**20)}, Answer(why=asking.NO_MODELS)),
}


SHOWN: dict[int, str] = {}  # by port, what came as `authorization`


@contextmanager
def canned(answers: dict[str, Any], key: str = "") -> Iterator[Listener]:
    """A server that answers these paths: a number is a status, text is text, all else JSON.

    key: with it /v1/models lists a model.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path, 404)
            if shown := self.headers.get("authorization"):
                SHOWN[int(self.connection.getsockname()[1])] = shown
                if key and shown == f"Bearer {key}" and self.path == "/v1/models":
                    found = {"data": [{"id": "behind"}]}
            status = found if isinstance(found, int) else 200
            body = found if isinstance(found, str) else json.dumps(found)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            with suppress(OSError):  # who asked may have had enough
                self.wfile.write(body.encode())

        do_POST = do_GET  # noqa: N815 - the library's name

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield Listener("127.0.0.1", server.server_address[1])
        server.shutdown()


async def test_servers_of_each_kind_are_known_by_what_they_answer() -> None:
    with ExitStack() as stack:
        places = {kind: stack.enter_context(canned(answers)) for kind, (answers, _) in KINDS.items()}
        found = await asking.ask_all(places.values(), 5.0, 10.0)
    assert {kind: found[place] for kind, place in places.items()} == {kind: meant for kind, (_, meant) in KINDS.items()}


async def test_those_that_say_nothing_are_given_up_all_together_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as stack:
        many = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(40)]
        began = time.monotonic()
        found = await asking.ask_all([Listener("127.0.0.1", one.getsockname()[1]) for one in many], 5.0, 0.5)
        assert {answer.why for answer in found.values()} == {asking.SLOW}
        alone = Listener("127.0.0.1", silent.getsockname()[1])
        assert (await asking.ask_all([alone], 0.2, 5.0))[alone] == Answer(why=asking.SLOW)
        assert time.monotonic() - began < 3


async def test_what_speaks_something_else_or_is_gone_is_told() -> None:
    def greet(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"SSH-2.0-x\r\n")

    with socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=greet, args=(other,), daemon=True).start()
        place = Listener("127.0.0.1", other.getsockname()[1])
        assert (await asking.ask_all([place], 2.0, 5.0))[place].why == asking.NO_HTTP
    assert (await asking.ask_all([place], 2.0, 5.0))[place].why == asking.NO_HTTP
    assert await asking.ask_all([], 1.0, 1.0) == {}


async def test_a_key_is_shown_to_those_alone_who_ask_for_one() -> None:
    with canned({"/v1/models": PLAIN}) as open_to_all, canned({"/v1/models": 401}, key="sk-x") as shut:
        found = await asking.ask_all([open_to_all, shut], 2.0, 5.0, key="sk-x")
        assert found[shut] == Answer("", (Served("behind"),), keyed=True)
        assert (found[open_to_all].keyed, SHOWN.get(open_to_all.port)) == (False, None)
        other = await asking.ask_all([shut], 2.0, 5.0, key="sk-other")
        assert other[shut] == Answer(why=asking.NEEDS_KEY, keyed=True)


@pytest.mark.parametrize(("host", "reached"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "::1")])  # noqa: S104
def test_who_listens_is_found_with_its_process(host: str, reached: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        assert listeners(range(port, port + 1)) == [Listener(reached, port, (os.getpid(),))]
        assert Listener(reached, port, (os.getpid(),)) in listeners()
    assert listeners(range(port, port + 1)) == []
    assert Listener("::1", 80).url == "http://[::1]:80"


def test_who_listens_on_an_address_that_others_reach_is_found_there_and_nearer_ones_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, rest = "sl local_address rem_address st", "00000000:0000 0A 0:0 0:0 0 0 0 7 1 0 100"
    rows = [f"{host}:1F40 {rest}" for host in ("0502000A", "0200007F")] + [f"0502000A:1F41 {rest}"]  # 10.0.2.5
    zoned = f"000080FE000000000000000001000000:1F42 {rest}"  # fe80::1
    for name, lines in (("tcp", rows), ("tcp6", [zoned])):
        write(tmp_path, {f"net/{name}": "\n".join([head, *(f"0: {line}" for line in lines)])})
    monkeypatch.setattr(sockets, "PROC", tmp_path)
    assert listeners() == [Listener("127.0.0.2", 8000), Listener("10.0.2.5", 8001)]
