"""Usage as it is told: what can be asked, the table that is answered, and the same as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec

from plugin_sdk import UsageQuery, UsageReport, UsageRow
from sidecar.surfaces.logs_api import moment

DEFAULT_BY = "model"
MOST_BY = 8
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

COUNTS = tuple(name for name in UsageRow.__struct_fields__ if name not in ("group", "cost"))


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands behind the `?`. by: names with commas between; "all" = all in one. since, until: see logs_api.moment.

    model, principal: shell-style patterns. plugin: which one is asked, where there are several. format: csv or json.
    """

    by: str = DEFAULT_BY
    since: str = ""
    until: str = ""
    model: str = ""
    principal: str = ""
    plugin: str = ""
    format: str = ""

    def query(self, now_s: float) -> UsageQuery:
        """As plugins take it. Raises ValueError."""
        by = tuple(name.strip() for name in self.by.split(",") if name.strip() not in ("", "all"))
        if len(by) > MOST_BY:
            raise ValueError(f"by: expected at most {MOST_BY} names, got {len(by)}")
        return UsageQuery(
            by=by,
            since_s=_moment("since", self.since, now_s),
            until_s=_moment("until", self.until, now_s),
            model=self.model,
            principal=self.principal,
        )


class UsageTable(msgspec.Struct, frozen=True, kw_only=True):
    """The answer. plugin: whose. since, until: RFC 3339, what the sums cover; None = no bound.

    rows: a value for each name in `by`, then the counts, seconds, and `cost`: exact decimals by currency. total: the
    same of all together.
    """

    plugin: str
    by: tuple[str, ...]
    since: str | None
    until: str | None
    rows: tuple[dict[str, Any], ...]
    total: dict[str, Any]

    @property
    def currencies(self) -> list[str]:
        """Those in which there is any cost."""
        return list(self.total["cost"])


def table(plugin: str, query: UsageQuery, report: UsageReport) -> UsageTable:
    """What a plugin has reported, and what it adds up to."""
    return UsageTable(
        plugin=plugin,
        by=query.by,
        since=_text(query.since_s if report.since_s is None else report.since_s),
        until=_text(query.until_s if report.until_s is None else report.until_s),
        rows=tuple(dict(zip(query.by, row.group, strict=True)) | _values(row) for row in report.rows),
        total=_values(_total(report.rows)),
    )


def as_csv(found: UsageTable) -> str:
    """RFC 4180, with a line for the names. Each currency has a column.

    Names may come from tokens and clients, and spreadsheets run what looks like a formula: that gets a `'` in front.
    """
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow([*found.by, *COUNTS, *(f"cost_{currency}" for currency in found.currencies)])
    for row in found.rows:
        costs = [row["cost"].get(currency, "") for currency in found.currencies]
        names = [_harmless(row[name]) for name in found.by]
        writer.writerow([*names, *(row[name] for name in COUNTS), *costs])
    return out.getvalue()


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _total(rows: Iterable[UsageRow]) -> UsageRow:
    sums: dict[str, Any] = dict.fromkeys(COUNTS, 0)
    cost: dict[str, Decimal] = {}
    for row in rows:
        for name in COUNTS:
            sums[name] += getattr(row, name)
        for currency, amount in row.cost.items():
            cost[currency] = cost.get(currency, Decimal(0)) + amount
    return UsageRow(**sums, cost=dict(sorted(cost.items())))


def _values(row: UsageRow) -> dict[str, Any]:
    counts = {name: _number(getattr(row, name)) for name in COUNTS}
    return counts | {"cost": _plain(row.cost)}


def _number(value: float) -> float:
    """Seconds to the millisecond: sums of floats have more digits than that, and nothing in them."""
    return round(value, 3) if isinstance(value, float) else value


def _plain(cost: Mapping[str, Decimal]) -> dict[str, str]:
    """Without exponents, which not every reader of decimals takes."""
    return {currency: f"{amount:f}" for currency, amount in cost.items()}


def _moment(name: str, text: str, now_s: float) -> float | None:
    if not text:
        return None
    try:
        return moment(text, now_s)
    except ValueError:
        wanted = 'a time ago such as "7d", a day such as "2026-11-30", or a time such as "2026-11-30T12:00:00Z"'
        raise ValueError(f"{name}: expected {wanted}, got {text[:60]!r}") from None


def _text(at_s: float | None) -> str | None:
    if at_s is None:
        return None
    try:
        return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError):  # before or after all years
        return None
