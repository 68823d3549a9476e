"""What the READMEs say is true: their snippets run, their manifests load, their tables list what there is."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from plugin_sdk import Plugin
from plugin_sdk.config import convert
from sidecar.core.manifest import DeviceDeclaration, DeviceMatch, Model, PluginDeclaration, Settings, Variant
from sidecar.mechanism import loader, source
from sidecar.mechanism.placeholders import AT_LOAD, AT_START
from sidecar.mechanism.plugins import KINDS
from sidecar.surfaces.cli import main
from tests.support import declare

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MANIFESTS = (ROOT / "manifests" / "README.md").read_text(encoding="utf-8")
SDK = (ROOT / "plugin_sdk" / "README.md").read_text(encoding="utf-8")


TABLES: dict[str, type[msgspec.Struct]] = {
    "[sidecar]": Settings,
    "[plugins.NAME]": PluginDeclaration,
    "[devices.NAME]": DeviceDeclaration,
    "[models.NAME]": Model,
    "[[models.NAME.variants]]": Variant,
}


def section(heading: str) -> str:
    """The part of the manifests' README under a heading."""
    return MANIFESTS.split(f"## `{heading}`\n", 1)[1].split("\n## ", 1)[0]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def load_module(code: str, tmp_path: Path) -> dict[str, Any]:
    """What a snippet defines, run as a file of its own."""
    file = tmp_path / "snippet.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location("snippet", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


@pytest.mark.parametrize("code", [*blocks(README, "python"), *blocks(SDK, "python")])
def test_each_python_snippet_defines_a_plugin_that_loads(code: str, tmp_path: Path) -> None:
    classes = [value for value in load_module(code, tmp_path).values() if isinstance(value, type)]
    plugins = [cls for cls in classes if issubclass(cls, KINDS) and cls not in KINDS]
    assert plugins
    for cls in plugins:
        assert cls.kind in ("device", "auth", "interface", "stats")
        assert issubclass(cls, Plugin)


def test_the_example_manifests_of_the_readme_load(tmp_path: Path) -> None:
    files = {}
    for index, text in enumerate(blocks(README, "toml")):
        files[f"example-{index}.toml"] = text.replace("sha256:8c2f...", "sha256:" + "8c" * 32)
    loaded = declare(tmp_path, files, {})
    assert [str(problem) for problem in loaded.problems] == []
    assert set(loaded.declaration.models) == {"qwen3-8b", "reranker"}


def test_the_mistake_that_the_readme_shows_is_told_so(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^manifests/models/qwen3-8b\.toml:\d+: (.*)$", README, re.MULTILINE)
    text = blocks(README, "toml")[1].replace('mode = "chat"', 'mode = "chta"')
    problems = declare(tmp_path, {"qwen3-8b.toml": text}, {}).problems
    assert [str(problem).partition(": ")[2] for problem in problems] == [shown]


@pytest.mark.parametrize(("heading", "kind"), TABLES.items())
def test_each_key_of_a_table_is_explained_and_no_other(heading: str, kind: type[msgspec.Struct]) -> None:
    explained = re.findall(r"^\| `([a-z_]+)` \|", section(heading), re.MULTILINE)
    assert set(explained) == {field.encode_name for field in msgspec.structs.fields(kind)}


def test_each_way_to_match_a_device_and_each_placeholder_is_named() -> None:
    for field in msgspec.structs.fields(DeviceMatch):
        assert f"`{field.encode_name}`" in MANIFESTS
    for name in (*AT_LOAD, *AT_START, "env.NAME"):
        assert f"`{{{name}}}`" in MANIFESTS


@pytest.mark.parametrize(("heading", "kind"), TABLES.items())
def test_defaults_are_as_the_tables_say(heading: str, kind: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(kind):
        for row in re.findall(rf"^\| `{field.encode_name}` \| `([^`]+)` \|", section(heading), re.MULTILINE):
            default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
            assert convert(tomllib.loads(f"value = {row}")["value"], field.type) == default, field.name


def test_each_command_is_in_the_readme() -> None:
    assert isinstance(main, click.Group)
    for name in main.commands:
        assert f"`sidecar {name}" in README


def test_the_sample_has_no_problems() -> None:
    loaded = loader.load(source.read(ROOT / "manifests"), {})
    assert loaded.problems == ()
    assert set(loaded.declaration.models) == {"parrot", "owl", "compass"}
