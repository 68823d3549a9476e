"""The examples as they are shipped: their plugins, and a real sidecar on a copy of their manifests."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from tests.e2e.conftest import free_block
from tests.e2e.harness import ROOT, Sidecar, running

PLUGINS = ROOT / "examples" / "plugins"


def module(example: str) -> ModuleType:
    """The module of an example that has the example's name.

    It is called by its whole path: its own name would be in the way of files that other tests call the same.
    """
    with helpers_of(example):
        return importlib.import_module(f"examples.plugins.{example}.plugins.{example}")


@contextmanager
def helpers_of(example: str) -> Iterator[None]:
    """Meanwhile the modules beside the example's can be imported, as the sidecar has it."""
    folder = str(PLUGINS / example / "plugins")
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


@contextmanager
def started(
    example: str, root: Path, more: Mapping[str, str] | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Sidecar]:
    """A sidecar on a copy of the example, with an address and a state directory of its own. more: further manifests."""
    copy = root / "manifests"
    shutil.copytree(PLUGINS / example, copy, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / "sidecar.toml").read_text(encoding="utf-8").replace("../../llama", str(ROOT / "examples" / "llama"))
    own = {"listen": "127.0.0.1:0", "state_dir": str(root / "state"), "ports": free_block()}
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in own.items())
    settings = text.replace('listen = "127.0.0.1:8080"', lines)
    assert settings != text
    with running(root, {"sidecar.toml": settings, **(more or {})}, env) as sidecar:
        yield sidecar
