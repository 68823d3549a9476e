"""Whoever may use some models alone is told of no others."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from plugin_sdk import ANONYMOUS, ModelInfo, Principal, Request, Route, Target
from sidecar.control.generations import Generation, Generations
from sidecar.control.visible import Visible
from sidecar.core.manifest import Declaration, Model, PluginDeclaration, Settings
from tests.support import catalog, plugin

QWEN = Model(variants=(), mode="chat", aliases=("gpt",))
LLAMA = Model(variants=(), mode="chat")
MINE, HIDDEN = ModelInfo(name="zeta-1", aliases=("own",)), ModelInfo(name="hidden-1")


class Lists(Route):
    async def models(self) -> list[ModelInfo]:
        return [MINE, HIDDEN]

    async def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target | None:
        return None


@pytest.fixture
async def generation() -> AsyncIterator[Generation]:
    made = Generations()
    declaration = Declaration(
        settings=Settings(chain=("lists",)),
        plugins={"lists": PluginDeclaration(import_path="x:X")},
        models={"qwen": QWEN, "llama": LLAMA},
    )
    generation = await made.adopt(declaration, catalog(plugin(Lists, "lists")))
    await generation.supplied.fresh()
    yield generation
    await made.close()


def allowed(*patterns: str) -> Principal:
    return Principal("anna", {"models": patterns})


@pytest.mark.parametrize(
    "principal", [ANONYMOUS, Principal("anna", {"models": "all of them"}), allowed("*"), Principal("bert", {"tier": 1})]
)
async def test_who_may_use_all_sees_all(generation: Generation, principal: Principal) -> None:
    visible = Visible(generation, principal)
    assert visible.declared() == [("qwen", QWEN), ("llama", LLAMA)]
    assert visible.supplied() == [MINE, HIDDEN]
    assert visible.find("gpt") == ("qwen", QWEN)
    assert visible.find("own") == MINE
    assert visible.near("hiden-1") == ["hidden-1"]


async def test_who_may_use_some_sees_those_by_their_names_and_aliases(generation: Generation) -> None:
    visible = Visible(generation, allowed("gp*", "zeta-*"))
    assert visible.declared() == [("qwen", QWEN)]
    assert visible.supplied() == [MINE]
    assert [visible.find(name) for name in ("qwen", "own")] == [("qwen", QWEN), MINE]
    assert [visible.find(name) for name in ("llama", "hidden-1", "none")] == [None, None, None]
    assert visible.near("lama") == visible.near("hiden-1") == []
    assert visible.near("qwenn") == ["qwen"]


async def test_who_may_use_none_sees_none(generation: Generation) -> None:
    visible = Visible(generation, allowed())
    assert (visible.declared(), visible.supplied(), visible.near("qwen")) == ([], [], [])
