"""Who is asked for the usage, and what becomes of answers that are none."""

from __future__ import annotations

import asyncio
import csv
import io
import threading
from collections.abc import AsyncIterator
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from plugin_sdk import Outcome, PluginError, Reject, Stats, UsageQuery, UsageReport, UsageRow
from sidecar.control.clock import Clock
from sidecar.control.controller import Controller
from sidecar.control.generations import Generations
from sidecar.core.manifest import Declaration, Settings
from sidecar.mechanism import reports
from sidecar.surfaces import usage_api
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.usage import Question, UsageTable, as_csv, table
from sidecar.surfaces.usage_api import answer, ask, question
from tests.support import catalog, plugin


class Books(Stats):
    """Tells one row for all."""

    def record(self, outcome: Outcome) -> None:
        """Nothing of interest."""

    def report(self, query: UsageQuery) -> UsageReport:
        row = UsageRow(group=tuple(f"a {name}" for name in query.by), requests=2, cost={"EUR": Decimal("1E-9")})
        return UsageReport(rows=(row, row))


class Later(Books):
    async def report(self, query: UsageQuery) -> UsageReport:  # type: ignore[override] # as an author may write it
        await asyncio.sleep(0)
        return UsageReport(since_s=3600.0)


class Silent(Stats):
    def record(self, outcome: Outcome) -> None:
        """It cannot report."""


class Closed(Books):
    async def open(self) -> None:
        raise RuntimeError("no database")


class Refuses(Books):
    def report(self, query: UsageQuery) -> UsageReport:
        raise Reject(400, "not by that")


class Away(Books):
    def report(self, query: UsageQuery) -> UsageReport:
        raise PluginError("the database is away")


class Breaks(Books):
    def report(self, query: UsageQuery) -> UsageReport:
        raise KeyError("oh")


class Hangs(Books):
    async def report(self, query: UsageQuery) -> UsageReport:  # type: ignore[override] # as above
        return await asyncio.Event().wait()  # type: ignore[return-value] # it never does


class Nonsense(Books):
    """What it gives stands in what is asked for: the name of an attribute."""

    WRONG: dict[str, Any] = {  # noqa: RUF012 - nobody changes it
        "dict": {"rows": []},
        "row": UsageReport(rows=cast(Any, ({"requests": 1},))),
        "group": UsageReport(rows=(UsageRow(group=("a", "b")),)),
        "count": UsageReport(rows=(UsageRow(group=("a",), requests=cast(Any, "7")),)),
        "cost": UsageReport(rows=(UsageRow(group=("a",), cost=cast(Any, {"EUR": 0.1})),)),
        "nan": UsageReport(rows=(UsageRow(group=("a",), cost={"EUR": Decimal("NaN")}),)),
        "many": UsageReport(rows=(UsageRow(group=("a",)),) * 100_001),
    }

    def report(self, query: UsageQuery) -> UsageReport:
        return cast(UsageReport, self.WRONG[query.model])


ALL = (Books, Later, Silent, Closed, Refuses, Away, Breaks, Hangs, Nonsense)


@pytest.fixture
async def generations() -> AsyncIterator[Generations]:
    made = Generations()
    yield made
    await made.close()


async def controller(generations: Generations, *chain: str) -> Controller:
    """As far as the API asks for it: plugins in a chain, by the names of their classes."""
    loaded = [plugin(cls, cls.__name__.lower()) for cls in ALL if cls.__name__.lower() in chain]
    await generations.adopt(Declaration(settings=Settings(chain=chain)), catalog(*loaded))
    return cast(Controller, SimpleNamespace(generation=generations.current, clock=Clock()))


async def refused(generations: Generations, name: str, **asked: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await ask(await controller(generations, name), Question(**asked))
    return caught.value


async def test_the_first_of_the_chain_that_can_tells_it(generations: Generations) -> None:
    found = await ask(await controller(generations, "silent", "later", "books"), Question())
    assert (found.plugin, found.rows, found.since) == ("later", (), "1970-01-01T01:00:00Z")


async def test_another_can_be_asked_for_by_name(generations: Generations) -> None:
    found = await ask(await controller(generations, "later", "books"), Question(plugin="books", by="model, day"))
    row = {"model": "a model", "day": "a day", "requests": 2, "cost": {"EUR": "0.000000001"}}
    assert [row.items() <= one.items() for one in found.rows] == [True, True]
    assert (found.total["requests"], found.total["cost"]) == (4, {"EUR": "0.000000002"})


async def test_where_none_can_it_says_what_to_do(generations: Generations) -> None:
    error = await refused(generations, "silent")
    assert (error.status, error.code) == (404, "no_usage")
    assert 'chain = ["keys", "usage"]' in error.message
    named = await refused(generations, "books", plugin="silent")
    assert "these can: books" in named.message


@pytest.mark.parametrize(
    ("name", "status", "told"),
    [
        ("closed", 503, 'the plugin "closed" cannot be used: open failed: RuntimeError: no database'),
        ("refuses", 400, "not by that"),
        ("away", 503, "the database is away"),
        ("breaks", 503, "the plugin \"breaks\" failed: KeyError: 'oh'"),
        ("hangs", 503, 'the plugin "hangs" did not answer within 0.05 s: ask for a shorter time'),
    ],
)
async def test_what_goes_wrong_is_told(
    generations: Generations, name: str, status: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "DEADLINE_S", 0.05)
    error = await refused(generations, name)
    assert (error.status, error.message) == (status, told)
    current = generations.current
    assert current is not None
    assert current.instances[name].failed == (name in ("breaks", "hangs"))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("dict", "expected a UsageReport, got dict"),
        ("row", "expected rows that are UsageRow, got dict"),
        ("group", "expected a text for each of ('model',), got ('a', 'b')"),
        ("count", "expected requests as a number, got str"),
        ("cost", "expected cost by currency as Decimal, got {'EUR': 0.1}"),
        ("nan", "expected cost by currency as Decimal, got {'EUR': Decimal('NaN')}"),
        ("many", "expected at most 100000 rows"),
    ],
)
async def test_an_answer_that_is_none_does_not_travel_on(generations: Generations, wrong: str, told: str) -> None:
    error = await refused(generations, "nonsense", model=wrong)
    assert (error.status, told in error.message) == (503, True), error.message


async def test_it_is_json_unless_csv_is_asked_for(generations: Generations) -> None:
    made = await controller(generations, "books")
    for parameters, accept in (({}, "*/*"), ({"format": "json"}, "text/csv")):
        found = await answer(made, parameters.items(), accept)
        assert found.media_type == "application/json"
        assert msgspec.json.decode(found.content, type=UsageTable).plugin == "books"
    for parameters, accept in (({"format": "csv"}, "*/*"), ({}, "text/csv, */*;q=0.1")):
        text = (await answer(made, {**parameters, "by": "principal"}.items(), accept)).content.decode()
        assert text.splitlines()[0].startswith("principal,requests,failed")
        assert text.splitlines()[1].startswith("a principal,2,0")
        assert text.splitlines()[1].endswith(",0.000000001")


async def test_csv_holds_nothing_that_a_spreadsheet_would_run() -> None:
    names = ("=1+1", "@sum", "-x", "+x", "\tx", "a=b", "", 'a,"b\n')
    rows = tuple(UsageRow(group=(name,)) for name in names)
    text = as_csv(table("books", UsageQuery(by=("principal",)), UsageReport(rows=rows)))
    read = [line["principal"] for line in csv.DictReader(io.StringIO(text, newline=""))]
    assert read == ["'=1+1", "'@sum", "'-x", "'+x", "'\tx", "a=b", "", 'a,"b\n']


@pytest.mark.parametrize("form", ["csv", "json"])
async def test_what_takes_its_time_with_many_rows_is_done_beside_the_loop(
    generations: Generations, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    on_loop: list[bool] = []

    def watched(work: Any) -> Any:
        def run(*arguments: Any) -> Any:
            on_loop.append(threading.current_thread() is threading.main_thread())
            return work(*arguments)

        return run

    for name in ("table", "as_csv"):
        monkeypatch.setattr(usage_api, name, watched(getattr(usage_api, name)))
    monkeypatch.setattr(reports, "report", watched(reports.report))
    monkeypatch.setattr(msgspec.json, "encode", watched(msgspec.json.encode))
    await answer(await controller(generations, "books"), [("format", form)], "")
    assert on_loop == [False] * 3


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"bye": "model"}, "unknown field `bye`"),
        ({"format": "tsv"}, 'format: expected "csv" or "json", got \'tsv\''),
        ({"since": "yesterday"}, 'since: expected a time ago such as "7d"'),
        ({"until": "1e999"}, 'until: expected a time ago such as "7d"'),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(
    generations: Generations, parameters: dict[str, str], told: str
) -> None:
    made = await controller(generations, "books")
    with pytest.raises(ApiError, match=r"expected|unknown") as caught:
        await ask(made, question(parameters.items()))
    assert (caught.value.status, told in caught.value.message) == (400, True), caught.value.message


def test_what_is_told_apart_may_be_repeated_and_nothing_else() -> None:
    assert question([("by", "day"), ("model", "m"), ("by", "model,key")]) == Question(by="day,model,key", model="m")
    with pytest.raises(ApiError, match="model: stands twice") as caught:
        question([("model", "a"), ("model", "b")])
    assert caught.value.status == 400


async def test_times_are_ago_or_of_utc() -> None:
    now = 1_795_565_000.0
    assert Question(since="1h").query(now).since_s == now - 3600
    assert Question(since="2026-11-25").query(now).since_s == 1_795_564_800.0
    assert Question(until="2026-11-25T01:00:00+01:00").query(now).until_s == 1_795_564_800.0
    assert Question(by="all").query(now) == UsageQuery()
    assert Question(by="day, model").query(now).by == ("day", "model")
