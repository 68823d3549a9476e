"""Who has which name, if manifests and several plugins claim it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import pytest

from plugin_sdk import Config, ModelInfo, Request, Route, Target
from sidecar.control.generations import Generation, Generations
from sidecar.core.manifest import Declaration, Model, PluginDeclaration, Settings
from sidecar.mechanism.plugins import Loaded
from tests.support import catalog, plugin


class Row(Config):
    """`name` or `name alias alias ...` of each model."""

    rows: tuple[str, ...] = ()


class Rows(Route[Row]):
    """Lists what its settings say."""

    async def models(self) -> list[ModelInfo]:
        rows = [row.split() for row in self.config.rows]
        return [ModelInfo(name=name, aliases=tuple(aliases)) for name, *aliases in rows]

    async def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target | None:
        return None


@pytest.fixture
async def generations() -> AsyncIterator[Generations]:
    made = Generations()
    yield made
    await made.close()


def rows(name: str, *found: str) -> Loaded:
    return plugin(Rows, name, rows=list(found))


async def adopted(generations: Generations, *plugins: Loaded, chain: tuple[str, ...] | None = None) -> Generation:
    """A generation with these in the default chain, and one declared model."""
    names = tuple(one.name for one in plugins)
    declaration = Declaration(
        settings=Settings(chain=names if chain is None else chain),
        plugins={name: PluginDeclaration(import_path="x:X") for name in names},
        models={"qwen": Model(variants=(), mode="chat", aliases=("gpt",), chain=names)},
    )
    generation = await generations.adopt(declaration, catalog(*plugins))
    await generation.supplied.fresh()
    return generation


async def test_each_is_found_by_its_names(generations: Generations) -> None:
    supplied = (await adopted(generations, rows("a", "one uno", "two"))).supplied
    assert supplied.names() == ["one", "uno", "two"]
    found = supplied.find("uno")
    assert found == supplied.find("one") == ModelInfo(name="one", aliases=("uno",))
    assert supplied.find("three") is None


async def test_a_declared_name_is_the_manifests_and_the_rest_the_first_plugins(
    generations: Generations, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "sidecar.control.supplied")
    listing = (rows("a", "qwen", "one gpt uno"), rows("b", "uno", "one", "two"))
    supplied = (await adopted(generations, *listing)).supplied
    assert supplied.models() == [ModelInfo(name="one", aliases=("uno",)), ModelInfo(name="two")]
    assert supplied.hidden("a") == ("qwen", "gpt")
    assert supplied.hidden("b") == ("uno", "one")
    supplied.names()
    assert [record.getMessage() for record in caplog.records] == [
        "the route plugin a lists gpt, qwen, which others have: they stay theirs",
        "the route plugin b lists one, uno, which others have: they stay theirs",
    ]


async def test_a_model_whose_manifest_is_faulty_keeps_its_name(generations: Generations) -> None:
    declaration = Declaration(
        settings=Settings(chain=("a",)), files={"models.one": "one.toml", "plugins.two": "x.toml"}
    )
    supplied = (await generations.adopt(declaration, catalog(rows("a", "one", "two")))).supplied
    await supplied.fresh()
    assert supplied.names() == ["two"]
    assert [supplied.may_have(name) for name in ("one", "two", "three")] == [False, True, True]


async def test_only_the_default_chain_counts(generations: Generations) -> None:
    generation = await adopted(generations, rows("a", "one"), chain=())
    assert generation.supplied.models() == []
    assert not generation.default_chain.supplies
    assert generation.chain("qwen").supplies


async def test_a_plugin_that_stays_keeps_its_list_and_one_that_changes_hands_it_on(generations: Generations) -> None:
    first = await adopted(generations, rows("a", "one"))
    second = await adopted(generations, rows("a", "one"))
    assert second.supplied.listings["a"] is first.supplied.listings["a"]
    changed = rows("a", "two")
    declaration = Declaration(settings=Settings(chain=("a",)), plugins={"a": PluginDeclaration(import_path="x:X")})
    third = await generations.adopt(declaration, catalog(changed))
    assert third.supplied.names() == ["one"]
    await third.supplied.fresh()
    assert third.supplied.names() == ["two"]
