"""One request from its first byte to its outcome: whoever leaves or breaks off, and whenever, nothing stays held."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from plugin_sdk import End, Exchange, Filter, Outcome, Reject, Request, Route, Target, inline
from plugin_sdk import Response as Answer
from sidecar.mechanism.exchanges import UpstreamError
from sidecar.surfaces.dataplane.call import Call
from tests.support import until
from tests.surfaces.world import OK, STREAM, Does, World, answers, ask, chunk, get, inside, message, running, status

SLOW = b'{"model": "slow"}'
INLINE = b'{"model": "inline"}'
TIMED = b'{"model": "timed"}'
HELD: list[str] = []  # hooks that wait
ENDS: list[Outcome] = []


async def held(name: str) -> None:
    HELD.append(name)
    try:
        await asyncio.Event().wait()
    finally:
        HELD.remove(name)


class Slow(Filter):
    """Waits for ever where the request says so, and a moment everywhere else."""

    async def on_request(self, exchange: Exchange) -> None:
        await self._wait(exchange, "request")

    async def on_response(self, exchange: Exchange) -> None:
        await self._wait(exchange, "response")

    async def on_chunk(self, exchange: Exchange, chunk: bytes) -> bytes:
        await self._wait(exchange, "chunk")
        return chunk.upper()

    async def on_end(self, exchange: Exchange, outcome: Outcome) -> None:
        await asyncio.sleep(0)
        ENDS.append(outcome)

    async def _wait(self, exchange: Exchange, name: str) -> None:
        if exchange.request.headers.get("x-wait") == name:
            await held(name)
        await asyncio.sleep(0)


class SlowHead(Filter):
    """Takes its time over the head, and leaves the body alone."""

    async def on_response(self, exchange: Exchange) -> None:
        await asyncio.sleep(0.02)


class Inline(Filter):
    """Sees all of it, and waits for nothing."""

    @inline
    def on_request(self, exchange: Exchange) -> Answer | None:
        if exchange.request.headers.get("x-answer"):
            return Answer(status=202, body=b"mine")
        return None

    @inline
    def on_chunk(self, exchange: Exchange, chunk: bytes) -> bytes:
        if b"forbidden" in chunk:
            raise Reject(451, "not this", code="forbidden")
        return chunk.upper()

    @inline
    def on_end(self, exchange: Exchange, outcome: Outcome) -> None:
        ENDS.append(outcome)


class Timed(Route):
    """Gives the server a second for the head of its answer."""

    @inline
    def resolve(self, request: Request, targets: tuple[Target, ...]) -> Target:
        return Target(name="own", base_url=targets[0].base_url, timeout_s=1.0)


MORE = """
[plugins.slow]
import = "tests.surfaces.test_call:Slow"
deadline = "60s"
[plugins.slow_head]
import = "tests.surfaces.test_call:SlowHead"
[plugins.inline]
import = "tests.surfaces.test_call:Inline"
[plugins.timed]
import = "tests.surfaces.test_call:Timed"
"""


def _model(name: str, plugin: str) -> str:
    return f"""
[models.{name}]
mode = "chat"
chain = ["{plugin}"]
[[models.{name}.variants]]
url = "URL"
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    models = "".join(_model(name, name) for name in ("slow", "slow_head", "inline", "timed"))
    with running(tmp_path_factory.mktemp("call"), more=MORE + models) as made:
        yield made
    ENDS.clear()


async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    assert not await reader.read(1)


async def settled(w: World) -> None:
    """Nothing is held: no plugins, no lease, no connection to the server but idle ones."""
    await until(lambda: w.generation.leases == 0, "no request is in flight")
    assert not w.controller.fleet.external_in_flight
    assert not HELD
    idle = sum(map(len, w.plane.pool._idle.values()))
    await until(lambda: w.server.open == idle, "the server is told that nobody waits")


async def call_of(w: World) -> Call:
    """The only one that is being answered."""
    edge = await w.connection()
    await until(lambda: edge._turns and edge._turns[0].answering is not None, "it is being answered")
    return cast(Call, edge._turns[0].answering)


# --- a client that leaves -------------------------------------------------------------------------------------------


STAGES: dict[str, tuple[Does, bytes, Callable[[World], Any]]] = {
    "before the head": (hangs, ask(), lambda w: w.server.seen),
    "within a stream": (answers(STREAM + chunk(b"data: 1\n\n")), ask(), lambda w: w.server.seen),
    "within a body": (answers(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"), ask(), lambda w: w.server.seen),
    "in a filter of requests": (hangs, ask(SLOW, b"X-Wait: request"), lambda _: HELD),
    "in a filter of heads": (answers(OK), ask(SLOW, b"X-Wait: response"), lambda _: HELD),
    "in a filter of bodies": (answers(STREAM + chunk(b"x")), ask(SLOW, b"X-Wait: chunk"), lambda _: HELD),
    "between two pieces of a filtered body": (answers(STREAM + chunk(b"x")), ask(SLOW), lambda w: w.server.seen),
    "within a body that is filtered inline": (answers(STREAM + chunk(b"x")), ask(INLINE), lambda w: w.server.seen),
    "with a timer for the head": (hangs, ask(TIMED), lambda w: w.server.seen),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_client_that_leaves_leaves_nothing_behind(here: World, stage: str) -> None:
    does, request, reached = STAGES[stage]

    async def scenario() -> None:
        async def then_hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
            await does(reader, writer, head)
            await reader.read(1)

        here.server.does = then_hangs
        _, writer = await here.connect()
        writer.write(request)
        await until(lambda: reached(here), stage)
        await asyncio.sleep(0.01)
        writer.transport.abort()
        outcome = await here.outcome()
        assert (outcome.end, outcome.code) == (End.CLIENT_GONE, "client_gone")
        await settled(here)
        assert not here.outcomes

    here.run(scenario())


@inside
async def test_a_client_that_leaves_after_the_last_event_has_got_all_there_is(w: World) -> None:
    """The official clients do, and servers send the end of their framing a moment later."""

    async def does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        writer.write(STREAM + chunk(b'data: {"usage": {"prompt_tokens": 3}}\n\n') + chunk(b"data: [DONE]\n\n"))
        await reader.read(1)

    w.server.does = does
    reader, writer = await w.connect()
    writer.write(ask())
    await reader.readuntil(b"[DONE]")
    writer.transport.abort()
    outcome = await w.outcome()
    assert (outcome.end, outcome.code, outcome.status) == (End.OK, "", 200)
    assert outcome.usage is not None
    await settled(w)


@inside
async def test_a_client_that_leaves_while_a_connection_is_made_leaves_nothing_behind(w: World) -> None:
    connecting = asyncio.Event()

    async def never(origin: object) -> Any:
        connecting.set()
        await asyncio.Event().wait()

    connect, w.plane.pool.connect = w.plane.pool.connect, never  # type: ignore[method-assign] # it would take no time
    w.plane.pool.close()
    _, writer = await w.connect()
    writer.write(ask())
    await connecting.wait()
    assert sum(w.controller.fleet.external_in_flight.values()) == 1
    writer.transport.abort()
    assert (await w.outcome()).end is End.CLIENT_GONE
    await settled(w)
    w.plane.pool.connect = connect  # type: ignore[method-assign] # as it was


@inside
async def test_a_client_that_leaves_in_the_moment_in_which_its_server_does_leaves_nothing_behind(w: World) -> None:
    """What is to be done about the server has not begun yet when it is given up."""
    w.server.does = hangs
    _, writer = await w.connect()
    writer.write(ask())
    await w.asked()
    call = await call_of(w)
    assert call._relaying is not None
    connection = call._relaying.connection
    assert connection is not None
    connection._fail("gone", processed=False)
    call.left()
    assert (await w.outcome()).end is End.CLIENT_GONE
    await settled(w)
    writer.close()


@inside
async def test_the_end_of_a_request_is_told_to_its_filters_once(w: World) -> None:
    ENDS.clear()
    for body in (SLOW, INLINE):
        head, got = await w.ask(ask(body))
        assert (status(head), got) == (200, b"{}")
    await until(lambda: len(ENDS) == 2, "both were told")
    assert [one.end for one in ENDS] == [End.OK, End.OK]
    await settled(w)


# --- a server that breaks off ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["m", "slow", "inline", "timed"])
@pytest.mark.parametrize(
    ("sent", "code", "whole"),
    [
        (b"", 502, True),
        (b"HTTP/1.1 200", 502, True),
        (b"garbage\r\n\r\n", 502, True),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxx", 502, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", 200, False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhalf", 200, False),
        (STREAM + chunk(b"data: 1\n\n") + b"9\r\nhalf", 200, False),
    ],
)
def test_a_server_that_breaks_off_is_told_of(here: World, model: str, sent: bytes, code: int, whole: bool) -> None:
    async def scenario() -> None:
        here.server.does = answers(sent, close=True)
        reader, writer = await here.connect()
        writer.write(ask(b'{"model": "%b"}' % model.encode()))
        if whole:
            head, body = await message(reader)
            assert (status(head), b'"code":"upstream_failed"' in body) == (code, True)
        else:
            with contextlib.suppress(asyncio.IncompleteReadError):
                head, body = await message(reader)
                raise AssertionError(f"a clean end: {head!r} {body!r}")
        outcome = await here.outcome()
        assert (outcome.end, outcome.code, outcome.status) == (End.UPSTREAM_FAILED, "upstream_failed", code)
        await settled(here)
        assert not here.outcomes

    here.run(scenario())


@inside
async def test_a_server_that_takes_too_long_for_its_head_is_given_up(w: World) -> None:
    w.server.does = hangs
    reader, writer = await w.connect()
    writer.write(ask(TIMED))
    await w.asked()
    call = await call_of(w)
    assert call._timer is not None
    assert call._target is not None
    call._too_late(call._target)
    head, body = await message(reader)
    assert (status(head), b"did not answer within 1 s" in body) == (502, True)
    await settled(w)


@inside
async def test_the_time_for_a_head_begins_anew_with_each_attempt(w: World) -> None:
    """Else the timer of the first ends the second, and what the second gets then is held for ever."""
    w.server.does = hangs
    reader, writer = await w.connect()
    writer.write(ask(TIMED))
    await w.asked()
    call = await call_of(w)
    first, relaying = call._timer, call._relaying
    assert first is not None
    assert relaying is not None
    assert relaying.connection is not None
    w.server.does = answers(OK)
    relaying.connection._fail("it was idle", processed=False)
    assert first.cancelled()
    assert status((await message(reader))[0]) == 200
    await settled(w)


@inside
async def test_a_connection_that_is_closed_as_it_is_taken_is_replaced(w: World) -> None:
    await w.ask(ask())
    [connection] = [one for idle in w.plane.pool._idle.values() for one in idle]
    refuse = UpstreamError("closed", processed=False, reused=True)

    def ask_none(*_: Any, **__: Any) -> None:
        connection.abort()
        raise refuse

    connection.ask = ask_none  # type: ignore[method-assign] # it closes in this very moment
    assert status((await w.ask(ask()))[0]) == 200
    await settled(w)


# --- filters --------------------------------------------------------------------------------------------------------


@inside
async def test_a_stream_whose_head_waits_for_a_filter_keeps_its_bytes_and_their_order(w: World) -> None:
    pieces = [chunk(b"data: %d\n\n" % number) for number in range(50)]
    w.server.does = answers(STREAM, *pieces, b"0\r\n\r\n")
    _, body = await w.ask(ask(b'{"model": "slow_head"}'))
    assert body == b"".join(b"data: %d\n\n" % number for number in range(50))
    await settled(w)


@inside
async def test_a_stream_whose_head_waits_for_a_filter_ends_in_an_event_if_it_breaks_off(w: World) -> None:
    w.server.does = answers(STREAM + chunk(b"data: 1\n\n") + b"20\r\ndata: half", close=True)
    reader, writer = await w.connect()
    writer.write(ask(b'{"model": "slow_head"}'))
    came = await reader.read()
    body = came.partition(b"\r\n\r\n")[2]
    parts = body.split(b"\r\n")
    assert (parts[0], parts[1]) == (b"9", b"data: 1\n\n")
    assert (parts[2], len(parts[3])) == (b"20", 0x20)
    assert len(parts[5]) == int(parts[4], 16)
    assert b"upstream_failed" in parts[5]
    await settled(w)


@inside
async def test_a_filter_that_refuses_within_an_answer_breaks_it_off_and_cancels_the_server(w: World) -> None:
    w.server.does = answers(STREAM + chunk(b"data: ok\n\n") + chunk(b"data: forbidden\n\n"))

    reader, writer = await w.connect()
    writer.write(ask(INLINE))
    came = await reader.read()
    assert b'"code":"forbidden"' in came
    assert b"FORBIDDEN\n" not in came
    assert not came.endswith(b"0\r\n\r\n")
    outcome = await w.outcome()
    assert (outcome.end, outcome.code) == (End.REFUSED, "forbidden")
    await settled(w)


@inside
async def test_an_answer_that_a_filter_gives_asks_no_server(w: World) -> None:
    head, body = await w.ask(ask(INLINE, b"X-Answer: yes"))
    assert (status(head), body) == (202, b"mine")
    assert not w.server.seen
    assert (await w.outcome()).code == "answered_by:inline"
    await settled(w)


@inside
async def test_slow_filters_slow_down_the_server(w: World) -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        nonlocal sent
        writer.write(STREAM)
        while True:
            writer.write(chunk(b"x" * 50_000))
            await writer.drain()
            sent += 50_000

    w.server.does = endless
    _, writer = await w.connect()
    writer.write(ask(SLOW, b"X-Wait: chunk"))
    await until(lambda: "chunk" in HELD and sent > 1_000_000, "much was sent")
    await asyncio.sleep(0.05)
    call = await call_of(w)
    assert call._relaying is not None
    assert call._relaying._steps is not None
    assert call._relaying._steps._bytes < 1_500_000
    writer.transport.abort()
    await settled(w)


# --- nothing is left ------------------------------------------------------------------------------------------------


def ours() -> int:
    """How many objects of our own there are."""
    return sum(str(type(one).__module__).startswith("sidecar") for one in gc.get_objects())


REQUESTS = {
    "answered": (answers(OK), ask()),
    "streamed": (answers(STREAM, chunk(b"data: 1\n\n") + b"0\r\n\r\n"), ask()),
    "filtered inline": (answers(STREAM, chunk(b"data: 1\n\n") + b"0\r\n\r\n"), ask(INLINE)),
    "filtered in a task": (answers(STREAM, chunk(b"data: 1\n\n") + b"0\r\n\r\n"), ask(SLOW)),
    "routed": (answers(OK), ask(TIMED)),
    "refused": (answers(OK), ask(b"no JSON")),
    "answered by a filter": (answers(OK), ask(INLINE, b"X-Answer: yes")),
    "listed": (answers(OK), get(b"/v1/models")),
    "nowhere": (answers(OK), get(b"/v1/nowhere")),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_requests_leave_nothing_to_the_garbage_collector(here: World, kind: str) -> None:
    does, request = REQUESTS[kind]
    count = 200

    async def scenario() -> None:
        here.server.does = does
        reader, writer = await here.connect()

        async def some() -> int:
            for _ in range(count):
                writer.write(request)
                await message(reader)
            await settled(here)
            here.outcomes.clear()
            ENDS.clear()
            here.server.seen.clear()
            here.server.bodies.clear()
            return len(gc.get_objects())

        await some()
        gc.collect()
        gc.disable()
        try:
            counts = [await some() for _ in range(4)]
        finally:
            gc.enable()
        # What requests leave is left by each time; probes and timers leave something now and then.
        assert min(after - before for before, after in itertools.pairwise(counts)) < count // 2, counts

    here.run(scenario())


def test_broken_connections_leave_nothing_to_the_garbage_collector(
    here: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", "sidecar")  # or the errors would be kept with what is logged of them
    count = 50

    async def scenario() -> None:
        async def some(does: Any) -> int:
            here.server.does = does
            for _ in range(count):
                reader, writer = await here.connect()
                writer.write(ask())
                await reader.read(30)
                writer.transport.abort()
                await here.outcome()
            here._clients.clear()
            here.server.seen.clear()
            here.server.bodies.clear()
            await settled(here)
            await until(lambda: not here.connections, "all have gone")
            return ours()

        for does in (answers(STREAM + chunk(b"data: 1\n\n")), answers(b"", close=True)):
            await some(does)
            gc.collect()
            gc.disable()
            try:
                counts = [await some(does) for _ in range(3)]
            finally:
                gc.enable()
            assert min(after - before for before, after in itertools.pairwise(counts)) <= 5, counts

    here.run(scenario())


def test_requests_that_no_server_takes_leave_nothing_to_the_garbage_collector(
    here: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", "sidecar")  # as above

    async def nobody(origin: object) -> Any:
        raise UpstreamError("no connection", processed=False)

    async def scenario() -> None:
        async def some() -> int:
            for head, _ in await asyncio.gather(*(here.ask(ask()) for _ in range(20))):
                assert status(head) == 502
            here._clients.clear()
            await settled(here)
            await until(lambda: not here.connections, "all have gone")
            here.outcomes.clear()
            return ours()

        here.plane.pool.close()
        connect, here.plane.pool.connect = here.plane.pool.connect, nobody  # type: ignore[method-assign] # at once
        await some()
        gc.collect()
        gc.disable()
        try:
            counts = [await some() for _ in range(3)]
        finally:
            gc.enable()
            here.plane.pool.connect = connect  # type: ignore[method-assign] # as it was
        assert min(after - before for before, after in itertools.pairwise(counts)) <= 5, counts

    here.run(scenario())
