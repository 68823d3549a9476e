"""Answers to requests whose head comes again, of each kind, to the byte."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry.trace import get_current_span

from plugin_sdk import End, Exchange
from sidecar.mechanism.sampling import ALWAYS, Sampler
from tests.support import until
from tests.surfaces.quick.harness import (
    ANSWERS,
    CALLER,
    CHUNKED,
    JSON,
    LAST,
    TYPE,
    UNSAMPLED,
    USAGE,
    WAS_QUICK,
    WATCHED,
    WHOLE,
    Case,
    same_quick_or_not,
    sent,
    slowly,
)
from tests.surfaces.quick.plugins import DOES, LOG
from tests.surfaces.world import World, answers, ask, chunk, inside, message


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_is_the_same(here: World, kind: str) -> None:
    pieces = ANSWERS[kind]
    does = answers(pieces) if isinstance(pieces, bytes) else slowly(*pieces)
    plain = same_quick_or_not(here, Case(does=does))
    assert plain.outcomes[0][0]["end"] is End.OK
    assert not plain.ended
    asked = ask(WATCHED, b"Authorization: Bearer key")
    watched = same_quick_or_not(here, Case(does=does, request=asked))
    assert watched.client == plain.client
    assert [one[1] for one in watched.plugins[1:] if len(one) == 5] == [
        *["on_request"] * 2,
        *["on_response"] * 2,
        *["on_end"] * 2,
    ]


def test_an_answer_until_the_connection_closes_is_the_same(here: World) -> None:
    plain = same_quick_or_not(here, Case(does=answers(sent(b"200 OK", TYPE, length=False) + USAGE, close=True)))
    assert plain.client.endswith(chunk(USAGE) + LAST)
    assert not plain.ended


@pytest.mark.parametrize("kind", ["whole", "chunked"])
def test_a_body_of_many_megabytes_is_the_same(here: World, kind: str) -> None:
    data = bytes(range(256)) * 16_384
    pieces = (CHUNKED, *[chunk(data[:524_288])] * 8, LAST) if kind == "chunked" else (sent(b"200 OK", TYPE, body=data),)
    plain = same_quick_or_not(here, Case(does=answers(*pieces)))
    assert plain.outcomes[0][0]["bytes_out"] >= len(data)
    assert plain.client.count(data[:524_288]) == 8


def noted_length(exchange: Exchange) -> None:
    assert exchange.response is not None
    LOG.append(exchange.response.headers.get("content-length"))


@inside
async def test_answers_with_the_same_head_and_other_lengths_are_each_their_own(w: World) -> None:
    reader, writer = await w.connect()
    for length in (7, 7, 8, 700, 0, 1, 60_000, 200_000, 7):
        w.server.does = answers(JSON % (length, b"x" * length))
        DOES["inner.on_response"] = noted_length
        LOG.clear()
        writer.write(ask(WATCHED, b"Authorization: Bearer key"))
        head, body = await message(reader)
        assert body == b"x" * length
        assert str(length) in LOG
        assert b"Content-Length: %d\r\n" % length in head
        assert (await w.outcome()).bytes_out == length
    assert len(WAS_QUICK) == 8


@pytest.mark.parametrize("extra", [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"\r\n\r\n"])
@pytest.mark.parametrize("kind", ["whole", "204", "in its head and its body"])
def test_what_follows_an_answer_is_nobodys(here: World, kind: str, extra: bytes) -> None:
    pieces = ANSWERS[kind]
    plain = same_quick_or_not(
        here, Case(does=answers(pieces + extra) if isinstance(pieces, bytes) else answers(pieces[0], pieces[1] + extra))
    )
    assert b"evil" not in plain.client
    assert plain.outcomes[0][0]["end"] is End.OK


@inside
async def test_an_answer_that_nobody_asked_for_is_nobodys(w: World) -> None:
    reader, writer = await w.connect()

    async def twice(_: asyncio.StreamReader, back: asyncio.StreamWriter, head: bytes) -> None:
        back.write(WHOLE)
        await until(lambda: len(w.outcomes) == len(w.server.seen), "it was taken")
        back.write(JSON % (4, b"evil"))

    w.server.does = twice
    for _ in range(4):
        writer.write(ask())
        assert (await message(reader))[1] == USAGE
        await until(lambda: not w.plane.pool.idle, "the connection is given up")
    assert len(WAS_QUICK) == 3


# --- traces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["whole", "in two parts", "500", "events one by one", "early hints"])
@pytest.mark.parametrize(
    ("line", "sampler", "sampled"),
    [
        (CALLER, ALWAYS, True),
        (b"X-Nobody: asks", ALWAYS, True),
        (UNSAMPLED, ALWAYS, False),
        (b"X-Nobody: asks", Sampler(1, by_parent=True), False),
    ],
)
def test_a_trace_is_the_same(here: World, kind: str, line: bytes, sampler: Sampler, sampled: bool) -> None:
    pieces = ANSWERS[kind]
    does = answers(pieces) if isinstance(pieces, bytes) else slowly(*pieces)
    request = ask(WATCHED, b"Authorization: Bearer key", line)
    plain = same_quick_or_not(here, Case(does=does, request=request, traces=sampler))
    names = [[span[0] for span in trace] for trace in plain.spans]
    assert names == ([["chat watched", "auth", "filters", "upstream"]] if sampled else [])
    assert (b"traceparent" in plain.server[0][0]) == (sampled or line is UNSAMPLED)


@pytest.mark.parametrize("sampler", [ALWAYS, Sampler(1, by_parent=True)])
def test_spans_that_plugins_begin_have_the_same_parent_or_are_recorded_no_more_than_the_request(
    here: World, sampler: Sampler
) -> None:
    def look(_: Exchange) -> None:
        context = get_current_span().get_span_context()
        LOG.append(("span", context.is_valid, context.trace_flags.sampled))

    def begin() -> None:
        DOES.update({"outer.on_request": look, "inner.on_request": look})

    request = ask(WATCHED, b"Authorization: Bearer key")
    plain = same_quick_or_not(here, Case(does=answers(WHOLE), request=request, traces=sampler, before=begin))
    assert [one for one in plain.plugins if one[0] == "span"] == [("span", True, sampler is ALWAYS)] * 2


def test_a_span_tells_the_operation_of_the_models_mode_not_of_the_first_on_its_path(here: World) -> None:
    request = ask(b'{"model": "sorts", "x": 1}', b"Authorization: Bearer key", path=b"/v1/sort")
    plain = same_quick_or_not(here, Case(does=answers(WHOLE), request=request, traces=ALWAYS))
    assert [trace[0][0] for trace in plain.spans] == ["sort sorts"]
