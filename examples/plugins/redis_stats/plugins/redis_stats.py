"""Count requests and tokens in Redis, a hash for each model and principal.

    $ redis-cli HGETALL stats:qwen:ann
    requests 12  input_tokens 840  output_tokens 1536  total_tokens 2376

It needs `pip install redis`. Outcomes are added up here and sent some at a time, in one transaction, so neither a
request nor the queue of outcomes ever waits for Redis. Each is counted at most once: what cannot be sent is dropped,
and counted as `dropped`, which `GET /-/plugins` shows. Nothing is sent again, since a transaction whose answer is lost
may have been done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from urllib.parse import quote

from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from plugin_sdk import Config, Duration, Outcome, Secret, Stats, inline

MOST_PAIRS = 10_000  # of model and principal, that wait to be sent


class Settings(Config):
    """url: `redis://HOST:PORT/DATABASE`, `rediss://` with TLS, or `unix://PATH`. prefix: of the keys in Redis.

    every: how long outcomes are gathered before they are sent. patience: how long one answer of Redis is waited for.
    """

    url: str = "redis://127.0.0.1:6379/0"
    password: Secret | None = None
    prefix: str = "stats"
    every: Duration = Duration(0.5)
    patience: Duration = Duration(1)

    def __post_init__(self) -> None:
        if "password" in parse_url(self.url):  # which raises ValueError itself for what is no address
            raise ValueError('write it as password = { env = "NAME" }: a secret never stands in a manifest')
        if self.every <= 0 or self.patience <= 0:
            raise ValueError("every and patience must be longer than nothing")


@dataclass
class Tally:
    """What is to be added for one model and principal."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def amounts(self) -> dict[str, int]:
        """By field of the hash; only what changes it."""
        fields = {**asdict(self), "total_tokens": self.input_tokens + self.output_tokens}
        return {name: amount for name, amount in fields.items() if amount}


class RedisStats(Stats[Settings]):
    """Adds outcomes up, and sends the sums from a task of its own."""

    _sending: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Never fails for want of Redis: one that is down now is connected to when it is there."""
        self._tallies: dict[str, Tally] = {}
        self._problem = ""
        self._closing = asyncio.Event()
        # Who connects otherwise needs another client. The password itself must not get into the name.
        key = f"{self.config.url} {hash((self.config.password, self.config.patience))}"
        self._redis = await self.keep(key, self._connect, Redis.aclose)
        self._sending = asyncio.create_task(self._send_again_and_again(), name=f"{self.name} to Redis")

    async def close(self) -> None:
        """Send what is left. The client closes after the last who has kept it."""
        if self._sending is not None:
            self._closing.set()
            await self._sending

    @inline
    def record(self, outcome: Outcome) -> None:
        key = ":".join((self.config.prefix, _name(outcome.model), _name(outcome.principal)))
        tally = self._tallies.get(key)
        if tally is None:
            if len(self._tallies) >= MOST_PAIRS:
                self.metrics.count("dropped")
                return
            tally = self._tallies[key] = Tally()
        tally.requests += 1
        if outcome.usage is not None:
            tally.input_tokens += outcome.usage.input_tokens
            tally.output_tokens += outcome.usage.output_tokens

    async def _connect(self) -> Redis:
        """A client, which connects when it is first used, and again after it was cut off."""
        return Redis.from_url(
            self.config.url,
            password=self.config.password.reveal() if self.config.password else None,
            socket_timeout=self.config.patience,
            socket_connect_timeout=self.config.patience,
            retry=Retry(NoBackoff(), 0),
        )

    async def _send_again_and_again(self) -> None:
        while not self._closing.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), self.config.every)
            tallies, self._tallies = self._tallies, {}
            if tallies:
                await self._send(tallies)

    async def _send(self, tallies: dict[str, Tally]) -> None:
        steps = [(key, field, amount) for key, tally in tallies.items() for field, amount in tally.amounts().items()]
        pipeline = self._redis.pipeline(transaction=True)
        for key, field, amount in steps:
            pipeline.hincrby(key, field, amount)
        try:
            answers = await pipeline.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            self._drop(tallies.values(), error)
            return
        pairs = zip(steps, answers, strict=True)
        refused = {key: answer for (key, _, _), answer in pairs if isinstance(answer, Exception)}
        for key, answer in refused.items():  # such as a key that is no hash; all others were added
            self._drop([tallies[key]], answer)
        if not refused and self._problem:
            self.log.info("outcomes are counted in Redis again")
            self._problem = ""

    def _drop(self, tallies: Iterable[Tally], error: Exception) -> None:
        self.metrics.count("dropped", sum(tally.requests for tally in tallies))
        if str(error) != self._problem:  # once, not with each batch
            self.log.error("outcomes are not counted in Redis: %s", error)
        self._problem = str(error)


def _name(text: str) -> str:
    """Without colons, which stand between the parts of a key; any text, as tokens and clients may name anything."""
    return quote(text, safe="/@ ", errors="replace")
