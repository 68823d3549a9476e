"""Ollama, by its API (https://docs.ollama.com/api): what `/api/tags` and `/api/show` tell of its models.

It goes on running them: each becomes a url variant on Ollama's OpenAI-compatible paths, as far as its version has them.
How a model is run (template, parameters) stays in Ollama, which is said of each.
"""

from __future__ import annotations

import json
import re
from typing import Any

import httpx

from sidecar.mechanism import origins
from sidecar.mechanism.importing import commands
from sidecar.mechanism.importing.account import Account, At, each
from sidecar.mechanism.importing.draft import Draft, Imported, Options
from sidecar.mechanism.importing.reading import InputError, Tree

MOST_BYTES = 16 * 2**20
TIMEOUT_S = 10.0
SHOWN = ("capabilities", "parameters", "remote_host", "remote_model", "system", "template")
"""Of /api/show; the rest is weights and their licence."""

_SINCE = {"responses": (0, 13, 3), "messages": (0, 14, 0)}  # the versions of Ollama that have the paths of a mode
_VERSION = re.compile(r"v?(\d{1,9})\.(\d{1,9})\.(\d{1,9})")
_DEVELOPMENT = (0, 0, 0)  # what it calls itself when it is built from source
_ENCODERS = re.compile(r"(?:[a-z]+-)?bert(?:-moe|-v\d)?|gemma-embedding|t5encoder")
"""Families that only embed, for versions before 0.6.4, which tell no capabilities."""

_STAYS = ("it stays in Ollama, which goes on serving the model", "")


class UnreachableError(Exception):
    """Nothing answers there."""


class RefusedError(InputError):
    """It answers, but not with what was asked for."""


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
            model["show"] = _show(client, model["name"])
        if version := _version(client):
            listed["version"] = version
    return Tree(url, listed)


def _show(client: httpx.Client, name: str) -> dict[str, Any]:
    """What it tells of one model. One with damaged files, or deleted since, does not keep the others from coming."""
    try:
        shown = _ask(client, "POST", "/api/show", {"model": name, "name": name})  # old versions go by `name`
    except RefusedError as error:
        return {"error": str(error)}
    return {key: shown[key] for key in SHOWN if key in shown}


def _version(client: httpx.Client) -> str:
    """ "" where it does not say: it is old then, or a server that only looks like Ollama."""
    try:
        version = _ask(client, "GET", "/api/version").get("version")
    except RefusedError:
        return ""
    return version if isinstance(version, str) else ""


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
        raise RefusedError(f"{place}: answers {answer.status_code}: is it Ollama?")
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
    text_modes = _text_modes(root.get("version"))
    models = root.get("models")
    draft.expect(name.text() for at in each(models) if (name := at.get("name")))
    for at in each(models):
        _model(draft, at, tree.file, text_modes)
    draft.note(
        "What Ollama loads is memory of others to the sidecar: it is respected, and never evicted. "
        "To have it managed here, start a server on the model's file by a command variant."
    )
    return draft.imported()


def _text_modes(at: At | None) -> list[str]:
    """Those of a model that writes."""
    if at is None:
        return list(commands.TEXT_MODES)
    at.left("it only tells which paths Ollama has: those of `responses` since 0.13.3, of `messages` since 0.14.0")
    match = _VERSION.match(at.text())
    version = tuple(int(part) for part in match.groups()) if match else (0, 0, 1)
    newer = [mode for mode, since in _SINCE.items() if version >= since or version == _DEVELOPMENT]
    return [*commands.TEXT_MODES, *newer]


def _model(draft: Draft, at: At, url: str, text_modes: list[str]) -> None:
    wanted = at.get("name")
    if wanted is None:
        raise at.wrong("a name")
    for entry in at.items():
        if entry.name not in ("capabilities", "remote_host") or not entry.value:  # more is said of them below
            entry.left(*_STAYS)
    name, table = draft.model(wanted.text(), _modes(at, wanted.text(), text_modes))
    wanted.carried(f"models.{name}")
    if (same := at.get("model")) and same.text() == wanted.text():
        same.changed(f"models.{name}", "the same as its name")
    if wanted.text().endswith(":latest"):
        draft.alias(name, wanted.text().removesuffix(":latest"))
    if error := at.get("show", "error"):
        _not_shown(draft, at, error, name)
    _elsewhere(draft, at, name)
    variant = {"url": url.rstrip("/").removesuffix("/v1")}
    table["variants"] = [variant if name == wanted.text() else variant | {"model_name": wanted.text()}]


def _not_shown(draft: Draft, at: At, error: At, name: str) -> None:
    do = f"`ollama show {at.value['name']}` may tell what is wrong"
    if at.get("capabilities"):
        error.left("the list tells what the model can do", do)
        draft.comment(name, "CHECK: Ollama lists this model, but does not show it.")
    else:
        error.left("its mode is guessed by its name and family", do)
        draft.comment(name, "CHECK: Ollama lists this model, but does not show it, so that mode is a guess.")


def _elsewhere(draft: Draft, at: At, name: str) -> None:
    """Tell of a model that Ollama does not run itself."""
    for place in (at, at.get("show")):
        if place and (host := place.get("remote_host")) and host.text():
            why = "Ollama passes requests for this model on to it: what is asked leaves this machine"
            host.left(why, "delete the model's manifest if that must not be")
            draft.comment(name, f"CHECK: Ollama passes its requests on to {host.text()!r}: they leave this machine.")


def _modes(at: At, name: str, text_modes: list[str]) -> list[str]:
    """By what it can do. Without that, by its family and name: before 0.6.4, Ollama did not tell."""
    by_capability = {"embedding": ["embedding"], "image": ["image"], "completion": text_modes}
    found: list[str] = []
    shown, listed = at.get("show", "capabilities"), at.get("capabilities")
    if shown and listed:
        listed.left("`show` tells it, too")
    for capability in each(shown or listed):
        if modes := by_capability.get(capability.text()):
            found += modes
            capability.changed("mode", "each answers paths of its own")
        else:
            capability.left("requests ask for it; a manifest does not declare it")
    if found:
        return list(dict.fromkeys(found))
    family = at.get("details", "family")
    if family and _ENCODERS.fullmatch(family.text()):
        family.changed("mode", "models of this family only embed")
        return ["embedding"]
    return ["embedding"] if commands.modes_by_name(name) == ["embedding"] else text_modes
