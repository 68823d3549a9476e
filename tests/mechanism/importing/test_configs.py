"""What every import holds, on configurations that people have published: nothing is lost, and all of it loads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sidecar.mechanism.importing.account import UNKNOWN, Fate, leaves
from sidecar.mechanism.importing.draft import Imported
from sidecar.mechanism.importing.reading import InputError, Tree
from sidecar.mechanism.places import shown
from tests.mechanism.importing.world import CONFIGS, FILES, changed, convert, tree, validated, with_value

SECRET = re.compile(r"\b(hf_\w+|sk-[\w+/-]{4,}|73g|9kj|eYVX71|fake-key|my-fake-key|your-\w+-api-key|your-api-key-here)")


def published(kind: str) -> list[str]:
    """Those that others wrote."""
    return [name for name in FILES if name.startswith(f"{kind}/") and "Written for these tests" not in head(name)]


def head(name: str) -> str:
    return (CONFIGS / name).read_text(encoding="utf-8")[:200]


@pytest.mark.parametrize("name", FILES)
def test_what_is_written_is_valid(name: str, tmp_path: Path) -> None:
    _, problems = validated(convert(name, tree(name)), tmp_path)
    assert [str(problem) for problem in problems] == []


@pytest.mark.parametrize("name", FILES)
def test_every_setting_is_in_the_report_and_none_is_unknown(name: str) -> None:
    found = tree(name)
    entries = convert(name, found).entries
    assert {entry.path for entry in entries} == {shown(path) for path, _ in leaves(found.value)}
    assert [entry.path for entry in entries if entry.why == UNKNOWN] == []
    assert [entry.path for entry in entries if entry.fate is Fate.LEFT and not entry.why] == []


@pytest.mark.parametrize("name", FILES)
def test_what_is_said_to_be_carried_is_in_what_is_written(name: str) -> None:
    """Another value must come out as another manifest, or the report must say another thing."""
    found = tree(name)
    before = convert(name, found)
    for path, value in leaves(found.value):
        said = [entry for entry in before.entries if entry.path == shown(path) and entry.fate is not Fate.LEFT]
        if not said or changed(value) is None or any(entry.to.startswith("the variable") for entry in said):
            continue
        other = with_value(found, path, changed(value))
        assert makes_a_difference(name, before, other), f"{shown(path)} makes no difference: {said}"


def makes_a_difference(name: str, before: Imported, found: Tree) -> bool:
    """Whether another document comes out as something else, or is refused, which shows that it is looked at."""
    try:
        after = convert(name, found)
    except InputError:
        return True
    return (after.files, after.entries, after.variables) != (before.files, before.entries, before.variables)


@pytest.mark.parametrize("name", FILES)
def test_no_secret_is_written_or_told(name: str) -> None:
    secrets = set(SECRET.findall((CONFIGS / name).read_text(encoding="utf-8")))
    imported = convert(name, tree(name), {"API_KEY_1": "sk-from-the-environment"})
    told = repr(imported)
    assert [secret for secret in {*secrets, "sk-from-the-environment"} if secret in told] == []


@pytest.mark.parametrize("name", FILES)
def test_the_same_configuration_gives_the_same_manifests(name: str) -> None:
    assert convert(name, tree(name)) == convert(name, tree(name))


def test_there_are_five_published_ones_of_each_that_publishes_under_a_licence() -> None:
    assert len(published("llama_swap")) >= 5
    assert len(published("litellm")) >= 5
    assert len(published("llm_one_api")) >= 5
    assert len([name for name in FILES if name.startswith("llm_manager/")]) >= 5
    assert len([name for name in FILES if name.startswith("ollama/")]) >= 5
    licences = (CONFIGS / "LICENSES.md").read_text(encoding="utf-8")
    for name in published("llama_swap"):
        assert f"`{name}`" in licences


@pytest.mark.parametrize("name", FILES)
def test_a_setting_that_nobody_knows_is_told_wherever_it_stands(name: str) -> None:
    found = tree(name)
    tables = {path[:size] for path, _ in leaves(found.value) for size in range(len(path))}
    for path in tables:
        here = found.value
        for part in path:
            here = here[part]
        if not isinstance(here, dict):
            continue
        place = (*path, "zzz_unheard_of")
        try:
            after = convert(name, with_value(found, place, 7))
        except InputError as error:
            assert shown(place) in str(error)  # where there can only be tables
            continue
        said = [entry for entry in after.entries if entry.path == shown(place)]
        assert said
        if any(entry.fate is not Fate.LEFT for entry in said):
            assert after.files != convert(name, with_value(found, place, 8)).files, f"{place} is not carried: {said}"
