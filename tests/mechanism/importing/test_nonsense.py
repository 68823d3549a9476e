"""Configurations with anything anywhere: each is refused with its place, or carried into manifests that are valid."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.mechanism.importing.account import leaves
from sidecar.mechanism.importing.reading import InputError, Tree
from sidecar.mechanism.importing.reading import Path as Place
from sidecar.mechanism.places import shown
from tests.mechanism.importing.ollama import TREE
from tests.mechanism.importing.world import FILES, convert, tree, validated, with_value

ANYTHING: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1.5,
        10**30,
        "",
        "x",
        "${x}",
        "${PORT}",
        "{port}",
        "{name}",
        "os.environ/",
        "os.environ/A",
    ),
    *("http://[::1", "http://h:99999", "/v1", "a'b", "\0", "é\n", "sk-zzz", "..", "-", "a" * 300),
    *([], {}, ["a"], {"a": 1}, [None], [[]], {"members": 3}),
)
KEYS = ("", "a b", "é", "x" * 200, "\0", "..", "/", "my_gpu", "nvidia", "true")


def places(value: Any, path: Place = ()) -> Iterator[Place]:
    """Every place of a document but the whole."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


def spoilt(found: Tree, chance: random.Random) -> Tree:
    """With one to three things that do not belong there."""
    for _ in range(chance.randint(1, 3)):
        all_places = list(places(found.value))
        if not all_places:
            break
        path = chance.choice(all_places)
        if isinstance(path[-1], str) and chance.random() < 0.15:
            path = (*path[:-1], chance.choice(KEYS))
        found = with_value(found, path, chance.choice(ANYTHING))
    return found


def attempt(seed: int, folder: Path, *, check: bool) -> None:
    """Spoil one, and see."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets: so that a failure can be had again
    name, whole = chance.choice([*((name, tree(name)) for name in FILES), ("ollama/-", TREE)])
    found = spoilt(whole, chance)
    try:
        imported = convert(name, found)
    except InputError as error:
        assert found.file in str(error)
        return
    assert {entry.path for entry in imported.entries} == {shown(path) for path, _ in leaves(found.value)}
    for file, text in imported.files.items():
        if file.endswith(".py"):
            compile(text, file, "exec")
    if check:
        _, problems = validated(imported, folder)
        assert [str(problem) for problem in problems] == [], seed


def test_anything_anywhere_is_refused_with_its_place_or_is_valid(tmp_path: Path) -> None:
    for seed in range(300):
        attempt(seed, tmp_path / str(seed), check=seed % 10 == 0)


@pytest.mark.soak
def test_the_same_for_minutes(tmp_path: Path) -> None:
    for seed in range(1000, 8000):
        attempt(seed, tmp_path / str(seed), check=True)
