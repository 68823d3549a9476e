"""Names of models, for the shell to complete: of the sidecar that runs, or else of the manifests here."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
from click.shell_completion import CompletionItem

from sidecar.mechanism import source
from sidecar.surfaces.cli.client import DEFAULT_URL, AnswerError, Remote, UnreachableError, declared_url

F = TypeVar("F", bound=Callable[..., Any])

PATIENCE_S = 0.5  # of somebody who has pressed a key


class _Model(msgspec.Struct, frozen=True):
    name: str
    state: str = ""


class _Status(msgspec.Struct, frozen=True):
    models: tuple[_Model, ...]


def complete_models(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What the word may become. Never fails and says nothing: it runs while somebody types."""
    directory = Path(context.params.get("directory") or "manifests")
    try:
        found = list(_running(context, directory))
    except (UnreachableError, AnswerError, msgspec.ValidationError):  # away, or not to be asked by us
        found = [CompletionItem(name) for name in _declared(directory)]
    return [item for item in found if item.value.startswith(incomplete)]


def model_argument(command: F) -> F:
    """Adds MODEL."""
    return click.argument("model", shell_complete=complete_models)(command)


def _running(context: click.Context, directory: Path) -> Iterator[CompletionItem]:
    url = context.params.get("url") or declared_url(directory) or DEFAULT_URL
    remote = Remote(url, context.params.get("token") or "")
    status = msgspec.convert(remote.request("GET", "/-/top", {}, timeout_s=PATIENCE_S), _Status)
    for model in status.models:
        yield CompletionItem(model.name, help=model.state)


def _declared(directory: Path) -> Iterator[str]:
    """The names in the manifests; what is faulty has none."""
    try:
        files = source.read(directory.expanduser().absolute()).files
    except source.SourceError:
        return
    for _, content in files:
        try:
            models = tomllib.loads(content.decode()).get("models", {})
        except (tomllib.TOMLDecodeError, UnicodeDecodeError):
            continue
        yield from models if isinstance(models, dict) else ()
