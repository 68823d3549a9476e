"""An Ollama to ask: what its API answers, as https://docs.ollama.com/api has it, and a server that answers so."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sidecar.mechanism.importing.ollama import fetch
from sidecar.mechanism.importing.reading import Tree, read

TAGS: dict[str, Any] = {
    "models": [
        {
            "name": "llama3.2:latest",
            "model": "llama3.2:latest",
            "modified_at": "2026-05-04T17:37:44.706015396-07:00",
            "size": 2019393189,
            "digest": "a80c4f17acd55265feec403c7aef86be0c25983ab279d83f3bcd3abbcb5b8b72",
            "details": {
                "parent_model": "",
                "format": "gguf",
                "family": "llama",
                "families": ["llama"],
                "parameter_size": "3.2B",
                "quantization_level": "Q4_K_M",
            },
        },
        {
            "name": "nomic-embed-text:v1.5",
            "model": "nomic-embed-text:v1.5",
            "modified_at": "2026-05-01T10:00:00.0-07:00",
            "size": 274302450,
            "digest": "0a109f422b47e3a30ba2b10eca18548e944e8a23073ee3f3e947efcf3c45e59f",
            "details": {
                "parent_model": "",
                "format": "gguf",
                "family": "nomic-bert",
                "families": ["nomic-bert"],
                "parameter_size": "137M",
                "quantization_level": "F16",
            },
        },
    ]
}
SHOWN: dict[str, dict[str, Any]] = {
    "llama3.2:latest": {
        "license": "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT ...",
        "modelfile": "FROM llama3.2",
        "parameters": 'stop "<|start_header_id|>"',
        "template": "{{ .System }}{{ .Prompt }}",
        "system": "You are terse.",
        "details": TAGS["models"][0]["details"],
        "model_info": {"general.architecture": "llama", "llama.context_length": 131072},
        "capabilities": ["completion", "tools"],
    },
    "nomic-embed-text:v1.5": {
        "parameters": "num_ctx 8192",
        "template": "{{ .Prompt }}",
        "details": TAGS["models"][1]["details"],
        "model_info": {"general.architecture": "nomic-bert"},
        "capabilities": ["embedding"],
    },
}


ANSWERS: dict[str, Any] = {"/api/tags": TAGS, "/api/show": SHOWN, "/api/version": {"version": "0.14.2"}}


def _told() -> dict[str, Any]:
    found = copy.deepcopy(TAGS)
    for model in found["models"]:
        shown = SHOWN[model["name"]]
        model["show"] = {
            key: shown[key] for key in ("capabilities", "parameters", "system", "template") if key in shown
        }
    found.update(ANSWERS["/api/version"])
    return found


TREE = Tree("http://127.0.0.1:11434", _told())


def asked(path: Path) -> Tree:
    """What the importer makes of recorded answers, each by its path; those of `/api/show` by the model's name, too."""
    answers: dict[str, Any] = read(str(path), path.read_bytes()).value
    with serving(answers=answers) as url:
        return Tree(TREE.file, fetch(url).value)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self._answer(self.server.answers.get(self.path))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        name = body["name"] if body["name"] == body["model"] else ""  # versions go by the one or the other
        self._answer(self.server.answers.get(self.path, {}).get(name))

    def _answer(self, found: Any) -> None:
        content = self.server.instead or json.dumps(found).encode()
        self.send_response(404 if found is None else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    instead = b""
    answers: dict[str, Any]


@contextmanager
def serving(instead: bytes = b"", answers: dict[str, Any] = ANSWERS) -> Iterator[str]:
    """The address of one that answers. instead: what it says whatever is asked."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.instead = instead
    server.answers = answers
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
