"""What requests and loaded servers cost. All in whole numbers: a nano is a billionth of the currency.

Laws: the first pattern of a list that fits a model counts, and of its prices the latest that is in force. A request's
cost is rounded once, to the nearest nano, half to even, and is never worked out again once it is known.
"""

from __future__ import annotations

import datetime
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fnmatch import fnmatchcase
from math import inf

import msgspec

from plugin_sdk import End, Outcome
from sidecar.builtin.usage.settings import Price, Tier

NANO = 10**9
MILLION = 10**6
HOUR_S = 3600
HOUR_MS = 3_600_000
MOST_TOKENS = 10**9  # of a request: servers may say anything, and one that says more is not believed
MOST_NANOS = 10**15  # for a request: a million of the currency, so that sums of many still fit into 64 bits
MOST_MODELS = 1000  # whose prices are held ready


class Rates(msgspec.Struct, frozen=True):
    """Nanos for a million tokens. Of the input, what is not cached; of the output, what is no reasoning."""

    input: int
    output: int
    cached: int
    reasoning: int


class Tariff(msgspec.Struct, frozen=True):
    """A price, ready for use. tiers: (above, rates), the highest first. request, hour: nanos."""

    since_s: float
    rates: Rates
    tiers: tuple[tuple[int, Rates], ...]
    request: int
    hour: int

    @property
    def by_tokens(self) -> bool:
        """Whether the cost of a request depends on its tokens."""
        return any(any(msgspec.structs.astuple(rates)) for rates in (self.rates, *(rates for _, rates in self.tiers)))


class PriceList:
    """The prices of one manifest. To be used by one thread."""

    def __init__(self, prices: Sequence[Price]) -> None:
        self.prices = tuple(prices)
        self._patterns: dict[str, list[Tariff]] = {}
        for price in prices:
            self._patterns.setdefault(price.model, []).append(_tariff(price))
        for tariffs in self._patterns.values():
            tariffs.sort(key=lambda tariff: tariff.since_s)
        self._of: dict[str, tuple[list[Tariff], ...]] = {}
        self._always: dict[str, Tariff] = {}  # of models whose price depends on no date, as is the rule

    def find(self, model: str, at_s: float) -> Tariff | None:
        """The price that is in force at a time."""
        fitting = self._of.get(model)
        for tariffs in self._fitting(model) if fitting is None else fitting:
            found = bisect_right(tariffs, at_s, key=lambda tariff: tariff.since_s)
            if found:
                return tariffs[found - 1]
        return None

    def cost(self, outcome: Outcome) -> int | None:
        """The nanos of a request; None if nobody knows: there is no price, or it was served and no tokens were told."""
        if not self.prices:
            return None
        tariff = self._always.get(outcome.model) or self.find(outcome.model, outcome.started_s)
        return None if tariff is None else cost(tariff, outcome)

    def first_dated_s(self, before_s: float) -> float:
        """Since when, at the earliest, a price holds that was told only later; inf if there is none."""
        dated = (tariff.since_s for tariffs in self._patterns.values() for tariff in tariffs)
        return min((since_s for since_s in dated if -inf < since_s < before_s), default=inf)

    def _fitting(self, model: str) -> tuple[list[Tariff], ...]:
        if len(self._of) >= MOST_MODELS:
            self._of.clear()
            self._always.clear()
        found = tuple(tariffs for pattern, tariffs in self._patterns.items() if fnmatchcase(model, pattern))
        self._of[model] = found
        if found and len(found[0]) == 1 and found[0][0].since_s == -inf:
            self._always[model] = found[0][0]
        return found


class Prices:
    """The lists that have been in force one after the other: (since when, list), in this order. current: the last."""

    def __init__(self, lists: Sequence[tuple[float, PriceList]]) -> None:
        self._since = [since_s for since_s, _ in lists]
        self._lists = [one for _, one in lists]

    @property
    def current(self) -> PriceList:
        """The one that the manifest has now."""
        return self._lists[-1]

    def loaded(self, model: str, since_s: float, until_s: float) -> Iterator[Loaded]:
        """The pieces of a time for which a server was loaded: of one hour and one price each."""
        start_ms, until_ms = round(since_s * 1000), round(until_s * 1000)
        bounds = sorted(round(bound * 1000) for bound in self._since)
        while start_ms < until_ms:
            hour_s = start_ms // HOUR_MS * HOUR_S
            end_ms = min(until_ms, hour_s * 1000 + HOUR_MS)
            later = bisect_right(bounds, start_ms)
            if later < len(bounds):
                end_ms = min(end_ms, bounds[later])
            tariff = self._at(start_ms / 1000).find(model, start_ms / 1000)
            nanos = None if tariff is None else _rounded(tariff.hour * (end_ms - start_ms), HOUR_MS)
            yield Loaded(hour_s, end_ms - start_ms, nanos)
            start_ms = end_ms

    def _at(self, at_s: float) -> PriceList:
        """What holds; before the first list was known, that one."""
        return self._lists[max(0, bisect_right(self._since, at_s) - 1)]


class Loaded(msgspec.Struct, frozen=True):
    """Some time in one hour, in ms, and what it costs; None if there is no price."""

    hour_s: int
    loaded_ms: int
    cost: int | None


def cost(tariff: Tariff, outcome: Outcome) -> int | None:
    """The nanos of a request; None if it was served and its tokens, which it is paid for by, were not told.

    Written for speed: it is run for every request.
    """
    usage, served = outcome.usage, outcome.end is End.OK and outcome.status < 400
    if usage is None:
        return None if served and tariff.by_tokens else tariff.request * served
    prompt, made, cached, reasoning = (
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
    )
    if not (0 <= cached <= prompt <= MOST_TOKENS and 0 <= reasoning <= made <= MOST_TOKENS):
        prompt, made = _believed(prompt), _believed(made)
        cached, reasoning = min(_believed(cached), prompt), min(_believed(reasoning), made)
    rates = tariff.rates
    for above, dearer in tariff.tiers:
        if prompt > above:
            rates = dearer
            break
    millionths = (
        (prompt - cached) * rates.input
        + cached * rates.cached
        + (made - reasoning) * rates.output
        + reasoning * rates.reasoning
    )
    nanos = _rounded(millionths, MILLION)
    if served:
        nanos += tariff.request
    return nanos if nanos <= MOST_NANOS else MOST_NANOS


def _believed(tokens: int) -> int:
    return tokens if 0 <= tokens <= MOST_TOKENS else 0


def _rounded(number: int, divisor: int) -> int:
    """The quotient, rounded half to even."""
    whole, rest = divmod(number, divisor)
    return whole + (2 * rest > divisor or (2 * rest == divisor and whole % 2 == 1))


def _tariff(price: Price) -> Tariff:
    rates = _rates(price, Tier(above=1))
    tiers = tuple((tier.above, _rates(price, tier)) for tier in sorted(price.tiers, key=lambda tier: -tier.above))
    return Tariff(_midnight_s(price.since), rates, tiers, _nanos(price.request), _nanos(price.hour))


def _rates(price: Price, tier: Tier) -> Rates:
    """Those of a tier. What is cached costs as its input, unless the tier or the price says otherwise."""
    given = price.input if tier.input is None else tier.input
    made = price.output if tier.output is None else tier.output
    cached = price.cached if tier.cached is None else tier.cached
    reasoning = price.reasoning if tier.reasoning is None else tier.reasoning
    return Rates(
        input=_nanos(given),
        output=_nanos(made),
        cached=_nanos(given if cached is None else cached),
        reasoning=_nanos(made if reasoning is None else reasoning),
    )


def _nanos(price: Decimal) -> int:
    return int(price * NANO)


def _midnight_s(day: datetime.date | None) -> float:
    if day is None:
        return -inf
    return datetime.datetime.combine(day, datetime.time(), datetime.UTC).timestamp()
