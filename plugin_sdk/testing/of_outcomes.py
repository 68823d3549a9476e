"""Checks of stats plugins. Each raises Fault with what is wrong and the remedy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from plugin_sdk.errors import PluginError, Reject
from plugin_sdk.messages import Outcome
from plugin_sdk.reports import UsageReport
from plugin_sdk.testing import samples
from plugin_sdk.testing.subject import Fault, Live, Subject, raised, shown

Check = Callable[[Subject], Awaitable[None]]


async def any_outcome_can_be_recorded(subject: Subject) -> None:
    """Empty, huge and ugly ones, fifty at once, and while what it writes to cannot be reached."""
    async with subject.alive() as live:
        for outcome in samples.OUTCOMES:
            await _record(live, outcome)
        await asyncio.gather(*(_record(live, samples.OUTCOMES[0]) for _ in range(samples.CALLERS)))


async def several_outcomes_can_be_recorded_at_once(subject: Subject) -> None:
    """The same ones, by what is called in place of `record`."""
    async with subject.alive() as live:
        outcomes = list(samples.OUTCOMES)
        await _recorded(live.call("record_many", outcomes), f"record_many of {len(outcomes)} outcomes")


async def servers_can_be_told_of_again_and_again(subject: Subject) -> None:
    """None at all, the same ones once more, and such as have ended."""
    async with subject.alive() as live:
        for servers in ((), samples.SERVERS[:1], samples.SERVERS, samples.SERVERS):
            try:
                await live.call("loaded", list(servers))
            except Exception as error:
                remedy = "expect that there may be none, and that the same ones come again"
                raise raised(f"loaded of {len(servers)} servers", error, remedy) from error


async def reports_have_what_was_asked_for(subject: Subject) -> None:
    """A UsageReport whose rows have a value for each name in `by`; or Reject, or PluginError."""
    async with subject.alive() as live:
        for query in samples.QUERIES:
            try:
                found = await live.call("report", query)
            except (Reject, PluginError):
                continue
            except Exception as error:
                remedy = 'raise Reject(400, "...") for what it cannot tell, and PluginError if there is nothing to read'
                raise raised(f"report({ascii(query)[:160]})", error, remedy) from error
            if not isinstance(found, UsageReport):
                raise Fault(f"report gave a {type(found).__name__}: return a UsageReport")
            for row in found.rows:
                if len(row.group) != len(query.by):
                    raise Fault(f"report by {query.by} gave a row of {row.group}: give a value for each name in `by`")


async def _record(live: Live, outcome: Outcome) -> None:
    await _recorded(live.call("record", outcome), f"record({shown(outcome)})")


async def _recorded(call: Awaitable[Any], what: str) -> None:
    try:
        await call
    except Exception as error:
        remedy = "count what cannot be written (self.metrics.count), and expect fields that are empty or out of range"
        raise raised(what, error, remedy) from error


OF_HOOKS: dict[str, Check] = {
    "record_many": several_outcomes_can_be_recorded_at_once,
    "loaded": servers_can_be_told_of_again_and_again,
    "report": reports_have_what_was_asked_for,
}
