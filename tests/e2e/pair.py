"""The same servers, asked directly and through a sidecar, and what may differ between the two answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai

from tests.e2e import engines
from tests.e2e.conftest import free_block
from tests.e2e.harness import KEY, PATIENCE_S, Sidecar, running, settings
from tests.servers import HTTP_SERVER
from tests.support import serving

# What is new with each answer, whoever is asked. "id" of a token is a number, and the same each time.
_PASSING = frozenset({"id", "item_id", "call_id", "created", "created_at", "completed_at"})
_PASSING_TEXT = re.compile(
    rb'(?<="id":)"[^"]*"|(?<="created":)\d+|"timings":\{[^}]*\}|\b(?:chatcmpl-|resp_|msg_)\w{32}\b'
)
# Of the connection; and the length, in which the digits of timings differ.
_PASSING_HEADERS = frozenset({"connection", "keep-alive", "date", "content-length"})


@dataclass(frozen=True)
class Pair:
    """servers: the address of each model's server. Clients of the sidecar, and of whatever is asked directly."""

    sidecar: Sidecar
    servers: Mapping[str, str]
    client: openai.OpenAI
    client_anthropic: anthropic.Anthropic

    def both(self, model: str) -> tuple[openai.OpenAI, openai.OpenAI]:
        """Clients of the model's server, and of the sidecar."""
        return self.client.with_options(base_url=f"{self.servers[model]}/v1"), self.client

    def both_anthropic(self, model: str) -> tuple[anthropic.Anthropic, anthropic.Anthropic]:
        """Clients of the model's server, and of the sidecar."""
        return self.client_anthropic.with_options(base_url=self.servers[model]), self.client_anthropic

    def same(self, model: str, ask: Callable[[openai.OpenAI, str], Any]) -> Any:
        """The answer, which must be the same from both."""
        return same(self.both(model), lambda client: ask(client, model))

    def logged(self, model: str) -> list[str]:
        """What the log says of requests to the model."""
        return [line for line in self.sidecar.log if f" model={model} " in line]


def same(clients: tuple[Any, Any], ask: Callable[[Any], Any]) -> Any:
    """What both clients get, which must be the same."""
    direct, through = (plain(ask(client)) for client in clients)
    assert through == direct
    return through


def plain(value: Any) -> Any:
    """An answer of a client as plain data, with what is new each time replaced by its type."""
    if hasattr(value, "to_dict"):
        value = value.to_dict(warnings=False)  # servers say more than the clients' types know
    if isinstance(value, dict):
        return {key: _lasting(key, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def plain_bytes(body: bytes) -> bytes:
    """A body without what is new each time."""
    return _PASSING_TEXT.sub(b"~", body)


def lasting_headers(headers: Any) -> list[tuple[str, str]]:
    """The headers that must be the same, in their order."""
    return [(name, value) for name, value in headers.multi_items() if name.lower() not in _PASSING_HEADERS]


def _lasting(key: str, value: Any) -> Any:
    if key == "timings":
        return sorted(value)
    if key in _PASSING and value is not None and (key != "id" or isinstance(value, str)):
        return type(value).__name__
    return plain(value)


@contextmanager
def asked_twice(folder: Path) -> Iterator[Pair]:
    """A sidecar before llama.cpp and before servers that misbehave."""
    with ExitStack() as stack:
        servers = stack.enter_context(_engines(folder))
        servers["mirror"] = stack.enter_context(serving(HTTP_SERVER, "--name", "mirror")).url
        broken = stack.enter_context(serving(HTTP_SERVER, "--name", "broken", "--close-after-chunks", "2")).url
        chat = 'mode = ["chat", "base", "responses", "messages", "embedding", "transcription"]'
        few = '[plugins.few]\nimport = "sidecar.builtin.limits:Limits"\nconfig = { requests_per_minute = 1 }\n'
        manifests = {
            "sidecar.toml": settings(folder / "state", free_block()) + few,
            "models.toml": "".join(
                (
                    _at("parrot", servers["parrot"], chat),
                    _at("counted", servers["parrot"], chat + "\ncount_streams = true", "parrot"),
                    _at("few", servers["parrot"], chat + '\nchain = ["keys", "few"]', "parrot"),
                    _at("compass", servers["compass"], 'mode = "embedding"'),
                    _at("ranker", servers["ranker"], 'mode = "reranker"'),
                    _at("mirror", servers["mirror"], chat + '\naliases = ["whisper-1"]'),
                    _at("counted-mirror", servers["mirror"], chat + "\ncount_streams = true", "mirror"),
                    _at("broken", broken, chat),
                    _at("absent", "http://127.0.0.1:1", chat),
                )
            ),
        }
        sidecar = stack.enter_context(running(folder, manifests))
        speaks_anthropic = anthropic.Anthropic(base_url=sidecar.url, api_key=KEY, max_retries=0, timeout=PATIENCE_S)
        yield Pair(sidecar, servers, stack.enter_context(sidecar.client()), stack.enter_context(speaks_anthropic))


@contextmanager
def _engines(folder: Path) -> Iterator[dict[str, str]]:
    with subprocess.Popen(
        [sys.executable, engines.__file__, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.kill()


def _at(name: str, url: str, lines: str, model_name: str = "") -> str:
    return f"""
[models.{name}]
{lines}
[[models.{name}.variants]]
url = "{url}"
model_name = "{model_name or name}"
"""
