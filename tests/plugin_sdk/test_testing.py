"""A chain in a test: what it does is what the sidecar does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plugin_sdk import (
    Auth,
    End,
    Event,
    Exchange,
    Filter,
    Headers,
    Outcome,
    Plugin,
    Principal,
    Reject,
    Request,
    Response,
    Route,
    Stats,
    Target,
    inline,
    on_chunk,
    on_event,
    on_request,
    on_response,
)
from plugin_sdk.testing import Harness, samples
from sidecar.mechanism.chain import Chain, Instance
from tests.plugin_sdk.door import Door, Settings
from tests.support import plugin as loaded

KNOWN: dict[str, Principal] = {}
PLACES = (Target(name="a", base_url="http://127.0.0.1:1"), Target(name="b", base_url="http://127.0.0.1:2"))


class Told(Stats):
    """Keeps what it is told."""

    async def open(self) -> None:
        self.outcomes: list[Outcome] = []

    async def record(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.metrics.count("requests", labels={"end": outcome.end.value})
        self.metrics.observe("tokens", outcome.usage.output_tokens if outcome.usage else 0)


class Ends(Filter):
    """Keeps how requests ended."""

    async def open(self) -> None:
        self.ends: list[End] = []

    @inline
    def on_end(self, exchange: Exchange, outcome: Outcome) -> None:
        self.ends.append(outcome.end)


class Last(Route):
    """Takes the last target."""

    finished_at: str = ""

    @inline
    def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target | None:
        return targets[-1] if targets else None

    def finished(self, target: Target, outcome: Outcome) -> None:
        self.finished_at = target.name


@on_request
def named(exchange: Exchange) -> Request:
    """Tells the server who asks."""
    raw = (*exchange.request.headers.raw, (b"x-caller", exchange.request.principal.id.encode()))
    return msgspec.structs.replace(exchange.request, headers=Headers(raw))


@on_response
async def stamped(exchange: Exchange) -> Response | None:
    """Adds a header."""
    assert exchange.response is not None
    return msgspec.structs.replace(exchange.response, headers=Headers(((b"x-stamp", b"1"),)))


@on_event
@inline
def shouting(exchange: Exchange, event: Event) -> Event | list[Event] | None:
    """Shouts, says some things twice, and has the last word."""
    if exchange.last and not event.whole:
        return Event(data=b"over", name="end")
    if b"[DONE]" in event.data:
        return []
    return [event, Event(data=b"again")] if event.id else Event(data=event.data.upper(), name=event.name)


@on_event
def bare(exchange: Exchange, event: Event) -> Event | None:
    """Takes spaces out of what the others leave."""
    return Event(data=event.data.replace(b" ", b"")) if b" " in event.data else None


@on_chunk
@inline
def counted(exchange: Exchange, chunk: bytes) -> bytes | None:
    """Says at the end how many bytes there were."""
    exchange.state["size"] = exchange.state.get("size", 0) + len(chunk)
    return b": %d bytes\n\n" % exchange.state["size"] if exchange.last else None


async def test_a_request_goes_through_every_stage() -> None:
    told, route = Told(), Last()
    chain = (Door(Settings(word="sesame")), named(), stamped(), route, told)
    async with Harness(*chain) as harness:
        answer = await harness.request(headers={"Authorization": "Bearer sesame"}, targets=PLACES)
    assert answer.status == 200
    assert answer.headers.get("x-stamp") == "1"
    assert answer.json["choices"][0]["message"]["content"] == "Hello"
    assert answer.sent is not None
    assert answer.sent.headers.get("x-caller") == "friend"
    assert answer.target == PLACES[1]
    assert route.finished_at == "b"
    [outcome] = told.outcomes
    assert (outcome.principal, outcome.variant, outcome.end) == ("friend", "b", End.OK)
    assert outcome.usage is not None
    assert harness.host.metrics.counts == {"requests{end=ok}": 1}
    assert harness.host.metrics.values == {"tokens": [1]}


async def test_a_rejected_request_has_an_error_and_its_outcome_but_nothing_is_sent() -> None:
    ends = Ends()
    async with Harness(ends, Door(Settings(word="sesame"))) as harness:
        answer = await harness.request()
    assert (answer.status, answer.sent) == (401, None)
    assert answer.json["error"]["message"] == "say the word"
    assert (answer.outcome.end, answer.outcome.code) == (End.REFUSED, "invalid_api_key")
    assert ends.ends == []  # its turn had not come


async def test_a_filter_may_answer_in_the_servers_place() -> None:
    @on_request
    def cached(exchange: Exchange) -> Response:
        return Response(body=b'{"cached": 1}')

    async with Harness(stamped(), shouting(), cached(), counted()) as harness:
        answer = await harness.request()
    assert (answer.json, answer.sent, answer.outcome.code) == ({"CACHED": 1}, None, "answered_by:cached")
    assert answer.headers.get("x-stamp") == "1"


async def test_a_stream_that_a_filter_breaks_off_ends_with_an_error_event() -> None:
    @on_event
    async def guard(exchange: Exchange, event: Event) -> None:
        if b"secret" in event.data:
            raise Reject(403, "not for you")

    async with Harness(guard()) as harness:
        answer = await harness.request(upstream=[b"data: fine\n\n", b"data: secret\n\n"])
    first, last = answer.events
    assert first.data == b"fine"
    assert b"not for you" in last.data
    assert answer.outcome.end is End.REFUSED


async def test_a_server_that_cannot_be_reached_is_told_apart() -> None:
    def gone(request: Request) -> bytes:
        raise ConnectionRefusedError("nobody is there")

    async with Harness() as harness:
        answer = await harness.request(upstream=gone)
    assert (answer.status, answer.outcome.end) == (502, End.UPSTREAM_FAILED)


async def test_a_client_that_leaves_is_an_outcome_and_filters_learn_of_it() -> None:
    asked, told, ends = asyncio.Event(), Told(), Ends()

    async def slow(request: Request) -> bytes:
        asked.set()
        await asyncio.Event().wait()
        return b""

    async with Harness(ends, told) as harness:
        asking = asyncio.create_task(harness.request(upstream=slow))
        await asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert [outcome.end for outcome in told.outcomes] == ends.ends == [End.CLIENT_GONE]


async def test_what_a_plugin_does_wrong_is_raised_in_the_test() -> None:
    class Wrong(Auth):
        def authenticate(self, request: Request) -> Principal:
            return KNOWN[request.path]

    async with Harness(Wrong()) as harness:
        with pytest.raises(KeyError):
            await harness.request()


async def test_services_are_there_and_what_is_kept_is_closed() -> None:
    closed: list[str] = []
    places: list[Path] = []

    class Keeps(Told):
        async def open(self) -> None:
            await super().open()
            places.append(self.state_dir)
            self.pool = await self.keep("pool", self.make, self.drop)
            assert await self.keep("pool", self.make, self.drop) is self.pool

        async def make(self) -> list[str]:
            return ["pool"]

        async def drop(self, pool: list[str]) -> None:
            closed.extend(pool)

    plugin = Keeps()
    async with Harness(plugin):
        assert places[0].is_dir()
        with pytest.raises(RuntimeError, match="give the client"):
            _ = plugin.http
    assert closed == ["pool"]
    assert not places[0].exists()


async def test_plugins_are_closed_when_one_cannot_be_opened() -> None:
    closed: list[str] = []

    class Opens(Told):
        async def close(self) -> None:
            closed.append("opens")

    class Fails(Opens):
        async def open(self) -> None:
            raise OSError("no database")

        async def close(self) -> None:
            closed.append("fails")

    with pytest.raises(OSError, match="no database"):
        async with Harness(Opens(), Fails()):
            pass
    assert closed == ["fails", "opens"]


@pytest.mark.parametrize("chain", [(shouting,), (shouting, bare), (bare, counted, shouting), (counted, bare)])
async def test_filters_make_the_same_of_a_stream_as_in_the_sidecar(
    chain: tuple[Callable[..., Plugin[Any]], ...],
) -> None:
    randomly = random.Random(7)  # noqa: S311 - cuts, not keys
    for _ in range(20):
        at = sorted(randomly.sample(range(1, len(samples.STREAM)), 5))
        pieces = [samples.STREAM[a:b] for a, b in zip([0, *at], [*at, len(samples.STREAM)], strict=True)]
        async with Harness(*(plugin() for plugin in chain)) as harness:
            answer = await harness.request(upstream=pieces)
        assert answer.body == await as_in_the_sidecar(chain, pieces)


async def as_in_the_sidecar(chain: tuple[Any, ...], pieces: list[bytes]) -> bytes:
    instances = [Instance(one.__name__, loaded(one)) for one in chain]
    for instance in instances:
        await instance.open()
    way = Chain(instances).passage("chat", 1 << 20)
    assert way is not None
    await way.request(samples.REQUEST)
    await way.response(Response(streamed=True), "")
    body = b"".join([await way.chunk(piece) for piece in pieces]) + await way.finish()
    for instance in instances:
        await instance.close()
    return body
