"""Prices of other gateways as those of the plugin `usage`: exact decimals for a million tokens, in US dollars."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from sidecar.mechanism.importing.account import At
from sidecar.mechanism.importing.draft import Draft

USAGE = "sidecar.builtin.usage:Usage"
_MILLION = 10**6
_FINEST = Decimal("1E-9")  # of what `usage` takes
_MOST = Decimal(10**7)  # as above


class Rate(msgspec.Struct, frozen=True):
    """A price for a million tokens, and where it stands. exact: it is just what stands there."""

    at: At
    amount: Decimal
    exact: bool


def rate(at: At, tokens: int) -> Rate:
    """What stands there for so many tokens. Raises InputError.

    Read by its shortest decimals, as people write it: a binary 1.5e-07, times a million, would not be 0.15.
    """
    factor = _MILLION // tokens
    try:
        told = Decimal(at.text().strip())
        found = told * factor if told.is_finite() and 0 <= told <= _MOST / factor else None
    except InvalidOperation:
        found = None
    if found is None:
        raise at.wrong(f"a price from 0 to {_MOST / factor:f}")
    amount = found.quantize(_FINEST)
    return Rate(at, Decimal(f"{amount.normalize():f}"), amount == found)


def price(model: str, *servers: Mapping[tuple[int, str], Rate]) -> dict[str, Any]:
    """The price of a model, which is the same for all its servers.

    servers: the rates of each, by (tokens of a prompt above which they hold, what they are for).
    """
    tiers: dict[int, dict[str, Any]] = {}
    for (above, name), one in (item for rates in servers for item in rates.items()):
        tiers.setdefault(above, {"above": above})[name] = one.amount
        rounded = "" if one.exact else ", rounded to a billionth"
        one.at.changed("plugins.usage.config.prices", f"for a million tokens{rounded}")
    base = {name: amount for name, amount in tiers.pop(0, {}).items() if name != "above"}
    dearer = [tiers[above] for above in sorted(tiers)]
    return {"model": model, **base, **({"tiers": dearer} if dearer else {})}


def declare(draft: Draft, prices: list[dict[str, Any]]) -> None:
    """Have `usage` count with these prices. Streams are made to tell their tokens: both of the others count them."""
    for one in prices:
        draft.models[one["model"]]["count_streams"] = True
    if prices:
        draft.chain(draft.plugin("usage", USAGE, {"currency": "USD", "prices": prices}))
