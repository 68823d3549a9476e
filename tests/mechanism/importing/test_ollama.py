"""Ollama, asked over HTTP, and what becomes of its models."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.mechanism.importing import ollama
from sidecar.mechanism.importing.account import UNKNOWN, Fate
from sidecar.mechanism.importing.draft import Options
from sidecar.mechanism.importing.reading import InputError, Tree
from tests.mechanism.importing.ollama import TREE, serving
from tests.mechanism.importing.world import models


def test_its_models_are_variants_at_its_address(tmp_path: Path) -> None:
    with serving() as url:
        found = models(ollama.convert(ollama.fetch(url), Options()), tmp_path)
    assert {name: (model.modes, model.aliases) for name, model in found.items()} == {
        "llama3.2:latest": (("chat", "base", "responses"), ("llama3.2",)),
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
