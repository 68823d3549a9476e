"""What is kept beside the rows, in either database: sums, prices, loaded hours, and for how long."""

from __future__ import annotations

import datetime
import logging
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from plugin_sdk import Duration, End, Outcome, UsageRow
from plugin_sdk.testing import samples
from sidecar.builtin.usage import Settings, Usage, postgres, sqlite
from sidecar.builtin.usage.books import FILL_ROWS, Books
from sidecar.builtin.usage.rows import Row
from tests.builtin.usage.conftest import Make
from tests.builtin.usage.samples import DAY_S, HOUR_S, MIDNIGHT_S, loaded, outcome, price, recorded, rows, total
from tests.support import until

NOW_S = time.time()


def ask(settings: Settings, sql: str) -> list[Row]:
    """What is in the database."""
    reader = postgres.Reader(settings.dsn) if settings.dsn is not None else sqlite.Reader(Path(settings.path))
    try:
        return list(reader.run(sql, ()))
    finally:
        reader.close()


def table(settings: Settings) -> str:
    """What the rows of requests are in."""
    return "usage_requests" if settings.dsn else "requests"


def eur(text: str) -> dict[str, Decimal]:
    return {"EUR": Decimal(text)}


async def test_requests_are_added_up_by_how_they_ended(settings: Make) -> None:
    ends: list[dict[str, Any]] = [
        {},
        {"cold": True, "bytes_in": 7, "bytes_out": 9, "duration_s": 1.5},
        {"status": 404},
        {"end": End.UPSTREAM_FAILED, "status": 502},
        {"end": End.REFUSED, "status": 429},
        {"end": End.CLIENT_GONE},
    ]
    await recorded(settings(), [outcome(tokens=(10, 3), **more) for more in ends])
    assert await total(settings()) == UsageRow(
        requests=6,
        failed=2,
        refused=1,
        cancelled=1,
        cold=1,
        unpriced=2,
        input_tokens=60,
        output_tokens=18,
        bytes_in=7,
        bytes_out=9,
        busy_s=1.5,
    )


async def test_lives_add_up(settings: Make) -> None:
    for _ in range(3):
        await recorded(settings(), [outcome(tokens=(1, 2))] * 40)
    found = await total(settings())
    assert (found.requests, found.input_tokens, found.output_tokens) == (120, 120, 240)


async def test_whatever_outcomes_say_sums_stay_sane(settings: Make) -> None:
    plugin = await recorded(settings(prices=(price(input="1"),)), [*samples.OUTCOMES, outcome(tokens=(5, 0))])
    assert plugin.dropped == 0
    found = await total(settings())
    assert (found.requests, found.input_tokens) == (len(samples.OUTCOMES) + 1, 10)


async def test_the_dearest_requests_add_up(settings: Make) -> None:
    dearest = settings(prices=(price(input="10000000"),))
    await recorded(dearest, [outcome(tokens=(10**9, 0))] * 500)
    assert (await total(dearest)).cost == {"USD": Decimal(500 * 10**6)}


async def test_rows_have_what_they_cost(settings: Make) -> None:
    made = settings(currency="EUR", prices=(price("qwen", input="0.5"),))
    await recorded(made, [outcome(tokens=(3, 0)), outcome("llama", tokens=(3, 0))])
    assert ask(made, f"SELECT model, node, cost, currency FROM {table(made)} ORDER BY model") == [  # noqa: S608 - a constant
        ("llama", "here", None, ""),
        ("qwen", "here", 1500, "EUR"),
    ]
    found = await rows(made, "model")
    assert (found["qwen",].cost, found["qwen",].unpriced) == (eur("0.000001500"), 0)
    assert (found["llama",].cost, found["llama",].unpriced) == ({}, 1)


async def test_a_new_price_does_not_change_what_was(settings: Make) -> None:
    for dollars in ("1", "2", "2", "1"):
        await recorded(settings(currency="EUR", prices=(price(input=dollars),)), [outcome(tokens=(1_000_000, 0))])
    assert (await total(settings())).cost == eur("6.000000000")
    told = [text for [text] in ask(settings(), "SELECT prices FROM usage_prices ORDER BY since_s")]
    assert ['"input":"1"' in text for text in told] == [True, False, True]  # each list once, until it changes
    await recorded(settings(), [outcome(tokens=(1_000_000, 0))])  # and now there are none
    found = await total(settings())
    assert (found.cost, found.unpriced, found.requests) == (eur("6.000000000"), 1, 5)


async def test_another_currency_is_added_up_apart(settings: Make) -> None:
    for currency in ("EUR", "USD", "EUR"):
        await recorded(settings(currency=currency, prices=(price(request="0.1"),)), [outcome()])
    assert (await total(settings())).cost == {"EUR": Decimal("0.2"), "USD": Decimal("0.1")}


# --- a price told later ---------------------------------------------------------------------------------------------


def dated(days: float, **more: Any) -> Any:
    """A price that holds since so many days."""
    day = datetime.datetime.fromtimestamp(time.time() - days * DAY_S, datetime.UTC).date()
    return price(since=day, **more)


async def filled(settings: Settings) -> None:
    """A life in which all that is to be done about the past is done."""
    plugin = Usage(settings, name="usage")
    await plugin.open()
    latest = "SELECT filled FROM usage_prices ORDER BY since_s DESC LIMIT 1"
    await until(lambda: ask(settings, latest) == [(-1,)], "the past is looked through")
    await plugin.close()


async def test_a_price_of_a_past_day_is_for_what_had_none_since_that_day(settings: Make) -> None:
    week = [outcome(tokens=(1_000_000, 0), at_s=time.time() - day * DAY_S) for day in range(7)]
    await recorded(settings(), week)
    assert (await total(settings())).unpriced == 7
    await filled(settings(currency="EUR", prices=(dated(3, input="1"),)))
    found = await total(settings())
    assert (found.requests, found.unpriced, found.cost) == (7, 3, eur("4.000000000"))
    assert found.input_tokens == 7_000_000
    assert ask(settings(), "SELECT COUNT(*), MIN(requests) FROM usage_totals") == [(7, 1)]  # and no empty ones


async def test_what_has_a_cost_keeps_it_whatever_is_told_later(settings: Make) -> None:
    await recorded(settings(currency="EUR", prices=(price(input="1"),)), [outcome(tokens=(1_000_000, 0), at_s=NOW_S)])
    await filled(settings(currency="EUR", prices=(dated(3, input="5"),)))
    assert (await total(settings())).cost == eur("1.000000000")


async def test_many_are_looked_through_a_part_at_a_time(settings: Make) -> None:
    count = 2 * FILL_ROWS + 3
    await recorded(settings(), [outcome(tokens=(1, 0) if n % 2 else None, at_s=NOW_S) for n in range(count)])
    await filled(settings(currency="EUR", prices=(dated(1, input="1"),)))
    found = await total(settings())
    assert (found.requests, found.unpriced) == (count, FILL_ROWS + 2)
    assert found.cost == {"EUR": Decimal(FILL_ROWS + 1).scaleb(-6)}


# --- loaded hours ---------------------------------------------------------------------------------------------------


async def test_a_server_is_counted_once_however_often_it_is_seen(settings: Make) -> None:
    made = settings(currency="EUR", prices=(price(hour="3.6"),))
    plugin = Usage(made, name="usage")
    await plugin.open()
    for seconds in (10, 20, 20, 35):
        plugin.loaded([loaded("a", MIDNIGHT_S, MIDNIGHT_S + seconds), loaded("b", MIDNIGHT_S, MIDNIGHT_S + 5)])
        await until(lambda: not plugin._writer._servers, "it is written")
    await plugin.close()
    found = await total(made)
    assert (found.loaded_s, found.cost, found.requests) == (40.0, eur("0.040000000"), 0)


async def test_one_that_another_sidecar_takes_over_goes_on_where_it_was_seen_last(settings: Make) -> None:
    made = settings(currency="EUR", prices=(price(hour="3.6"),))
    await recorded(made, servers=[loaded("a", MIDNIGHT_S, MIDNIGHT_S + 100)])  # and is killed
    await recorded(made, servers=[loaded("a", MIDNIGHT_S, MIDNIGHT_S + 5000)])
    await recorded(made, servers=[loaded("a", MIDNIGHT_S, MIDNIGHT_S + 5001, ended=True)])
    await recorded(made, servers=[loaded("a", MIDNIGHT_S, MIDNIGHT_S + 5001, ended=True)])
    found = await rows(made, "hour")
    assert {group: row.loaded_s for group, row in found.items()} == {
        ("2026-11-25T00",): 3600.0,
        ("2026-11-25T01",): 1401.0,
    }
    assert (await total(made)).cost == eur("5.001000000")
    assert ask(made, "SELECT id, until_ms - since_ms, ended FROM usage_servers") == [("a", 5_001_000, True)]


async def test_loaded_hours_cost_what_was_in_force_then(settings: Make) -> None:
    begin_s = time.time() - 7200
    await recorded(settings(currency="EUR", prices=(price(hour="1"),)), servers=[loaded("a", begin_s, begin_s + 1)])
    # The price changes while no sidecar runs: until it is seen, the old one holds.
    await recorded(
        settings(currency="EUR", prices=(price(hour="100"),)), servers=[loaded("a", begin_s, begin_s + 7200)]
    )
    cost = (await total(settings())).cost["EUR"]
    assert abs(cost - 2) < Decimal("0.2")


async def test_a_clock_that_goes_back_takes_nothing_away(settings: Make) -> None:
    await recorded(settings(), servers=[loaded("a", MIDNIGHT_S, MIDNIGHT_S + 100)])
    await recorded(settings(), servers=[loaded("a", MIDNIGHT_S, MIDNIGHT_S + 50, ended=True)])
    await recorded(settings(), servers=[loaded("a", MIDNIGHT_S + 500, MIDNIGHT_S + 40)])
    assert (await total(settings())).loaded_s == 100.0


# --- retention ------------------------------------------------------------------------------------------------------


async def test_rows_go_and_their_hours_become_days(settings: Make) -> None:
    old_s = NOW_S // DAY_S * DAY_S - 10 * DAY_S
    old = [outcome(at_s=old_s + hour * HOUR_S, tokens=(5, 1)) for hour in (0, 1, 1, 23)]
    await recorded(settings(), [*old, outcome(at_s=NOW_S, tokens=(5, 1))], [loaded("a", old_s, old_s + 7200)])
    before = await rows(settings(), "day")
    assert len(await rows(settings(), "hour")) == 4
    kept = settings(retention=Duration(2 * DAY_S))
    plugin = Usage(kept, name="usage")
    await plugin.open()
    hours = "SELECT COUNT(DISTINCT start_s) FROM usage_totals"
    await until(lambda: ask(kept, hours)[0][0] == 2, "hours are folded")
    await plugin.close()
    assert ask(kept, f"SELECT COUNT(*) FROM {table(kept)}") == [(1,)]  # noqa: S608 - a constant
    assert await rows(kept, "day") == before
    await recorded(kept, [outcome(at_s=old_s + HOUR_S, tokens=(5, 1))])  # one that comes late
    await recorded(kept)
    assert (await total(kept)).requests == 6


async def test_servers_that_ended_are_forgotten_with_the_rows_of_their_time(settings: Make) -> None:
    gone, lost = loaded("gone", 1000.0, 2000.0, ended=True), loaded("lost", 1000.0, 2000.0)  # which may be taken over
    await recorded(settings(), servers=[gone, lost, loaded("new", NOW_S - 100, NOW_S, ended=True)])
    plugin = Usage(settings(retention=Duration(DAY_S)), name="usage")
    await plugin.open()
    await until(lambda: len(ask(settings(), "SELECT id FROM usage_servers")) == 2, "it is forgotten")
    await plugin.close()
    assert ask(settings(), "SELECT id FROM usage_servers ORDER BY id") == [("lost",), ("new",)]
    assert (await total(settings())).loaded_s == 2100.0


async def test_a_long_past_is_folded_a_day_at_a_time(settings: Make) -> None:
    first_s = NOW_S // DAY_S * DAY_S - 9 * DAY_S + HOUR_S
    begun = {f"s{day}": first_s + day * DAY_S for day in range(5)}
    await recorded(settings(), servers=[loaded(name, since_s, since_s + 9) for name, since_s in begun.items()])
    config = settings(retention=Duration(DAY_S))
    log = logging.getLogger()
    database = postgres.Postgres(config.dsn, "") if config.dsn else sqlite.SQLite(Path(config.path), log)
    database.connect()
    books = Books(database, config)
    parts = 1
    while not books.tidy():
        parts += 1
    database.disconnect()
    assert parts == 6
    assert {start_s % DAY_S for [start_s] in ask(config, "SELECT start_s FROM usage_totals")} == {0}


async def test_sums_go_when_their_time_has_come(settings: Make) -> None:
    await recorded(settings(), [outcome(at_s=NOW_S - 30 * DAY_S), outcome(at_s=NOW_S)], [loaded("a", 1000.0, 2000.0)])
    plugin = Usage(settings(retention=Duration(DAY_S), history=Duration(20 * DAY_S)), name="usage")
    await plugin.open()
    await until(lambda: ask(settings(), "SELECT COUNT(*) FROM usage_totals") == [(1,)], "the old ones are gone")
    await plugin.close()
    assert (await total(settings())).requests == 1
    assert ask(settings(), "SELECT COUNT(*) FROM usage_servers") == [(0,)]


@pytest.mark.parametrize("more", [{"retention": Duration(-1)}, {"retention": Duration(9), "history": Duration(3)}])
def test_sums_that_would_go_before_their_rows_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="history"):
        Settings(**more)


# --- several sidecars -----------------------------------------------------------------------------------------------


async def test_several_nodes_are_told_apart_and_have_prices_of_their_own(settings: Make) -> None:
    for node, dollars in (("one", "1"), ("two", "2"), ("one", "1")):
        await recorded(settings(node=node, prices=(price(request=dollars),)), [outcome()], [loaded("a", 0.0, 10.0)])
    found = await rows(settings(), "node")
    assert {group[0]: (row.requests, row.cost["USD"], row.loaded_s) for group, row in found.items()} == {
        "one": (2, Decimal(2), 10.0),
        "two": (1, Decimal(2), 10.0),
    }


async def test_the_shortest_retention_counts_for_all_that_share_a_database(settings: Make) -> None:
    await recorded(settings(node="long"), [outcome(at_s=NOW_S - 9 * DAY_S)])
    plugin = Usage(settings(node="short", retention=Duration(DAY_S)), name="usage")
    await plugin.open()
    await until(lambda: ask(settings(), f"SELECT id FROM {table(settings())}") == [], "it is gone")  # noqa: S608 - a constant
    await plugin.close()
    assert (await total(settings())).requests == 1


def _many(count: int) -> list[Outcome]:
    return [outcome(f"m{number % 7}", tokens=(1, 0), at_s=NOW_S) for number in range(count)]


async def test_plugins_that_write_at_once_lose_and_double_nothing(settings: Make) -> None:
    plugins = [Usage(settings(prices=(price(input="1"),)), name="usage") for _ in range(4)]
    for plugin in plugins:
        await plugin.open()
    for _ in range(20):
        for plugin in plugins:
            plugin.record_many(_many(50))
            plugin.loaded([loaded("a", MIDNIGHT_S, MIDNIGHT_S + 10)])
        await until(lambda: not plugins[0]._writer._waiting, "some are written")
    for plugin in plugins:
        await plugin.close()
    assert [plugin.dropped for plugin in plugins] == [0] * 4
    found = await total(settings())
    assert (found.requests, found.input_tokens, found.loaded_s) == (4000, 4000, 10.0)
