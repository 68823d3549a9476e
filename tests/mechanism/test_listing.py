"""What route plugins list: asked for in the background, kept while it is fresh, and longer if it cannot be had anew."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from plugin_sdk import ModelInfo, Outcome, Reject, Request, Route, Target
from sidecar.mechanism import listing as module
from sidecar.mechanism import results
from sidecar.mechanism.chain import Chain, Instance
from sidecar.mechanism.listing import Listing, lists_models
from tests.mechanism.conftest import Opened
from tests.support import plugin, until

REQUEST = Request(method="POST", path="/v1/chat/completions", model="qwen")
HERE = Target(name="here", base_url="http://127.0.0.1:1")

Make = Callable[..., Awaitable[Instance]]


class Table(Route):
    """Lists what its class has, and knows where the first of them is. gate: closed, models() does not answer."""

    found: Any = [ModelInfo(name="qwen")]  # noqa: RUF012 - set for each test
    gate: asyncio.Event
    asked = 0

    async def open(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()

    async def models(self) -> list[ModelInfo]:
        self.asked += 1
        await self.gate.wait()
        if isinstance(self.found, Exception):
            raise self.found
        return cast(list[ModelInfo], self.found)

    def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target | None:
        assert targets == ()
        return HERE if request.model == "qwen" else None

    def finished(self, target: Target, outcome: Outcome) -> None:
        self.ended = (target.name, outcome.model)


class Plain(Route):
    """Has no models of its own, and sends everything somewhere."""

    def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target | None:
        return HERE


class Broken(Table):
    """Cannot say where anything is."""

    def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target | None:
        raise OSError("no database")


class Strict(Table):
    """Has rules of its own."""

    def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target | None:
        raise Reject(402, "no credit")


class Closed(Table):
    """Does not open."""

    async def open(self) -> None:
        raise OSError("no database")


@pytest.fixture
def made(opened: Opened) -> Make:
    """`await made(cls)` makes and opens an instance."""

    async def make(cls: type[Route[Any]], name: str = "table", **more: Any) -> Instance:
        return await opened(plugin(cls, name, **more))

    return make


def table_of(instance: Instance) -> Table:
    assert isinstance(instance.plugin, Table)
    return instance.plugin


def names(listing: Listing) -> list[str]:
    return [one.name for one in listing.models]


# --- the list -----------------------------------------------------------------------------------------------------


async def test_only_routes_that_have_models_are_asked_for_them(made: Make) -> None:
    assert [lists_models(await made(cls)) for cls in (Table, Closed, Plain)] == [True, True, False]
    assert not lists_models(Instance("gone", None, "it is not declared"))


async def test_many_who_want_it_ask_once_while_it_is_fresh(made: Make) -> None:
    instance = await made(Table)
    listing = Listing(instance)
    await asyncio.gather(*(listing.fresh() for _ in range(20)))
    await listing.first()
    assert (names(listing), table_of(instance).asked) == (["qwen"], 1)


async def test_a_failure_leaves_the_list_before_and_is_counted(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    instance = await made(Table)
    listing = Listing(instance)
    await listing.fresh()
    table = table_of(instance)
    for wrong in (OSError("no database"), None, ["qwen"], [ModelInfo(name="a"), ModelInfo(name="a")]):
        table.found = wrong
        failed = instance.failed
        await listing.fresh()
        assert names(listing) == ["qwen"]
        assert instance.failed == failed + 1
        assert listing.problem
    table.found = [ModelInfo(name="llama")]
    await listing.fresh()
    assert (names(listing), listing.problem) == (["llama"], "")


async def test_nobody_waits_long_for_one_that_hangs(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    instance = await made(Table, deadline_s=0.2)
    table, listing = table_of(instance), Listing(instance)
    await listing.fresh()
    monkeypatch.setattr(module, "PATIENCE_S", 0.02)
    table.gate.clear()
    await listing.fresh()
    assert names(listing) == ["qwen"]
    await until(lambda: listing.problem.startswith("TimeoutError"), "the deadline is over")
    async with asyncio.timeout(0.02):
        await listing.first()  # it is known, so a request does not wait
    await listing.close()


async def test_a_successor_goes_on_with_the_list_before(made: Make) -> None:
    first = Listing(await made(Table))
    await first.fresh()
    successor = Listing(await made(Table), first)
    table_of(successor.instance).gate.clear()
    await successor.first()
    assert names(successor) == ["qwen"]
    await successor.close()


async def test_one_that_is_left_out_has_no_models(made: Make) -> None:
    listing = Listing(await made(Table))
    await listing.fresh()
    listing.instance.out = True
    assert names(listing) == []


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (None, "expected a list of ModelInfo, got NoneType"),
        ("qwen", "expected a list of ModelInfo, got str"),
        ([1], "expected a list of ModelInfo, got int"),
        ([ModelInfo(name="")], "expected a name of 1 to 200 characters"),
        ([ModelInfo(name="x" * 201)], "expected a name of 1 to 200 characters"),
        ([ModelInfo(name="a\nb")], "that can be seen"),
        ([ModelInfo(name=cast(str, 7))], "expected a name"),
        ([ModelInfo(name="a"), ModelInfo(name="b", aliases=("a",))], "expected each name once, got 'a' more often"),
        ([ModelInfo(name="a", aliases=cast(Any, "bc"))], "expected aliases as a tuple of texts"),
        ([ModelInfo(name="a", modes=cast(Any, ["chat"]))], "expected modes as a tuple of texts"),
        ([ModelInfo(name="a", created=cast(int, "now"))], "expected owned_by as text and created as a whole number"),
        ([ModelInfo(name="a")] * 10_001, "expected at most 10000 models"),
    ],
)
def test_a_list_that_is_none_is_told(result: Any, told: str) -> None:
    with pytest.raises((TypeError, ValueError), match=told):
        results.models(result)


# --- where they are -----------------------------------------------------------------------------------------------


async def test_only_those_with_models_say_where_an_undeclared_one_is(made: Make) -> None:
    plain, table = await made(Plain, "plain"), await made(Table)
    assert not Chain([plain]).supplies
    chain = Chain([plain, table])
    assert chain.supplies
    found = await chain.supply(REQUEST)
    assert found is not None
    assert found.target == HERE
    found.finished(Outcome(model="qwen"))
    assert table_of(table).ended == ("here", "qwen")
    assert await chain.supply(Request(method="POST", path="/", model="none")) is None


@pytest.mark.parametrize("cls", [Broken, Closed])
async def test_one_that_fails_is_no_reason_to_say_that_there_is_no_such_model(made: Make, cls: type[Table]) -> None:
    broken, table = await made(cls, "broken"), await made(Table)
    assert broken.on_error == "skip"
    with pytest.raises(Reject, match='the route plugin "broken"') as refused:
        await Chain([broken]).supply(REQUEST)
    assert (refused.value.status, refused.value.code) == (503, "route_unavailable")
    found = await Chain([broken, table]).supply(REQUEST)
    assert found is not None
    assert found.target == HERE


async def test_a_refusal_is_final(made: Make) -> None:
    with pytest.raises(Reject, match="no credit"):
        await Chain([await made(Strict, "strict"), await made(Table)]).supply(REQUEST)
