"""What plugins cost: for each piece of an answer, and for each request and stage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from plugin_sdk import Auth, Event, Exchange, Filter, Plugin, Principal, Request, Response, inline
from sidecar.mechanism.chain import Chain
from sidecar.mechanism.instance import Instance
from tests.support import plugin

pytestmark = pytest.mark.benchmark

CHUNK = b'data: {"id": "x-1", "choices": [{"index": 0, "delta": {"content": "word "}}], "created": 1}\n\n'
REQUEST = Request(method="POST", path="/v1/chat/completions")
STREAM = Response(streamed=True)
CHUNKS = 10_000
CALLS = 2_000

Make = Callable[..., Awaitable[Chain]]


class Chunks(Filter):
    @inline
    def on_chunk(self, exchange: Exchange, chunk: bytes) -> None: ...


class Events(Filter):
    @inline
    def on_event(self, exchange: Exchange, event: Event) -> None: ...


class Changes(Filter):
    @inline
    def on_event(self, exchange: Exchange, event: Event) -> Event:
        return Event(data=event.data)


class AsyncChunks(Filter):
    async def on_chunk(self, exchange: Exchange, chunk: bytes) -> None: ...


class OnlyRequests(Filter):
    @inline
    def on_request(self, exchange: Exchange) -> None: ...


class Inline(Auth):
    @inline
    def authenticate(self, request: Request) -> Principal:
        return Principal("a")


class Async(Auth):
    async def authenticate(self, request: Request) -> Principal:
        return Principal("a")


class AsyncPauses(Auth):
    async def authenticate(self, request: Request) -> Principal:
        await asyncio.sleep(0)
        return Principal("a")


class Threaded(Auth):
    def authenticate(self, request: Request) -> Principal:
        return Principal("a")


@pytest.fixture
async def chain_of() -> AsyncIterator[Make]:
    """`await chain_of(cls, times)`: a chain of so many plugins."""
    opened: list[Instance] = []

    async def make(cls: type[Plugin[Any]], times: int) -> Chain:
        instances = [Instance(f"{cls.__name__}-{number}", plugin(cls)) for number in range(times)]
        opened.extend(instances)
        for instance in instances:
            await instance.open()
        return Chain(instances)

    yield make
    for instance in opened:
        await instance.close()


async def ns_per_chunk(chain: Chain) -> float:
    """CPU time for one piece, beyond that of the loop around it."""
    way = chain.passage("chat", 1)
    if way is not None:
        await way.request(REQUEST)
        await way.response(STREAM, "")
    began = time.process_time_ns()
    if way is None or not way.sees_body:
        for _ in range(CHUNKS):
            pass  # the relay hands the pieces on as they are
    else:
        for _ in range(CHUNKS):
            await way.chunk(CHUNK)
    return (time.process_time_ns() - began) / CHUNKS


@pytest.mark.parametrize(
    ("cls", "filters", "most_ns"),
    [
        (Chunks, 0, 100),
        (OnlyRequests, 6, 100),
        (Chunks, 1, 5_000),
        (Chunks, 6, 25_000),
        (Events, 1, 10_000),
        (Events, 6, 30_000),
        (Changes, 1, 15_000),
        (AsyncChunks, 1, 10_000),
        (AsyncChunks, 6, 50_000),
    ],
)
async def test_a_piece_of_an_answer(chain_of: Make, cls: type[Filter], filters: int, most_ns: float) -> None:
    chain = await chain_of(cls, filters)
    cost = min([await ns_per_chunk(chain) for _ in range(3)])
    print(f"\n{filters} x {cls.__name__}: {cost:.0f} ns per chunk")
    assert cost < most_ns


@pytest.mark.parametrize(
    ("cls", "most_us"),
    [(Inline, 10), (Async, 20), (AsyncPauses, 60), (Threaded, 500)],
)
async def test_a_stage_of_a_request(chain_of: Make, cls: type[Auth], most_us: float) -> None:
    chain = await chain_of(cls, 1)
    found = []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(CALLS):
            await chain.authenticate(REQUEST)
        found.append(1e6 * (time.perf_counter() - began) / CALLS)
    print(f"\n{cls.__name__}: {min(found):.1f} us per request and stage")
    assert min(found) < most_us
