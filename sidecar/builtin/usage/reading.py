"""Sums for a report, from those that are kept for each hour."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any

from plugin_sdk import PluginError, Reject, UsageQuery, UsageReport, UsageRow
from sidecar.builtin.usage import tables
from sidecar.builtin.usage.rows import Row

MOST_ROWS = 50_000
HOUR_S = 3600

_NANO_DIGITS = 9
_TIMES = {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}
_COLUMNS = ("model", "principal", "key", "variant", "mode", "node")
_SUMS = tuple(tables.SUMS)
_COST = _SUMS.index("cost")
_SAME = [name for name in _SUMS if name not in ("busy_ms", "loaded_ms", "cost")]

Run = Callable[[str, Sequence[Any]], Iterable[Row]]


def report(run: Run, query: UsageQuery) -> UsageReport:
    """What was used. Raises Reject for a query that makes no sense, PluginError for one with too long an answer."""
    _check(query)
    bounds = [_hour(query.since_s), _hour(query.until_s)]
    columns = [
        name for name in _COLUMNS if name in query.by or (name in ("model", "principal") and getattr(query, name))
    ]
    groups: dict[tuple[str, ...], _Sums] = {}
    for start_s, currency, *rest in run(*_statement(query, columns, bounds)):
        names, sums = dict(zip(columns, rest, strict=False)), rest[len(columns) :]
        if not _wanted(query, names):
            continue
        key = tuple(_value(name, names, start_s) for name in query.by)
        if key not in groups:
            if len(groups) == MOST_ROWS:
                raise PluginError(f"that would be more than {MOST_ROWS} rows: ask for a shorter time, or for less by")
            groups[key] = _Sums()
        groups[key].add(currency, [int(value) for value in sums])
    rows = tuple(groups[key].row(key) for key in sorted(groups))
    return UsageReport(rows=rows, since_s=bounds[0], until_s=bounds[1])


class _Sums:
    def __init__(self) -> None:
        self.values = [0] * len(_SUMS)
        self.cost: dict[str, int] = {}

    def add(self, currency: str, values: Sequence[int]) -> None:
        self.values = [mine + more for mine, more in zip(self.values, values, strict=True)]
        if currency:
            self.cost[currency] = self.cost.get(currency, 0) + values[_COST]

    def row(self, group: tuple[str, ...]) -> UsageRow:
        named = dict(zip(_SUMS, self.values, strict=True))
        return UsageRow(
            group=group,
            busy_s=named["busy_ms"] / 1000,
            loaded_s=named["loaded_ms"] / 1000,
            cost={currency: Decimal(nanos).scaleb(-_NANO_DIGITS) for currency, nanos in sorted(self.cost.items())},
            **{name: named[name] for name in _SAME},
        )


def _check(query: UsageQuery) -> None:
    known = (*_COLUMNS, *_TIMES)
    for name in query.by:
        if name not in known:
            raise Reject(400, f'usage cannot be told by "{name[:40]}"; known: {", ".join(known)}')
    if len(set(query.by)) < len(query.by):
        raise Reject(400, "usage can be told by each thing only once")
    if query.since_s is not None and query.until_s is not None and query.until_s < query.since_s:
        raise Reject(400, "the time asked for ends before it begins")


def _statement(query: UsageQuery, columns: list[str], bounds: list[float | None]) -> tuple[str, list[float]]:
    start = "start_s" if "hour" in query.by else f"start_s / {tables.DAY_S} * {tables.DAY_S}"
    if not set(_TIMES) & set(query.by):
        start = "0"
    since_s, until_s = bounds
    conditions = [
        "1 = 1",
        *(["start_s >= ?"] if since_s is not None else []),
        *(["start_s < ?"] if until_s is not None else []),
    ]
    names = [start, "currency", *(f'"{name}"' for name in columns)]
    sums = [f"SUM({name})" for name in _SUMS]
    grouped = ", ".join(str(number + 1) for number in range(len(names)))
    sql = (
        f"SELECT {', '.join(names + sums)} FROM usage_totals "  # noqa: S608 - names that were checked, and constants
        f"WHERE {' AND '.join(conditions)} GROUP BY {grouped}"
    )
    return sql, [bound for bound in bounds if bound is not None]


def _wanted(query: UsageQuery, names: dict[str, str]) -> bool:
    asked = (("model", query.model), ("principal", query.principal))
    return all(not pattern or fnmatchcase(names[name], pattern) for name, pattern in asked)


def _value(name: str, names: dict[str, str], start_s: int) -> str:
    if name not in _TIMES:
        return names[name]
    return datetime.datetime.fromtimestamp(start_s, datetime.UTC).strftime(_TIMES[name])


def _hour(at_s: float | None) -> float | None:
    """The hour in which it is: sums are of whole ones, and times that follow on one another must not overlap."""
    return None if at_s is None else at_s // HOUR_S * HOUR_S
