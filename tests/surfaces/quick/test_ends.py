"""Servers that break off, clients that leave, and what ends a request whose head came again from outside."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from plugin_sdk import End
from sidecar.mechanism.exchanges import UpstreamError
from sidecar.mechanism.sampling import ALWAYS
from sidecar.surfaces.dataplane.errors import ApiError
from tests.surfaces.quick.harness import (
    CALLER,
    CHUNKED,
    EVENTS,
    LAST,
    RENAMED,
    USAGE,
    WATCHED,
    WHOLE,
    Case,
    asked_on,
    hangs,
    reached,
    same_quick_or_not,
    soon,
)
from tests.surfaces.world import STREAM, Does, World, answers, ask, chunk

HALF = chunk(EVENTS[0]) + b"20\r\ndata: half"
BROKEN: dict[str, tuple[tuple[bytes, ...], int]] = {
    "before its head": ((), 502),
    "in its head": ((b"HTTP/1.1 20",), 502),
    "after early hints": ((b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n",), 502),
    "with garbage": ((b"garbage\r\n\r\n",), 502),
    "with another protocol": ((b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxx",), 502),
    "after its head": ((WHOLE[: -len(USAGE)],), 200),
    "in a body": ((WHOLE[:-20],), 200),
    "in chunks": ((CHUNKED + chunk(USAGE) + b"9\r\nhalf",), 200),
    "between events": ((STREAM + chunk(EVENTS[0]),), 200),
    "in an event": ((STREAM + HALF,), 200),
    "in an event, later": ((STREAM, chunk(EVENTS[0]), HALF), 200),
    "in a size": ((STREAM + chunk(EVENTS[0]) + b"2",), 200),
    "before the last chunk": ((STREAM, *map(chunk, EVENTS)), 200),
    "with chunks that are none": ((STREAM + chunk(EVENTS[0]), b"xx\r\n"), 200),
    "with more than its answer": ((STREAM + chunk(EVENTS[0]), LAST + b"x"), 200),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_server_that_breaks_off_is_told_of_in_the_same_way(here: World, kind: str) -> None:
    pieces, code = BROKEN[kind]
    came = asyncio.Event()
    for asked in (ask(), ask(WATCHED, b"Authorization: Bearer key", CALLER)):

        async def does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
            for number, piece in enumerate(pieces):
                if number:
                    await came.wait()
                writer.write(piece)
            if code == 200:
                await came.wait()
            writer.close()

        async def act(w: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if code == 200:
                await soon(lambda: reader._buffer, "some of it has come")  # type: ignore[attr-defined] # untouched
            came.set()

        plain = same_quick_or_not(
            here, Case(does=does, act=act, request=asked, breaks=True, before=came.clear, traces=ALWAYS)
        )
        [(outcome, _)] = plain.outcomes
        assert (outcome["end"], outcome["code"], outcome["status"]) == (End.UPSTREAM_FAILED, "upstream_failed", code)
        assert plain.ended == (code == 200)
        assert not plain.retried
        told = code == 502 or (kind not in ("after its head", "in a body", "in chunks"))
        assert (b"upstream_failed" in plain.client) == told


def test_a_server_that_closes_its_idle_connection_in_that_moment_is_asked_once_more(here: World) -> None:
    async def act(w: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await soon(lambda: len(w.server.seen) == 1, "it was asked")
        w.server.does = answers(WHOLE)
        asked_on(w)._fail("it was idle", processed=False)
        await soon(lambda: len(w.server.seen) == 2, "it was asked again")

    for asked in (ask(), ask(WATCHED, b"Authorization: Bearer key")):
        case = Case(does=hangs, act=act, request=asked, breaks=True, traces=ALWAYS)
        plain = same_quick_or_not(here, case)
        assert plain.client.endswith(USAGE)
        assert len(plain.retried) == 1
        assert len(set(plain.server)) == 1


def test_a_connection_that_is_closed_as_it_is_taken_is_replaced(here: World) -> None:
    async def act(w: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await soon(lambda: w.outcomes, "it is answered")

    def before() -> None:
        [connection] = [one for idle in here.plane.pool._idle.values() for one in idle]

        def ask_none(*_: Any, **__: Any) -> None:
            connection.abort()
            raise UpstreamError("closed", processed=False, reused=True)

        connection.ask = ask_none  # type: ignore[method-assign] # it closes in this very moment

    for traces in (None, ALWAYS):
        here.plane.pool.close()
        case = Case(act=act, before=before, breaks=True, traces=traces, request=ask(RENAMED))
        plain = same_quick_or_not(here, case)
        assert len(plain.server) == 1


def test_without_an_idle_connection_another_is_made(here: World) -> None:
    for asked in (ask(), ask(WATCHED, b"Authorization: Bearer key", CALLER)):
        case = Case(does=answers(WHOLE), request=asked, before=here.plane.pool.close, traces=ALWAYS)
        plain = same_quick_or_not(here, case)
        assert plain.client.endswith(USAGE)


# --- clients ----------------------------------------------------------------------------------------------------------


def then_hangs(*pieces: bytes) -> Does:
    async def does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        writer.write(b"".join(pieces))
        await reader.read(1)

    return does


STAGES: dict[str, tuple[Does, bytes]] = {
    "before the head": (hangs, b""),
    "after the head": (then_hangs(STREAM), STREAM),
    "within a stream": (then_hangs(STREAM, chunk(EVENTS[0])), chunk(EVENTS[0])),
    "after the last event": (then_hangs(STREAM, *map(chunk, EVENTS)), b"[DONE]"),
    "within a body": (then_hangs(WHOLE[:-9]), WHOLE[-20:-9]),
}


@pytest.mark.parametrize("kind", STAGES)
def test_a_client_that_leaves_is_the_same(here: World, kind: str) -> None:
    does, wanted = STAGES[kind]

    async def act(w: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reached(w, reader, wanted)
        writer.transport.abort()

    for asked in (ask(), ask(WATCHED, b"Authorization: Bearer key", CALLER)):
        case = Case(does=does, act=act, request=asked, breaks=True, traces=ALWAYS)
        plain = same_quick_or_not(here, case)
        gone = kind != "after the last event"
        assert plain.outcomes[0][0]["end"] is (End.CLIENT_GONE if gone else End.OK)


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("what", ["request_timeout", "shutdown", "plane"])
def test_what_ends_a_request_from_outside_is_the_same(here: World, kind: str, what: str) -> None:
    does, wanted = STAGES[kind]

    async def act(w: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reached(w, reader, wanted)
        if what == "request_timeout":
            w.pass_time(101)
        elif what == "plane":
            w.connections[0].cut_off(ApiError(503, "shutting_down", "the end"))
        else:
            w.connections[0].shutdown()
            await asyncio.sleep(0)
            asked_on(w)._fail("gone")

    case = Case(does=does, act=act, breaks=True, traces=ALWAYS)
    plain = same_quick_or_not(here, case)
    assert plain.ended


@pytest.mark.parametrize("kind", ["before the head", "within a stream"])
def test_a_sidecar_that_shuts_down_lets_an_answer_be_the_last(here: World, kind: str) -> None:
    may = asyncio.Event()

    async def does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        if kind != "before the head":
            writer.write(STREAM + chunk(EVENTS[0]))
        await may.wait()
        writer.write(STREAM + LAST if kind == "before the head" else chunk(EVENTS[1]) + LAST)

    async def act(w: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reached(w, reader, b"" if kind == "before the head" else EVENTS[0])
        w.connections[0].shutdown()
        may.set()

    plain = same_quick_or_not(here, Case(does=does, act=act, breaks=True, before=may.clear))
    assert plain.client.endswith(LAST)
    assert plain.ended
    assert (b"connection: close" in plain.client) == (kind == "before the head")
