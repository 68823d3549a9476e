"""Asks stats plugins what the usage was, with a deadline of its own: adding up takes longer than taking note."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from plugin_sdk import Stats, UsageQuery, UsageReport, UsageRow
from sidecar.mechanism import results
from sidecar.mechanism.calls import bind
from sidecar.mechanism.hooks import overrides
from sidecar.mechanism.instance import Instance

DEADLINE_S = 25.0
MOST_ROWS = 100_000


def can_report(instance: Instance) -> bool:
    """Whether it is a stats plugin that can be asked; also one that cannot be used just now."""
    cls = instance.loaded.cls if instance.loaded is not None else None
    return cls is not None and issubclass(cls, Stats) and cls.report is not Stats.report


def in_order(names: Iterable[str], chain: Sequence[str]) -> list[str]:
    """First those of the chain, as they stand there, then the others by name."""
    known = sorted(names)
    return [*(name for name in dict.fromkeys(chain) if name in known), *(name for name in known if name not in chain)]


async def ask(instance: Instance, query: UsageQuery) -> Any:
    """What the plugin gives, whatever it is: see `report`. Raises what it raises, and TimeoutError."""
    plugin = instance.plugin
    if not isinstance(plugin, Stats) or not overrides(plugin, Stats, "report"):
        raise TypeError(f"{instance.name} cannot report")
    return await bind(plugin.report, DEADLINE_S, instance.threads, instance.marker)(query)


def report(result: Any, query: UsageQuery) -> UsageReport:
    """A good result. Takes its time if there are many rows. Raises TypeError and ValueError."""
    if not isinstance(result, UsageReport):
        raise results.expected("a UsageReport", result)
    if not isinstance(result.rows, tuple | list) or len(result.rows) > MOST_ROWS:
        raise ValueError(f"expected at most {MOST_ROWS} rows in a tuple")
    for row in result.rows:
        _check(row, query)
    return result


def _check(row: Any, query: UsageQuery) -> None:
    if not isinstance(row, UsageRow):
        raise results.expected("rows that are UsageRow", row)
    if len(row.group) != len(query.by) or not all(isinstance(value, str) for value in row.group):
        raise ValueError(f"expected a text for each of {query.by}, got {row.group!r:.200}")
    for name in UsageRow.__struct_fields__:
        value = getattr(row, name)
        if name not in ("group", "cost") and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise results.expected(f"{name} as a number", value)
    for currency, amount in row.cost.items():
        if not isinstance(currency, str) or not isinstance(amount, Decimal) or not amount.is_finite():
            raise ValueError(f"expected cost by currency as Decimal, got {row.cost!r:.200}")
