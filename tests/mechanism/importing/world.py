"""The configurations that are imported in tests, and what every import of one must hold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from sidecar.core.manifest import Problem
from sidecar.mechanism import loader, source
from sidecar.mechanism.importing import litellm, llama_swap, llm_manager, llm_one_api, ollama
from sidecar.mechanism.importing.draft import Imported, Options
from sidecar.mechanism.importing.reading import Path as Place
from sidecar.mechanism.importing.reading import Tree, read
from tests.mechanism.importing.ollama import asked
from tests.support import write

CONFIGS = Path(__file__).parent / "configs"
CONVERT = {
    "llama_swap": llama_swap.convert,
    "litellm": litellm.convert,
    "llm_manager": llm_manager.convert,
    "llm_one_api": llm_one_api.convert,
    "ollama": ollama.convert,
}
FILES = sorted(str(path.relative_to(CONFIGS)) for suffix in ("json", "yaml") for path in CONFIGS.glob(f"*/*.{suffix}"))


@cache  # nobody changes a tree
def tree(name: str) -> Tree:
    """A configuration, read."""
    path = CONFIGS / name
    if name.startswith("ollama/"):
        return asked(path)
    return read(str(path), path.read_bytes(), core=name.startswith("llama_swap/"))


def convert(name: str, found: Tree, environment: Mapping[str, str] | None = None) -> Imported:
    """Import it. name: of the file, whose folder tells what it is of."""
    folder = str((CONFIGS / name).parent)
    return CONVERT[name.partition("/")[0]](found, Options(environment=environment or {}, folder=folder))


def text(kind: str, content: str, **environment: str) -> Imported:
    """Import what a test says."""
    found = read("config.yaml", content.encode(), core=kind == "llama_swap")
    return CONVERT[kind](found, Options(environment=environment, folder="/opt/gateway"))


def validated(imported: Imported, folder: Path) -> tuple[loader.Loaded, list[Problem]]:
    """Write the manifests, with all variables set that they ask for, and check them as `sidecar validate` does."""
    write(folder, imported.files)
    values = dict.fromkeys(imported.variables, "http://127.0.0.1:9")
    with mock.patch.dict(os.environ, values):
        loaded = loader.load(source.read(folder), {**os.environ})
    return loaded, list(loaded.problems)


def changed(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x1" if isinstance(value, str) else None


def with_value(found: Tree, path: Place, value: Any) -> Tree:
    """The document with another value in one place."""
    return Tree(found.file, _with(found.value, path, value), found.lines)


def _with(here: Any, path: Place, value: Any) -> Any:
    if not path:
        return value
    copy: Any = [*here] if isinstance(here, list) else {**here, path[0]: here.get(path[0])}
    copy[path[0]] = _with(copy[path[0]], path[1:], value)
    return copy


def models(imported: Imported, folder: Path) -> Mapping[str, Any]:
    """The models that are declared, by name; there must be no problem."""
    loaded, problems = validated(imported, folder)
    assert [str(problem) for problem in problems] == []
    return loaded.declaration.models
