"""What a manifest may say of the usage plugin."""

from __future__ import annotations

import datetime
from collections import Counter
from decimal import Decimal

from plugin_sdk import Config, Duration, Secret

DECIMALS = 9  # of money: what is below a billionth of the currency cannot be kept
MOST = Decimal(10**7)  # of a price: more is a mistake
NOTHING = Decimal(0)


class Tier(Config):
    """Other prices of requests whose prompt has more than `above` tokens; what is left out is as without the tier."""

    above: int
    input: Decimal | None = None
    output: Decimal | None = None
    cached: Decimal | None = None
    reasoning: Decimal | None = None

    def __post_init__(self) -> None:
        if self.above < 1:
            raise ValueError("above must be 1 token or more: what holds from the first one on stands beside the tiers")
        _check(input=self.input, output=self.output, cached=self.cached, reasoning=self.reasoning)


class Price(Config):
    """What models cost, by a shell-style pattern of their names.

    input, output, cached, reasoning: for a million tokens; cached ones cost as input and reasoning as output unless
    told. request: for each that was served. hour: for each hour in which a server of the model is loaded, from its
    start until it is gone. tiers: for long prompts. since: the day, in UTC, from which on the price holds; without it,
    it holds from when it is first seen.
    """

    model: str
    since: datetime.date | None = None
    input: Decimal = NOTHING
    output: Decimal = NOTHING
    cached: Decimal | None = None
    reasoning: Decimal | None = None
    request: Decimal = NOTHING
    hour: Decimal = NOTHING
    tiers: tuple[Tier, ...] = ()

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError('model must be a name or a pattern, such as "qwen3-*"')
        _check(
            input=self.input,
            output=self.output,
            cached=self.cached,
            reasoning=self.reasoning,
            request=self.request,
            hour=self.hour,
        )
        bounds = [tier.above for tier in self.tiers]
        if len(set(bounds)) < len(bounds):
            raise ValueError("two tiers begin above the same number of tokens")


class Settings(Config):
    """Where rows go, how long they stay, and what requests cost.

    path: of an SQLite database; "" = `NAME.db` in the state directory. dsn: of a PostgreSQL database instead, such as
    postgresql://USER:PASSWORD@HOST/DATABASE. node: this machine's name among those that write to one database; "" = its
    host name. retention: how long a row is kept, 0 = for ever. history: how long sums are kept, 0 = for ever; beyond
    `retention` they are of whole days. queue: how many outcomes may wait to be written, as for a database that is
    locked; more are dropped and counted. currency: of the prices. prices: the first pattern that fits a model counts.
    """

    path: str = ""
    dsn: Secret | None = None
    node: str = ""
    retention: Duration = Duration(90 * 86_400)
    history: Duration = Duration(0)
    queue: int = 10_000
    currency: str = "USD"
    prices: tuple[Price, ...] = ()

    def __post_init__(self) -> None:
        if self.queue < 1:
            raise ValueError("queue must be 1 or more")
        if self.path and self.dsn is not None:
            raise ValueError("expected either path, of an SQLite database, or dsn, of a PostgreSQL database")
        if self.retention < 0 or self.history < 0:
            raise ValueError("retention and history must not be negative")
        if self.history and not 0 < self.retention <= self.history:
            raise ValueError("history must be as long as retention, or longer: sums outlive the rows")
        if not (self.currency.isascii() and self.currency.isalpha() and self.currency.isupper()):
            raise ValueError(f'expected currency in capitals, such as "EUR" (ISO 4217), got {self.currency!r:.40}')
        told = Counter((price.model, price.since) for price in self.prices)
        for (model, since), count in told.items():
            if count > 1:
                raise ValueError(f'"{model}" has two prices since {since or "the same time"}: which one holds?')


def _check(**prices: Decimal | None) -> None:
    """Raises ValueError for what is no price."""
    for name, price in prices.items():
        if price is None:
            continue
        if not price.is_finite() or not 0 <= price <= MOST:
            raise ValueError(f"{name} must be a price from 0 to {MOST}, got {price}")
        if price != round(price, DECIMALS):
            raise ValueError(f"{name} may have {DECIMALS} decimals, got {price}")
