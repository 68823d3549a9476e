"""Asks who listens for its models, by what OpenAI-compatible servers, Ollama, llama.cpp, SGLang and TEI answer.

Only what reads is asked. Each answer has a bound in time and in size, and so have all of them together.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import httpx
import msgspec

from sidecar.mechanism.discovery.sockets import Listener

AT_A_TIME = 16
MOST_BYTES = 4 * 2**20
MOST_MODELS = 64  # of an Ollama that are asked for what they can do

SLOW = "did not answer in time"
NO_HTTP = "does not speak HTTP"
NO_MODELS = "speaks HTTP, and lists no models: neither at /v1/models nor in the ways of Ollama or TEI"
NEEDS_KEY = "asks for a key"
SIDECAR = "is a sidecar"

_ENGINES = {"llamacpp": "llama.cpp", "vllm": "vLLM", "sglang": "SGLang", "library": "Ollama"}  # by `owned_by`
_TEI_MODES = {"embedding": "embedding", "reranker": "reranker", "classifier": "classifier"}


class Served(msgspec.Struct, frozen=True):
    """A model that a server has. modes: () = it did not say."""

    id: str
    modes: tuple[str, ...] = ()


class Answer(msgspec.Struct, frozen=True):
    """What came of asking. engine: "" = not known. why: there are no models, "" if there are.

    keyed: it asked for a key, and was shown one.
    """

    engine: str = ""
    models: tuple[Served, ...] = ()
    why: str = ""
    keyed: bool = False


class _Server:
    """One that is asked. The key is shown to it when it has asked for one, not before."""

    def __init__(self, client: httpx.AsyncClient, url: str, key: str) -> None:
        self._client = client
        self._url = url
        self._key = key
        self._headers: dict[str, str] = {}

    @property
    def keyed(self) -> bool:
        return bool(self._headers)

    async def models(self) -> tuple[int, Any]:
        """What it lists, with the key if it takes that. Raises httpx.HTTPError."""
        status, listed = await self.ask("/v1/models")
        if status in (401, 403) and self._key:
            self._headers = {"authorization": f"Bearer {self._key}"}
            status, listed = await self.ask("/v1/models")
        return status, listed

    async def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
        """Status, and the JSON; None if it is none, or has no end. Raises httpx.HTTPError."""
        content = bytearray()
        method = "POST" if body else "GET"
        async with self._client.stream(method, self._url + path, json=body, headers=self._headers) as answer:
            async for chunk in answer.aiter_bytes():
                content += chunk
                if len(content) > MOST_BYTES:
                    return answer.status_code, None
        try:
            return answer.status_code, json.loads(content)
        except (ValueError, RecursionError):
            return answer.status_code, None

    async def table(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """A JSON object that came with 200; {} for anything else."""
        try:
            status, found = await self.ask(path, body)
        except httpx.HTTPError:
            return {}  # it has answered before: what is missing is this path
        return found if status == 200 and isinstance(found, dict) else {}


async def ask_all(listeners: Iterable[Listener], each_s: float, all_s: float, key: str = "") -> dict[Listener, Answer]:
    """What each says; those that are not through after `all_s` were too slow. key: for those that ask for one."""
    limits = httpx.Limits(max_connections=AT_A_TIME)
    places = asyncio.Semaphore(AT_A_TIME)
    async with httpx.AsyncClient(timeout=each_s, trust_env=False, limits=limits) as client:

        async def one(listener: Listener) -> Answer:
            async with places:
                server = _Server(client, listener.url, key)
                return msgspec.structs.replace(await ask(server), keyed=server.keyed)

        tasks = {listener: asyncio.create_task(one(listener)) for listener in listeners}
        if tasks:
            _, late = await asyncio.wait(tasks.values(), timeout=all_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        return {one: Answer(why=SLOW) if task.cancelled() else task.result() for one, task in tasks.items()}


async def ask(server: _Server) -> Answer:
    """What one says."""
    try:
        status, listed = await server.models()
    except httpx.TimeoutException:
        return Answer(why=SLOW)
    except (httpx.HTTPError, httpx.InvalidURL):
        return Answer(why=NO_HTTP)
    if status in (401, 403):
        return Answer(why=NEEDS_KEY)
    models = _listed(listed) if status == 200 else []
    if any(owner == "sidecar" for _, owner in models):
        return Answer(why=SIDECAR)
    if models:
        return await _closer(server, [name for name, _ in models], _ENGINES.get(models[0][1], ""))
    if info := await server.table("/info"):
        return _tei(info)
    return await _ollama(server) or Answer(why=NO_MODELS)


async def _closer(server: _Server, names: list[str], engine: str) -> Answer:
    """It has models: which program is it, and what can they do?"""
    if engine in ("", "Ollama") and (ollama := await _ollama(server)):
        return ollama
    if not engine and "default_generation_settings" in await server.table("/props"):
        engine = "llama.cpp"
    if not engine and (info := await server.table("/info")) and (tei := _tei(info)).models:
        return tei
    if engine in ("", "SGLang") and (info := await server.table("/get_model_info")):
        engine = "SGLang"
        if info.get("is_generation") is False:
            return Answer(engine, tuple(Served(name, ("embedding",)) for name in names))
    return Answer(engine, tuple(Served(name) for name in names))


def _listed(answer: Any) -> list[tuple[str, str]]:
    """(id, owner) of each model of an OpenAI list."""
    data = answer.get("data") if isinstance(answer, dict) else None
    entries = [one for one in data if isinstance(one, dict)] if isinstance(data, list) else []
    names = [(one.get("id"), str(one.get("owned_by", ""))) for one in entries]
    return [(name, owner) for name, owner in names if isinstance(name, str) and name]


def _tei(info: dict[str, Any]) -> Answer:
    """https://huggingface.github.io/text-embeddings-inference: `GET /info`."""
    name, kind = info.get("model_id"), info.get("model_type")
    kinds = kind if isinstance(kind, dict | list) else [kind]
    modes = tuple(_TEI_MODES[one] for one in kinds if isinstance(one, str) and one in _TEI_MODES)
    if not isinstance(name, str) or not modes:
        return Answer(why=NO_MODELS)
    return Answer("TEI", (Served(name, modes),))


async def _ollama(server: _Server) -> Answer | None:
    """https://docs.ollama.com/api: `GET /api/tags`, and `POST /api/show`, which only shows."""
    tags = (await server.table("/api/tags")).get("models")
    if not isinstance(tags, list):
        return None
    names = [one["name"] for one in tags if isinstance(one, dict) and isinstance(one.get("name"), str)]
    if not names:
        return Answer("Ollama", why="is an Ollama without models")
    models: list[Served] = []
    for name in names:
        shown = await server.table("/api/show", {"model": name}) if len(models) < MOST_MODELS else {}
        able = shown.get("capabilities", ())
        modes = ("embedding",) if "embedding" in able else ("chat", "base", "responses") if "completion" in able else ()
        models.append(Served(name, modes))
    return Answer("Ollama", tuple(models))
