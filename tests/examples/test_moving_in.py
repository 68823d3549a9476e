"""The tables of examples/moving-in/README.md are true and whole: tried on all that the importers' tests import."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sidecar.mechanism.importing.account import Fate, leaves
from sidecar.mechanism.importing.draft import Imported
from sidecar.mechanism.importing.reading import Path as Place
from sidecar.mechanism.importing.reading import Tree
from sidecar.mechanism.places import shown
from tests.mechanism.importing.ollama import TREE
from tests.mechanism.importing.world import FILES, convert, tree

README = (Path(__file__).resolve().parents[2] / "examples" / "moving-in" / "README.md").read_text(encoding="utf-8")
KINDS = {
    "llama-swap": "llama_swap",
    "LiteLLM": "litellm",
    "LLM-Manager": "llm_manager",
    "LLM One API": "llm_one_api",
    "Ollama": "ollama",
}
FATES = {"yes": Fate.CARRIED, "another way": Fate.CHANGED, "no": Fate.LEFT}


class Row(msgspec.Struct, frozen=True):
    """A row: one pattern of its settings, and what is said to become of them."""

    pattern: str
    fates: frozenset[Fate]


def rows(heading: str) -> list[Row]:
    """The rows below a heading."""
    text = README.split(f"### {heading}\n", 1)[1].split("\n### ", 1)[0]
    found = []
    for settings, carried in re.findall(r"^\| (`.*?) \| ([a-z, ]+) \| ", text, re.MULTILINE):
        fates = frozenset(FATES[word] for word in carried.split(", "))
        found += [Row(pattern, fates) for pattern in re.findall(r"`([^`]+)`", settings)]
    return found


def imports(heading: str) -> Iterator[tuple[Tree, Imported]]:
    """All that there is to try of a kind; keys in variables once with and once without them."""
    kind = KINDS[heading]
    for name in [name for name in FILES if name.startswith(f"{kind}/")]:
        found = tree(name)
        yield found, convert(name, found)
        yield found, convert(name, found, {"API_KEY_1": "k", "LITELLM_MASTER_KEY": "k"})
    if kind == "ollama":
        yield TREE, convert("ollama/-", TREE)


def settings(heading: str) -> Iterator[tuple[Place, Fate]]:
    """Each setting, with each thing that becomes of it."""
    for found, imported in imports(heading):
        fates: dict[str, set[Fate]] = {}
        for entry in imported.entries:
            fates.setdefault(entry.path, set()).add(entry.fate)
        for path, value in leaves(found.value):
            if value is not None:
                for fate in fates[shown(path)]:
                    yield normal(heading, path), fate


def normal(heading: str, path: Place) -> Place:
    """LLM-Manager's models stand in two places, which the table calls M."""
    if heading != "LLM-Manager" or path[0] in ("program", "wake_on_lan", "claude_configs"):
        return path
    return ("M", *path[1:]) if path[0] == "Local-Models" else ("M", *path)


def matches(pattern: str, path: Place) -> bool:
    """Whether the pattern is about the setting."""
    parts = pattern.split(".")
    if parts[-1] == "**":
        return len(path) >= len(parts) and matches(".".join(parts[:-1]), path[: len(parts) - 1])
    return len(parts) == len(path) and all(part in ("*", there) for part, there in zip(parts, path, strict=True))


@pytest.mark.parametrize("heading", KINDS)
def test_each_row_is_about_a_setting_and_says_what_becomes_of_it(heading: str) -> None:
    said = rows(heading)
    became: dict[str, set[Fate]] = {row.pattern: set() for row in said}
    missing = set()
    for path, fate in settings(heading):
        row = next((row for row in said if matches(row.pattern, path)), None)
        if row is None:
            missing.add(".".join(map(str, path)))
        else:
            became[row.pattern].add(fate)
    assert sorted(missing) == []
    wrong = {row.pattern: became[row.pattern] for row in said if not became[row.pattern] <= row.fates}
    assert wrong == {}
    assert [pattern for pattern, fates in became.items() if not fates] == []


@pytest.mark.parametrize("heading", KINDS)
def test_each_word_of_a_row_is_so_for_one_of_its_settings(heading: str) -> None:
    text = README.split(f"### {heading}\n", 1)[1].split("\n### ", 1)[0]
    seen = list(settings(heading))
    for patterns, carried in re.findall(r"^\| (`.*?) \| ([a-z, ]+) \| ", text, re.MULTILINE):
        row = re.findall(r"`([^`]+)`", patterns)
        became = {fate for path, fate in seen if any(matches(pattern, path) for pattern in row)}
        assert became == {FATES[word] for word in carried.split(", ")}, patterns
