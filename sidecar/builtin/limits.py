"""How many requests and tokens a caller may have per minute, and how many requests at once, for each model.

A request is taken from its bucket at the start; its tokens are known at the end, so that they may overdraw it: then it
has to fill up before the next is let in.

Requests in flight are counted whether or not they are limited, so that a limit that a reload brings holds at once.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from plugin_sdk import Config, Exchange, Filter, Headers, Outcome, Principal, Reject, Request, inline
from sidecar.builtin.bucket import Bucket

ENOUGH = 1 - 1e-9  # for a request: sums of fractions are not exact
EACH = 100  # models with a bucket of their own for one caller; he shares one for all others, which he may make up
FIELDS = ("requests_per_minute", "tokens_per_minute", "concurrent")  # of a Limit
BUSY_S = 1.0  # nobody knows when a request ends
LOOKED_AT = 4  # callers whose buckets are looked at when there are too many; the next request looks at others


class Limit(Config):
    """For one caller on one model. concurrent: requests in flight. 0 = no limit, None = as it is said elsewhere."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None

    def __post_init__(self) -> None:
        if any((limit or 0) < 0 for limit in msgspec.structs.astuple(self)):
            raise ValueError("a limit is 0 (none) or more")


class ModelLimit(Limit):
    """For each caller; concurrent_total: requests in flight of all callers together."""

    concurrent_total: int | None = None


class Settings(Config):
    """What is allowed to each principal on each model.

    concurrent: requests in flight; concurrent_total: of all principals together on each model. principals, models:
    other limits, by shell-style patterns of which the first that matches counts; a principal's before a model's. Before
    both go a principal's own attributes `requests_per_minute`, `tokens_per_minute` and `concurrent`, as the keys in a
    file may have. most: of the pairs of principal and model above that number, those are forgotten that have their
    whole limits again, those longest unused first.
    """

    requests_per_minute: int = 600
    tokens_per_minute: int = 1_000_000
    concurrent: int = 0
    concurrent_total: int = 0
    principals: dict[str, Limit] = msgspec.field(default_factory=dict)
    models: dict[str, ModelLimit] = msgspec.field(default_factory=dict)
    most: int = 10_000

    def __post_init__(self) -> None:
        if min(self.requests_per_minute, self.tokens_per_minute, self.concurrent, self.concurrent_total) < 0:
            raise ValueError("a limit is 0 (none) or more")
        if self.most < 1:
            raise ValueError("most must be 1 or more")


class Rule(msgspec.Struct, frozen=True):
    """One limit that there is. kind: which of a quota's buckets. most: per minute.

    told, left, reset: as headers; of those that change, the names. whole: all three while nothing is used up.
    https://platform.openai.com/docs/guides/rate-limits: the limits, what is left, and when all of it will be.
    """

    name: str
    kind: int
    most: int
    told: tuple[bytes, bytes]
    left: bytes
    reset: bytes
    whole: tuple[tuple[bytes, bytes], ...]


class Traffic(msgspec.Struct, weakref=True):
    """What all callers have in flight on one model."""

    in_flight: int = 0


class Terms(msgspec.Struct, frozen=True):
    """What holds for a caller on a model, and what that was worked out of.

    concurrent, concurrent_total: 0 = no limit. traffic: what the latter is about.
    """

    config: Settings
    who: Principal
    model: str
    rules: tuple[Rule, ...]
    concurrent: int
    concurrent_total: int
    traffic: Traffic

    def hold(self, config: Settings, who: Principal, model: str) -> bool:
        """Whether they need not be worked out again."""
        return self.config is config and self.model == model and (self.who is who or self.who == who)


class Quota(msgspec.Struct):
    """A caller's buckets for one model, or for all that nobody lists and those beyond EACH: then model is "".

    buckets: for requests, and for tokens. terms: those of the latest request; others may ask for what they share.
    in_flight: requests that have not ended yet.
    """

    who: str
    model: str
    buckets: tuple[Bucket, Bucket]
    terms: Terms
    in_flight: int = 0

    def is_whole(self, now: float) -> bool:
        """Whether nothing is lost when it is forgotten."""
        return self.in_flight == 0 and all(bucket.is_whole(now) for bucket in self.buckets)


class Buckets:
    """Everybody's buckets. Only those that are whole are ever forgotten: else asking for enough names would be a way
    around the limits. So there are no more than are used within a minute, or in flight, or `most`. size: how many.
    """

    def __init__(self) -> None:
        self.size = 0
        self._callers: OrderedDict[str, dict[str, Quota]] = OrderedDict()
        # For as long as terms have it: those of a quota, or of a request in flight.
        self._traffic: WeakValueDictionary[str, Traffic] = WeakValueDictionary()

    def __len__(self) -> int:
        return self.size

    def find(self, who: str, model: str) -> Quota | None:
        """The caller's for the model."""
        held = self._callers.get(who)
        if held is None:
            return None
        self._callers.move_to_end(who)
        return held.get(model)

    def find_other(self, who: str, model: str, now: float) -> Quota | str:
        """The one in its place if a caller has no room for another; or for which model he has to get one."""
        held = self._of(who)
        if len(held) >= EACH:
            self._forget(held, now)
            model = model if len(held) < EACH else ""
        return held.get(model, model)

    def add(self, quota: Quota) -> Quota:
        """One more."""
        self._of(quota.who)[quota.model] = quota
        self.size += 1
        return quota

    def traffic(self, model: str) -> Traffic:
        """The model's, of all callers."""
        found = self._traffic.get(model)
        if found is None:
            found = self._traffic[model] = Traffic()
        return found

    def shrink(self, most: int, now: float) -> None:
        """Forget some, if there are too many."""
        for who in list(islice(self._callers, LOOKED_AT)) if self.size > most else ():
            held = self._callers[who]
            self._forget(held, now)
            if held:
                self._callers.move_to_end(who)  # so that it is not looked at again and again
            else:
                del self._callers[who]

    def _of(self, who: str) -> dict[str, Quota]:
        """A caller's, moved to the end of those that may be forgotten."""
        held = self._callers.setdefault(who, {})
        self._callers.move_to_end(who)
        return held

    def _forget(self, held: dict[str, Quota], now: float) -> None:
        whole = [model for model, quota in held.items() if quota.is_whole(now)]
        for model in whole:
            del held[model]
        self.size -= len(whole)


class Limits(Filter[Settings]):
    """Refuse with 429 what exceeds the limits, and tell every caller where he stands, as OpenAI's API does.

    Tokens are those that the server counts in its answer: a stream that says nothing of its usage costs none.
    """

    clock: Callable[[], float] = staticmethod(time.monotonic)

    async def open(self) -> None:
        self._buckets = await self.keep("quotas", _make, _drop)  # a reload must not be a way around the limits

    @inline
    def on_request(self, exchange: Exchange) -> None:
        """Take the request from its bucket, and count it as in flight. Raises Reject(429)."""
        request, now, buckets = exchange.request, self.clock(), self._buckets
        who, model = request.principal, request.model or request.requested_model
        config = self.config
        if buckets.size > config.most:
            buckets.shrink(config.most, now)
        quota = buckets.find(who.id, model if request.listed else "")
        if quota is None:
            quota = self._first(request, model, now)
        terms = quota.terms
        if not terms.hold(config, who, model):
            terms = quota.terms = _terms(config, who, model, buckets.traffic(model))
        for rule in terms.rules:
            if quota.buckets[rule.kind].left(rule.most, now) < ENOUGH:
                raise _refusal(quota, terms, now)
        traffic = terms.traffic
        if 0 < terms.concurrent <= quota.in_flight or 0 < terms.concurrent_total <= traffic.in_flight:
            raise _busy(quota, terms, now)
        quota.buckets[0].take(1)
        quota.in_flight += 1
        traffic.in_flight += 1
        exchange.state["limits"] = quota, terms

    @inline
    def on_response(self, exchange: Exchange) -> Headers | None:
        """Tell where the caller stands. What a server says of limits of its own gives way: they are not his."""
        state = exchange.state.get("limits")
        if state is None:
            return None
        quota, terms = state
        return Headers(tuple(_headers(quota, terms, self.clock())))

    @inline
    def on_end(self, exchange: Exchange, outcome: Outcome) -> None:
        """It is no longer in flight, if it was let in. Take its tokens."""
        state, usage = exchange.state.pop("limits", None), outcome.usage
        if state is None:
            return
        quota, terms = state
        quota.in_flight -= 1
        terms.traffic.in_flight -= 1
        if usage is not None:
            quota.buckets[1].take(usage.input_tokens + usage.output_tokens)

    def _first(self, request: Request, model: str, now: float) -> Quota:
        """The quota of a caller that has none for the model yet."""
        who = request.principal
        found = self._buckets.find_other(who.id, model if request.listed else "", now)
        if isinstance(found, Quota):
            return found
        terms = _terms(self.config, who, model, self._buckets.traffic(model))
        most = {rule.name: rule.most for rule in terms.rules}
        full = Bucket(most.get("requests", 0), now), Bucket(most.get("tokens", 0), now)
        return self._buckets.add(Quota(who.id, found, full, terms))


async def _make() -> Buckets:
    return Buckets()


async def _drop(buckets: Buckets) -> None:
    del buckets


def _match(limits: Mapping[str, Limit], name: str) -> Limit | None:
    if not limits:
        return None
    return next((limit for pattern, limit in limits.items() if fnmatchcase(name, pattern)), None)


def _own(who: Principal) -> Limit | None:
    if not who.attributes:
        return None
    return Limit(*(_whole(who.attributes, name) for name in FIELDS))


def _whole(attributes: Mapping[str, Any], name: str) -> int | None:
    """A limit among the attributes: a number, or digits as a file has them; else None."""
    value = attributes.get(name)
    if isinstance(value, str) and value.isdecimal() and len(value) < 18:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18 else None


def _terms(config: Settings, who: Principal, model: str, traffic: Traffic) -> Terms:
    of_model = _match(config.models, model)
    said = (_own(who), _match(config.principals, who.id), of_model, config)
    requests, tokens, concurrent = (_first_said(said, name) for name in FIELDS)
    rules = tuple(_rules(requests=requests, tokens=tokens))
    total = _first_said((of_model, config), "concurrent_total")
    return Terms(config, who, model, rules, concurrent, total, traffic)


def _first_said(limits: Iterable[Limit | Settings | None], name: str) -> int:
    """Settings say something of each, so they are the last."""
    found: int = next(most for limit in limits if limit is not None and (most := getattr(limit, name)) is not None)
    return found


def _rules(**limits: int) -> Iterator[Rule]:
    """Those that there are; 0 = no limit."""
    for kind, (name, most) in enumerate(limits.items()):
        if most > 0:
            limit, left, reset = (f"x-ratelimit-{what}-{name}".encode() for what in ("limit", "remaining", "reset"))
            told = (limit, b"%d" % most)
            yield Rule(name, kind, most, told, left, reset, (told, (left, told[1]), (reset, _duration(0))))


def _refusal(quota: Quota, terms: Terms, now: float) -> Reject:
    """There is too little of something: which it is, and the seconds until there is enough for a request."""
    waits = [((1 - quota.buckets[rule.kind].left(rule.most, now)) * 60 / rule.most, rule) for rule in terms.rules]
    wait_s, rule = max(waits, key=lambda wait: wait[0])
    return Reject(
        429,
        f'the limit of {rule.most} {rule.name} per minute for "{terms.who.id}" on "{terms.model}" is reached: '
        f"try again in {max(1, math.ceil(wait_s))} s",
        code="rate_limit_exceeded",
        retry_after_s=wait_s,
        headers={name.decode(): value.decode() for name, value in _headers(quota, terms, now)},
    )


def _busy(quota: Quota, terms: Terms, now: float) -> Reject:
    """As many are in flight as may be: of the caller, or of all."""
    most, whose = terms.concurrent, f'"{terms.who.id}"'
    if not 0 < most <= quota.in_flight:
        most, whose = terms.concurrent_total, "all callers together"
    return Reject(
        429,
        f'the limit of {most} requests in flight for {whose} on "{terms.model}" is reached: '
        "try again when one of them has ended",
        code="concurrency_limit_exceeded",
        retry_after_s=BUSY_S,
        headers={name.decode(): value.decode() for name, value in _headers(quota, terms, now)},
    )


def _headers(quota: Quota, terms: Terms, now: float) -> list[tuple[bytes, bytes]]:
    headers: list[tuple[bytes, bytes]] = []
    for rule in terms.rules:
        most = rule.most
        left = quota.buckets[rule.kind].left(most, now)
        if left >= most:
            headers += rule.whole
            continue
        headers += (
            rule.told,
            (rule.left, b"%d" % (left + 1e-9 if left > 0 else 0)),
            (rule.reset, _duration((most - left) * 60 / most)),
        )
    return headers


def _duration(seconds: float) -> bytes:
    """As OpenAI writes it: `120ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1000 - 1e-6)
    minutes, rest = divmod(seconds, 60)
    text = f"{rest:.3f}".rstrip("0").rstrip(".")
    return (f"{int(minutes)}m{text}s" if minutes else f"{text}s").encode()
