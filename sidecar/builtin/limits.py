"""How many requests and tokens a caller may have per minute, for each model: token buckets in memory.

A bucket holds what is left, at most a minute's worth, and fills steadily. A request is taken from its bucket at the
start; its tokens are known at the end, so that they may overdraw it: then it has to fill up before the next is let in.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any

import msgspec

from plugin_sdk import Config, Exchange, Filter, Headers, Outcome, Principal, Reject, Response, inline

NAMES = ("requests", "tokens")
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
        if limit != self._limit:
            self._left += limit - self._limit  # what was used stays used
            self._limit = limit
        self._left = min(limit, self._left + (now - self._at) * limit / 60)
        self._at = now
        return self._left

    def is_whole(self, now: float) -> bool:
        """Whether nothing is used up, so that a new one would be the same."""
        return self.left(self._limit, now) >= self._limit

    def take(self, amount: float) -> None:
        """Use some of it, perhaps more than is left."""
        if self._limit > 0:
            self._left -= amount


class Quota(msgspec.Struct):
    """A caller's buckets for one model, or for all that nobody lists and those beyond EACH: then model is ""."""

    who: str
    model: str
    requests: Bucket
    tokens: Bucket

    def is_whole(self, now: float) -> bool:
        """Whether nothing is lost when it is forgotten."""
        return self.requests.is_whole(now) and self.tokens.is_whole(now)


class Buckets:
    """Everybody's buckets. Only those that are whole are ever forgotten: else asking for enough names would be a way
    around the limits. So there are no more than are used within a minute, or `most`.
    """

    def __init__(self) -> None:
        self._size = 0
        self._callers: OrderedDict[str, dict[str, Quota]] = OrderedDict()

    def __len__(self) -> int:
        return self._size

    def get(self, who: str, model: str, make: Callable[[str], Quota], now: float) -> Quota:
        """The caller's for the model. make: of a model's name."""
        held = self._of(who)
        if model not in held and len(held) >= EACH:
            self._forget(held, now)
            model = model if len(held) < EACH else ""
        quota = held.get(model)
        return quota if quota is not None else self._keep(held, make(model))

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


class State(msgspec.Struct, frozen=True):
    """Of one request: whose buckets it uses, and the limits that hold for it."""

    quota: Quota
    requests: int
    tokens: int


class Limits(Filter[Settings]):
    """Refuse with 429 what exceeds the limits, and tell every caller where he stands, as OpenAI's API does.

    Tokens are those that the server counts in its answer: a stream that says nothing of its usage costs none.
    """

    clock: Callable[[], float] = staticmethod(time.monotonic)

    async def open(self) -> None:
        self._buckets = await self.keep("buckets", _make, _drop)  # a reload must not be a way around the limits

    @inline
    def on_request(self, exchange: Exchange) -> None:
        """Take the request from its bucket. Raises Reject(429)."""
        request = exchange.request
        who, model, now = request.principal, request.model or request.requested_model, self.clock()
        requests, tokens = self._limits(who, model)
        self._buckets.shrink(self.config.most, now)
        quota = self._buckets.get(
            who.id,
            model if request.listed else "",
            lambda name: Quota(who.id, name, Bucket(requests, now), Bucket(tokens, now)),
            now,
        )
        state = State(quota, requests, tokens)
        short = _shortage(state, now)
        if short is not None:
            name, limit, wait_s = short
            raise Reject(
                429,
                f'the limit of {limit} {name} per minute for "{who.id}" on "{model}" is reached: '
                f"try again in {max(1, math.ceil(wait_s))} s",
                code="rate_limit_exceeded",
                retry_after_s=wait_s,
                headers=_headers(state, now),
            )
        quota.requests.take(1)
        exchange.state["limits"] = state

    @inline
    def on_response(self, exchange: Exchange) -> Response | None:
        """Tell where the caller stands. What a server says of limits of its own gives way: they are not his."""
        state, response = exchange.state.get("limits"), exchange.response
        if state is None or response is None:
            return None
        own = {name.encode(): value.encode() for name, value in _headers(state, self.clock()).items()}
        raw = tuple(pair for pair in response.headers.raw if pair[0].lower() not in own)
        return msgspec.structs.replace(response, headers=Headers((*raw, *own.items())))

    @inline
    def on_end(self, exchange: Exchange, outcome: Outcome) -> None:
        """Take its tokens."""
        state = exchange.state.get("limits")
        if state is not None and outcome.usage is not None:
            self._buckets.again(state.quota).tokens.take(outcome.usage.input_tokens + outcome.usage.output_tokens)

    def _limits(self, who: Principal, model: str) -> tuple[int, int]:
        """Requests and tokens per minute; 0 = no limit."""
        requests, tokens = self.config.requests_per_minute, self.config.tokens_per_minute
        for limit in (_match(self.config.models, model), _match(self.config.principals, who.id), _own(who)):
            if limit is not None:
                requests = requests if limit.requests_per_minute is None else limit.requests_per_minute
                tokens = tokens if limit.tokens_per_minute is None else limit.tokens_per_minute
        return requests, tokens


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


def _shortage(state: State, now: float) -> tuple[str, int, float] | None:
    """What the caller has too little of: its name, the limit, and the seconds until there is enough for a request."""
    waits = []
    for name, bucket, limit in _kinds(state):
        lacking = 1 - bucket.left(limit, now)
        if lacking > 1e-9:  # sums of fractions are not exact
            waits.append((name, limit, lacking * 60 / limit))
    return max(waits, key=lambda wait: wait[2], default=None)


def _headers(state: State, now: float) -> dict[str, str]:
    """https://platform.openai.com/docs/guides/rate-limits: the limits, what is left, and when all of it will be."""
    headers = {}
    for name, bucket, limit in _kinds(state):
        left = bucket.left(limit, now)
        headers[f"x-ratelimit-limit-{name}"] = str(limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(left + 1e-9)))
        headers[f"x-ratelimit-reset-{name}"] = _duration((limit - left) * 60 / limit)
    return headers


def _kinds(state: State) -> list[tuple[str, Bucket, int]]:
    """The limits that there are."""
    kinds = zip(NAMES, (state.quota.requests, state.quota.tokens), (state.requests, state.tokens), strict=True)
    return [kind for kind in kinds if kind[2] > 0]


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000 - 1e-6)}ms"
    minutes, rest = divmod(seconds, 60)
    text = f"{rest:.3f}".rstrip("0").rstrip(".")
    return f"{int(minutes)}m{text}s" if minutes else f"{text}s"
