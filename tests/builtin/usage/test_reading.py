"""Reports: by what, of when, and of whom; from either database alike."""

from __future__ import annotations

import asyncio
import itertools
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from plugin_sdk import PluginError, Reject, UsageQuery
from sidecar.builtin.usage import Settings, Usage, postgres, reading, sqlite
from tests.builtin.usage.conftest import Make, place
from tests.builtin.usage.samples import DAY_S, HOUR_S, MIDNIGHT_S, outcome, price, recorded, rows

OUTCOMES = [
    outcome("qwen", MIDNIGHT_S - 1, (1, 0), principal="anna", mode="chat"),
    outcome("qwen", MIDNIGHT_S, (2, 0), principal="bert", key="laptop", mode="chat"),
    outcome("qwen", MIDNIGHT_S + HOUR_S - 0.001, (4, 0), principal="anna", mode="base"),
    outcome("llama", MIDNIGHT_S + HOUR_S, (8, 0), principal="anna", key="laptop", mode="chat"),
    outcome("llama", MIDNIGHT_S + 6 * DAY_S, (16, 0), principal="team/x", mode="chat"),
]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A database of either kind with all of them, for tests that only read."""
    where = Settings(node="here", **place(request.param, request, tmp_path_factory.mktemp("filled")))
    asyncio.run(recorded(where, OUTCOMES))
    return where


def tokens(found: dict[tuple[str, ...], Any]) -> dict[tuple[str, ...], int]:
    return {group: row.input_tokens for group, row in found.items()}


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ((), {(): 31}),
        (("model",), {("llama",): 24, ("qwen",): 7}),
        (("principal",), {("anna",): 13, ("bert",): 2, ("team/x",): 16}),
        (("mode", "model"), {("base", "qwen"): 4, ("chat", "llama"): 24, ("chat", "qwen"): 3}),
        (("day",), {("2026-11-24",): 1, ("2026-11-25",): 14, ("2026-12-01",): 16}),
        (("key", "principal"), {("", "anna"): 5, ("", "team/x"): 16, ("laptop", "anna"): 8, ("laptop", "bert"): 2}),
        (("month",), {("2026-11",): 15, ("2026-12",): 16}),
        (
            ("hour",),
            {("2026-11-24T23",): 1, ("2026-11-25T00",): 6, ("2026-11-25T01",): 8, ("2026-12-01T00",): 16},
        ),
        (("month", "node"), {("2026-11", "here"): 15, ("2026-12", "here"): 16}),
        (("day", "hour"), None),
    ],
)
async def test_sums_are_told_by_what_is_asked_for(filled: Settings, by: tuple[str, ...], expected: Any) -> None:
    found = tokens(await rows(filled, *by))
    assert found == expected or (expected is None and len(found) == 4)
    assert list(found) == sorted(found)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"since_s": MIDNIGHT_S}, 30),
        ({"until_s": MIDNIGHT_S}, 1),
        ({"since_s": MIDNIGHT_S + 10, "until_s": MIDNIGHT_S + HOUR_S + 10}, 6),
        ({"since_s": MIDNIGHT_S, "until_s": MIDNIGHT_S}, 0),
        ({"model": "q*"}, 7),
        ({"model": "qwen", "principal": "a*"}, 5),
        ({"principal": "team/?"}, 16),
        ({"principal": "TEAM/?"}, 0),
        ({"model": "[ql]*", "since_s": MIDNIGHT_S + DAY_S}, 16),
        ({"since_s": -1e300, "until_s": 1e300}, 31),
    ],
)
async def test_only_what_is_asked_for_counts(filled: Settings, more: dict[str, Any], expected: int) -> None:
    assert sum(tokens(await rows(filled, **more)).values()) == expected


async def test_times_that_follow_on_one_another_do_not_overlap(filled: Settings) -> None:
    cuts = [None, MIDNIGHT_S - 700.0, MIDNIGHT_S + 1000.0, MIDNIGHT_S + 4000.5, None]
    pairs = itertools.pairwise(cuts)
    parts = [await rows(filled, since_s=since_s, until_s=until_s) for since_s, until_s in pairs]
    assert sum(sum(tokens(part).values()) for part in parts) == 31


async def test_the_answer_says_which_hours_it_covers(filled: Settings) -> None:
    query = UsageQuery(since_s=MIDNIGHT_S + 100, until_s=MIDNIGHT_S + 7000)
    found = Usage(filled, name="usage").report(query)
    assert (found.since_s, found.until_s) == (MIDNIGHT_S, MIDNIGHT_S + HOUR_S)
    open_ended = Usage(filled, name="usage").report(UsageQuery())
    assert (open_ended.since_s, open_ended.until_s) == (None, None)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        (
            UsageQuery(by=("colour",)),
            'by "colour"; known: model, principal, key, variant, mode, node, hour, day, month',
        ),
        (UsageQuery(by=("start_s",)), 'by "start_s"'),
        (UsageQuery(by=("day", "day")), "only once"),
        (UsageQuery(since_s=2.0, until_s=1.0), "ends before it begins"),
    ],
)
async def test_a_query_that_makes_no_sense_is_refused(filled: Settings, query: UsageQuery, told: str) -> None:
    with pytest.raises(Reject, match=told) as caught:
        Usage(filled, name="usage").report(query)
    assert caught.value.status == 400


async def test_an_answer_without_end_is_not_begun(filled: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_ROWS", 2)
    assert len(await rows(filled, "model")) == 2
    with pytest.raises(PluginError, match="more than 2 rows: ask for a shorter time"):
        await rows(filled, "principal")


def test_rows_are_read_one_at_a_time(filled: Settings) -> None:
    reader = postgres.Reader(filled.dsn) if filled.dsn is not None else sqlite.Reader(Path(filled.path))
    endless = reader.run("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n")
    assert list(itertools.islice(endless, 3)) == [(1,), (2,), (3,)]
    endless.close()
    reader.close()


async def test_costs_are_exact_and_written_without_an_exponent(settings: Make) -> None:
    await recorded(settings(prices=(price(request="0.000000001", input="0.1"),)), [outcome(tokens=(0, 0))] * 3)
    [row] = (await rows(settings())).values()
    assert row.cost == {"USD": Decimal("0.000000003")}


async def test_an_open_plugin_reports_what_is_written_and_recording_goes_on(settings: Make) -> None:
    plugin = Usage(settings(), name="usage")
    await plugin.open()
    for number in range(5):
        plugin.record(outcome())
        seen = sum(row.requests for row in plugin.report(UsageQuery()).rows)
        assert seen <= number + 1
    await plugin.close()
    assert sum(row.requests for row in plugin.report(UsageQuery()).rows) == 5
