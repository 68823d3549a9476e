"""Outcomes, prices, and what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from plugin_sdk import LoadedServer, Outcome, UsageQuery, UsageRow
from plugin_sdk import Usage as Tokens
from sidecar.builtin.usage import Price, Settings, Tier, Usage

HOUR_S = 3600
DAY_S = 86_400
MIDNIGHT_S = 1_795_564_800.0  # 2026-11-25, UTC


def outcome(
    model: str = "qwen", at_s: float = MIDNIGHT_S, tokens: tuple[int, int] | None = (0, 0), **more: Any
) -> Outcome:
    """A request that was served. tokens: of input and output."""
    used = None if tokens is None else Tokens(input_tokens=tokens[0], output_tokens=tokens[1])
    values: dict[str, Any] = {"principal": "anna", "status": 200, "started_s": at_s, "usage": used}
    return Outcome(model=model, **values | more)


def price(model: str = "*", **more: Any) -> Price:
    """A price, of text or numbers as in a manifest."""
    told: dict[str, Any] = {
        name: value if name in ("since", "tiers") else Decimal(value) for name, value in more.items()
    }
    return Price(model=model, **told)


def tier(above: int, **more: Any) -> Tier:
    return Tier(above=above, **{name: Decimal(value) for name, value in more.items()})


def loaded(name: str, since_s: float, until_s: float, **more: Any) -> LoadedServer:
    values: dict[str, Any] = {"model": "qwen", "variant": "gpu", "since_s": since_s, "until_s": until_s}
    return LoadedServer(id=name, **values | more)


async def recorded(settings: Settings, outcomes: Sequence[Outcome] = (), servers: Sequence[LoadedServer] = ()) -> Usage:
    """A life of the plugin, in which these were recorded; it is closed."""
    plugin = Usage(settings, name="usage")
    await plugin.open()
    if outcomes:
        plugin.record_many(outcomes)
    if servers:
        plugin.loaded(servers)
    await plugin.close()
    return plugin


async def rows(settings: Settings, *by: str, **more: Any) -> dict[tuple[str, ...], UsageRow]:
    """What the plugin reports, without being open."""
    query = UsageQuery(by=by, **more)
    found = await asyncio.to_thread(Usage(settings, name="usage").report, query)
    return {row.group: row for row in found.rows}


async def total(settings: Settings, **more: Any) -> UsageRow:
    """All in one."""
    return (await rows(settings, **more)).get((), UsageRow())
