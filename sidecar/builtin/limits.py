"""How many requests and tokens a caller may have per minute, for each model: token buckets in memory.

A bucket holds what is left, at most a minute's worth, and fills steadily. A request is taken from its bucket at the
start; its tokens are known at the end, so that they may overdraw it: then it has to fill up before the next is let in.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any

import msgspec

from plugin_sdk import Config, Exchange, Filter, Headers, Outcome, Principal, Reject, Request, Response, inline

ENOUGH = 1 - 1e-9  # for a request: sums of fractions are not exact
SHORTEST = len("x-ratelimit-limit-tokens")  # what is shorter is none of ours
EACH = 100  # models with a bucket of their own for one caller; he shares one for all others, which he may make up
LOOKED_AT = 4  # callers whose buckets are looked at when there are too many; the next request looks at others


class Limit(Config):
    """Per minute. 0 = no limit, None = as it is said elsewhere."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        if (self.requests_per_minute or 0) < 0 or (self.tokens_per_minute or 0) < 0:
            raise ValueError("a limit is 0 (none) or more")


class Settings(Config):
    """What is allowed to each principal on each model.

    principals, models: other limits, by shell-style patterns of which the first that matches counts; a principal's
    before a model's. Before both go a principal's own attributes `requests_per_minute` and `tokens_per_minute`, as the
    keys in a file may have. most: of the pairs of principal and model above that number, those are forgotten that have
    their whole limits again, those longest unused first.
    """

    requests_per_minute: int = 600
    tokens_per_minute: int = 1_000_000
    principals: dict[str, Limit] = msgspec.field(default_factory=dict)
    models: dict[str, Limit] = msgspec.field(default_factory=dict)
    most: int = 10_000

    def __post_init__(self) -> None:
        if self.requests_per_minute < 0 or self.tokens_per_minute < 0:
            raise ValueError("a limit is 0 (none) or more")
        if self.most < 1:
            raise ValueError("most must be 1 or more")


class Bucket:
    """What is left of a minute's worth. The limit is told with each question, because a reload may change it."""

    __slots__ = ("_at", "_left", "_limit")

    def __init__(self, limit: int, now: float) -> None:
        self._limit = limit
        self._left = float(limit)
        self._at = now

    def left(self, limit: int, now: float) -> float:
        """What is left now; below 0 when it is overdrawn."""
        left = self._left
        if limit != self._limit:
            left += limit - self._limit  # what was used stays used
            self._limit = limit
        left += (now - self._at) * limit / 60
        self._left = left = left if left < limit else float(limit)
        self._at = now
        return left

    def is_whole(self, now: float) -> bool:
        """Whether nothing is used up, so that a new one would be the same."""
        return self.left(self._limit, now) >= self._limit

    def take(self, amount: float) -> None:
        """Use some of it, perhaps more than is left."""
        if self._limit > 0:
            self._left -= amount


class Rule(msgspec.Struct, frozen=True):
    """One limit that there is. kind: which of a quota's buckets. most: per minute.

    told, left, reset: as headers; of those that change, the names.
    https://platform.openai.com/docs/guides/rate-limits: the limits, what is left, and when all of it will be.
    """

    name: str
    kind: int
    most: int
    told: tuple[bytes, bytes]
    left: bytes
    reset: bytes


class Terms(msgspec.Struct, frozen=True):
    """What holds for a caller on a model, and what that was worked out of. headers: the names of all that there are."""

    config: Settings
    who: Principal
    model: str
    rules: tuple[Rule, ...]
    headers: frozenset[bytes]

    def hold(self, config: Settings, who: Principal, model: str) -> bool:
        """Whether they need not be worked out again."""
        return self.config is config and self.model == model and (self.who is who or self.who == who)


class Quota(msgspec.Struct):
    """A caller's buckets for one model, or for all that nobody lists and those beyond EACH: then model is "".

    buckets: for requests, and for tokens. terms: those of the latest request; others may ask for what they share.
    """

    who: str
    model: str
    buckets: tuple[Bucket, Bucket]
    terms: Terms

    def is_whole(self, now: float) -> bool:
        """Whether nothing is lost when it is forgotten."""
        return all(bucket.is_whole(now) for bucket in self.buckets)


class Buckets:
    """Everybody's buckets. Only those that are whole are ever forgotten: else asking for enough names would be a way
    around the limits. So there are no more than are used within a minute, or `most`.
    """

    def __init__(self) -> None:
        self._size = 0
        self._callers: OrderedDict[str, dict[str, Quota]] = OrderedDict()

    def __len__(self) -> int:
        return self._size

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
        return self._keep(self._of(quota.who), quota)

    def again(self, quota: Quota) -> Quota:
        """What is in the quota's place now: it, unless it was forgotten and made anew meanwhile."""
        held = self._of(quota.who)
        return held.get(quota.model) or self._keep(held, quota)

    def shrink(self, most: int, now: float) -> None:
        """Forget some, if there are too many."""
        for who in list(islice(self._callers, LOOKED_AT)) if self._size > most else ():
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

    def _keep(self, held: dict[str, Quota], quota: Quota) -> Quota:
        held[quota.model] = quota
        self._size += 1
        return quota

    def _forget(self, held: dict[str, Quota], now: float) -> None:
        whole = [model for model, quota in held.items() if quota.is_whole(now)]
        for model in whole:
            del held[model]
        self._size -= len(whole)


class Limits(Filter[Settings]):
    """Refuse with 429 what exceeds the limits, and tell every caller where he stands, as OpenAI's API does.

    Tokens are those that the server counts in its answer: a stream that says nothing of its usage costs none.
    """

    clock: Callable[[], float] = staticmethod(time.monotonic)

    async def open(self) -> None:
        self._buckets = await self.keep("quotas", _make, _drop)  # a reload must not be a way around the limits

    @inline
    def on_request(self, exchange: Exchange) -> None:
        """Take the request from its bucket. Raises Reject(429)."""
        request, now, buckets = exchange.request, self.clock(), self._buckets
        who, model = request.principal, request.model or request.requested_model
        if len(buckets) > self.config.most:
            buckets.shrink(self.config.most, now)
        quota = buckets.find(who.id, model if request.listed else "")
        if quota is None:
            quota = self._first(request, model, now)
        terms = quota.terms
        if not terms.hold(self.config, who, model):
            terms = quota.terms = _terms(self.config, who, model)
        for rule in terms.rules:
            if quota.buckets[rule.kind].left(rule.most, now) < ENOUGH:
                raise _refusal(quota, terms, now)
        quota.buckets[0].take(1)
        exchange.state["limits"] = quota, terms

    @inline
    def on_response(self, exchange: Exchange) -> Response | None:
        """Tell where the caller stands. What a server says of limits of its own gives way: they are not his."""
        state, response = exchange.state.get("limits"), exchange.response
        if state is None or response is None:
            return None
        quota, terms = state
        own = terms.headers
        raw = [pair for pair in response.headers.raw if len(pair[0]) < SHORTEST or pair[0].lower() not in own]
        raw += _headers(quota, terms, self.clock())
        return Response(status=response.status, headers=Headers(tuple(raw)), streamed=response.streamed)

    @inline
    def on_end(self, exchange: Exchange, outcome: Outcome) -> None:
        """Take its tokens."""
        state, usage = exchange.state.get("limits"), outcome.usage
        if state is not None and usage is not None:
            self._buckets.again(state[0]).buckets[1].take(usage.input_tokens + usage.output_tokens)

    def _first(self, request: Request, model: str, now: float) -> Quota:
        """The quota of a caller that has none for the model yet."""
        who = request.principal
        found = self._buckets.find_other(who.id, model if request.listed else "", now)
        if isinstance(found, Quota):
            return found
        terms = _terms(self.config, who, model)
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
    return Limit(_whole(who.attributes, "requests_per_minute"), _whole(who.attributes, "tokens_per_minute"))


def _whole(attributes: Mapping[str, Any], name: str) -> int | None:
    """A limit among the attributes: a number, or digits as a file has them; else None."""
    value = attributes.get(name)
    if isinstance(value, str) and value.isdecimal() and len(value) < 18:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**18 else None


def _terms(config: Settings, who: Principal, model: str) -> Terms:
    requests, tokens = config.requests_per_minute, config.tokens_per_minute
    for limit in (_match(config.models, model), _match(config.principals, who.id), _own(who)):
        if limit is not None:
            requests = requests if limit.requests_per_minute is None else limit.requests_per_minute
            tokens = tokens if limit.tokens_per_minute is None else limit.tokens_per_minute
    rules = tuple(_rules(requests=requests, tokens=tokens))
    names = frozenset(name for rule in rules for name in (rule.told[0], rule.left, rule.reset))
    return Terms(config, who, model, rules, names)


def _rules(**limits: int) -> Iterator[Rule]:
    """Those that there are; 0 = no limit."""
    for kind, (name, most) in enumerate(limits.items()):
        if most > 0:
            limit, left, reset = (f"x-ratelimit-{what}-{name}".encode() for what in ("limit", "remaining", "reset"))
            yield Rule(name, kind, most, (limit, b"%d" % most), left, reset)


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


def _headers(quota: Quota, terms: Terms, now: float) -> list[tuple[bytes, bytes]]:
    headers: list[tuple[bytes, bytes]] = []
    for rule in terms.rules:
        most = rule.most
        left = quota.buckets[rule.kind].left(most, now)
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
