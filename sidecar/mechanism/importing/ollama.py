"""Ollama, by its API (https://docs.ollama.com/api): what `/api/tags` and `/api/show` tell of its models.

It goes on running them: each becomes a url variant on Ollama's OpenAI-compatible paths. How a model is run (template,
parameters) stays in Ollama, which is said of each.
"""

from __future__ import annotations

import json
from typing import Any

import httpx

from sidecar.mechanism import origins
from sidecar.mechanism.importing import commands
from sidecar.mechanism.importing.account import Account, At, each
from sidecar.mechanism.importing.draft import Draft, Imported, Options
from sidecar.mechanism.importing.reading import InputError, Tree

MOST_BYTES = 16 * 2**20
TIMEOUT_S = 10.0
SHOWN = ("capabilities", "parameters", "system", "template")  # of /api/show; the rest is weights and their licence

_STAYS = ("it stays in Ollama, which goes on running the model", "")


class UnreachableError(Exception):
    """Nothing answers there."""


def fetch(url: str) -> Tree:
    """Ask Ollama for its models. Raises UnreachableError, and InputError if it is something else that answers."""
    try:
        origins.check(url)
    except ValueError as error:
        raise InputError(f"{url}: {error}") from None
    with httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client:
        listed = _ask(client, "GET", "/api/tags")
        models = listed.get("models")
        if not isinstance(models, list) or not all(
            isinstance(one, dict) and isinstance(one.get("name"), str) for one in models
        ):
            raise InputError(f"{url}/api/tags: expected a list of models, as Ollama has it")
        for model in models:
            shown = _ask(client, "POST", "/api/show", {"model": model["name"]})
            model["show"] = {key: shown[key] for key in SHOWN if key in shown}
    return Tree(url, listed)


def _ask(client: httpx.Client, method: str, path: str, body: Any = None) -> dict[str, Any]:
    place = f"{str(client.base_url).rstrip('/')}{path}"
    content = bytearray()
    try:
        with client.stream(method, path, json=body) as answer:
            for chunk in answer.iter_bytes():
                content += chunk
                if len(content) > MOST_BYTES:
                    raise InputError(f"{place}: answers with more than {MOST_BYTES // 2**20} MiB")
    except httpx.HTTPError as error:
        raise UnreachableError(f"no Ollama answers at {place}: {error or type(error).__name__}") from None
    if answer.status_code != 200:
        raise InputError(f"{place}: answers {answer.status_code}: is it Ollama?")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise InputError(f"{place}: answers with something else than JSON: is it Ollama?") from None
    if not isinstance(found, dict):
        raise InputError(f"{place}: expected an object, as Ollama answers")
    return found


def convert(tree: Tree, options: Options) -> Imported:
    """The manifests. tree: what `fetch` found, with the address in place of a file."""
    account = Account(tree)
    root = account.root()
    draft = Draft("Ollama", account, options)
    models = root.get("models")
    draft.expect(name.text() for at in each(models) if (name := at.get("name")))
    for at in each(models):
        _model(draft, at, tree.file)
    draft.note(
        "What Ollama loads is memory of others to the sidecar: it is respected, and never evicted. "
        "To have it managed here, start a server on the model's file by a command variant."
    )
    return draft.imported()


def _model(draft: Draft, at: At, url: str) -> None:
    wanted = at.get("name")
    if wanted is None:
        raise at.wrong("a name")
    capabilities = at.get("show", "capabilities")
    modes = _modes(wanted.text(), capabilities)
    name, table = draft.model(wanted.text(), modes)
    for entry in at.items():
        entry.left(*_STAYS)
    wanted.carried(f"models.{name}")
    if capabilities:
        capabilities.changed("mode", "embedding models answer other paths than chat models")
    if (same := at.get("model")) and same.text() == wanted.text():
        same.changed(f"models.{name}", "the same as its name")
    if wanted.text().endswith(":latest"):
        draft.alias(name, wanted.text().removesuffix(":latest"))
    variant = {"url": url.rstrip("/").removesuffix("/v1")}
    table["variants"] = [variant if name == wanted.text() else variant | {"model_name": wanted.text()}]


def _modes(name: str, capabilities: At | None) -> list[str]:
    told = {at.text() for at in capabilities.each()} if capabilities else set()
    if "embedding" in told:
        return ["embedding"]
    return ["chat", "base", "responses"] if "completion" in told else commands.modes_by_name(name)
