"""Ollama, asked over HTTP, and what becomes of its models."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.mechanism.importing import ollama
from sidecar.mechanism.importing.account import UNKNOWN, Fate
from sidecar.mechanism.importing.draft import Options
from sidecar.mechanism.importing.reading import InputError, Tree
from tests.mechanism.importing.ollama import TREE, serving
from tests.mechanism.importing.world import convert, models, tree


def test_its_models_are_variants_at_its_address(tmp_path: Path) -> None:
    with serving() as url:
        found = models(ollama.convert(ollama.fetch(url), Options()), tmp_path)
    assert {name: (model.modes, model.aliases) for name, model in found.items()} == {
        "llama3.2:latest": (("chat", "base", "responses", "messages"), ("llama3.2",)),
        "nomic-embed-text:v1.5": (("embedding",), ()),
    }
    assert {variant.url for model in found.values() for variant in model.variants} == {url}


def test_what_is_asked_is_what_is_imported() -> None:
    with serving() as url:
        assert ollama.fetch(url).value == TREE.value


def test_everything_that_it_tells_is_in_the_report() -> None:
    entries = ollama.convert(TREE, Options()).entries
    assert [entry for entry in entries if entry.why == UNKNOWN] == []
    assert [entry.path for entry in entries if entry.fate is Fate.CARRIED] == ["models[0].name", "models[1].name"]


def test_no_models_are_no_error(tmp_path: Path) -> None:
    with serving(b'{"models": []}') as url:
        assert models(ollama.convert(ollama.fetch(url), Options()), tmp_path) == {}


TEXT = ("chat", "base")
ALL_TEXT = (*TEXT, "responses", "messages")
EMBEDS = ("embedding",)


@pytest.mark.parametrize(
    ("recorded", "modes"),
    [
        ("docs_2024", {"codellama:13b": TEXT, "llama3:latest": TEXT}),
        ("docs_2026", {"gemma4": TEXT}),
        (
            "before_capabilities",
            {
                "all-minilm:latest": EMBEDS,
                "mxbai-embed-large:latest": EMBEDS,
                "paraphrase-multilingual:latest": EMBEDS,
                "nomic-embed-text:latest": EMBEDS,
                "bge-reranker-v2-m3:latest": EMBEDS,  # Ollama has no path to rerank by
                "llava:13b": TEXT,
                "llama3.2-vision:latest": TEXT,
                "qwen2.5:0.5b": TEXT,
            },
        ),
        (
            "capabilities",
            {
                "qwen2.5-coder-32k:latest": ALL_TEXT,
                "qwen3.5:4b": ALL_TEXT,
                "granite-embedding:latest": EMBEDS,
                "deepseek-r1:8b": ALL_TEXT,
            },
        ),
        (
            "hub",
            {
                "hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M": ALL_TEXT,
                "registry.example.org:5000/team/Mistral_Tuned:v2": ALL_TEXT,
                "incept5/llama3.1-claude:latest": ALL_TEXT,
                "from-gguf:latest": ALL_TEXT,
                "x/z-image-turbo:latest": ("image",),
            },
        ),
    ],
)
def test_modes_are_those_that_its_version_has_paths_for(
    recorded: str, modes: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    name = f"ollama/{recorded}.json"
    found = models(convert(name, tree(name)), tmp_path)
    assert {model: declared.modes for model, declared in found.items()} == modes


def test_what_leaves_the_machine_is_told_in_the_models_file() -> None:
    imported = convert("ollama/cloud.json", tree("ollama/cloud.json"))
    told = {name for name, text in imported.files.items() if "CHECK: Ollama passes its requests on to" in text}
    assert told == {
        f"models/{name}.toml" for name in ("assistant-latest", "deepseek-v3.1-671b-cloud", "gpt-oss-120b-cloud")
    }
    assert all(entry.do for entry in imported.entries if entry.path.endswith("remote_host"))


@pytest.mark.parametrize(
    ("recorded", "model", "told"),
    [
        ("capabilities", "deepseek-r1:8b", "does not show it.\n"),  # the list tells what it can do
        ("docs_2024", "codellama:13b", "does not show it, so that mode is a guess.\n"),
    ],
)
def test_a_model_that_cannot_be_shown_is_imported_and_told(recorded: str, model: str, told: str) -> None:
    name = f"ollama/{recorded}.json"
    imported = convert(name, tree(name))
    assert f"CHECK: Ollama lists this model, but {told}" in imported.files[f"models/{model.replace(':', '-')}.toml"]
    (error,) = [entry for entry in imported.entries if entry.path.endswith("show.error")]
    assert f"`ollama show {model}`" in error.do


@pytest.mark.parametrize(
    ("version", "newer"),
    [
        ("0.13.2", ()),
        ("0.13.3", ("responses",)),
        ("0.14.0-rc1", ("responses", "messages")),
        ("1.0.0", ("responses", "messages")),
        ("0.0.0", ("responses", "messages")),
        ("unknown", ()),
    ],
)
def test_paths_that_came_with_a_version_are_left_to_it(version: str, newer: tuple[str, ...], tmp_path: Path) -> None:
    tree = Tree("http://h:1", {"models": [{"name": "a"}], "version": version})
    assert models(ollama.convert(tree, Options()), tmp_path)["a"].modes == (*TEXT, *newer)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"<html>", "something else than JSON"),
        (b"[1]", "expected an object"),
        (b'{"data": []}', "expected a list of models"),
        (b'{"models": [{"size": 1}]}', "expected a list of models"),
        (b'{"models": [' + b" " * (ollama.MOST_BYTES + 1), "more than 16 MiB"),
    ],
)
def test_what_is_no_ollama_is_told_with_its_address(answer: bytes, told: str) -> None:
    with serving(answer) as url, pytest.raises(InputError) as error:
        ollama.fetch(url)
    assert told in str(error.value)
    assert str(error.value).startswith(f"{url}/api/tags: ")


def test_nobody_there_is_told_apart_from_somebody_else_there() -> None:
    with serving() as url:
        pass
    with pytest.raises(ollama.UnreachableError, match="no Ollama answers at http://127"):
        ollama.fetch(url)
    with serving() as url, pytest.raises(InputError, match="answers 404"):
        ollama.fetch(f"{url}/elsewhere")
    with pytest.raises(InputError, match="expected"):
        ollama.fetch("localhost")


def test_names_that_only_differ_by_latest_stay_apart(tmp_path: Path) -> None:
    tree = Tree("http://h:1", {"models": [{"name": "a:latest"}, {"name": "a"}]})
    found = models(ollama.convert(tree, Options()), tmp_path)
    assert found.keys() == {"a:latest", "a"}
    assert found["a:latest"].aliases == ()
