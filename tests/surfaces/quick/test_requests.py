"""What stands in requests whose head comes again: the head says nothing of it."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from plugin_sdk import Usage
from tests.surfaces.quick.harness import (
    EVENTS,
    LAST,
    STREAMED,
    WAS_QUICK,
    WATCHED,
    Case,
    observed,
    other,
    same_quick_or_not,
)
from tests.surfaces.world import STREAM, World, answers, ask, chunk, inside, message, status


def test_a_model_that_its_server_calls_otherwise_is_renamed_and_has_its_key(here: World) -> None:
    for asked in (b"renamed", b"other"):
        plain = same_quick_or_not(here, Case(request=ask(b'{"model": "%b", "x": [1]}' % asked)))
        [(head, body)] = plain.server
        assert body == b'{"model": "org/inner", "x": [1]}'
        assert b"authorization: Bearer secret\r\n" in head
        assert plain.outcomes[0][0]["model"] == "renamed"


def test_a_stream_that_asks_for_its_usage_is_the_same(here: World) -> None:
    does = answers(STREAM, *map(chunk, EVENTS), LAST)
    plain = same_quick_or_not(here, Case(does=does, request=ask(STREAMED % b"watched", b"Authorization: Bearer key")))
    outcome = plain.outcomes[0][0]
    assert outcome["streamed"]
    assert outcome["usage"] == Usage(input_tokens=3, output_tokens=5)


ODD = {
    "no JSON": b"{not",
    "nothing": b"",
    "no object": b"[1]",
    "no model": b'{"x": 1}',
    "a model that is none": b'{"model": 7}',
    "no such model": b'{"model": "nobody"}',
    "a model of another mode": b'{"model": "embeds"}',
    "two models": b'{"model": "m", "x": 1, "model": "renamed"}',
    "two models, one written otherwise": b'{"model": "m", "mod\\u0065l": "renamed"}',
    "two models, in other case": b'{"model": "m", "Model": "renamed"}',
    "the same model twice": b'{"model": "m", "model": "m"}',
    "a model within": b'{"x": {"model": "renamed"}, "model": "m"}',
    "a model written otherwise": b'{"mod\\u0065l": "m"}',
    "a model as text": b'{"x": "\\"model\\"", "model": "m"}',
    "a stream whose usage was not asked for": b'{"model": "m", "stream": true}',
    "a flag that is none": b'{"model": "m", "stream": 1}',
    "no text": b'{"model": "\xff"}',
    "much nested": b'{"x": ' + b"[" * 2000 + b"]" * 2000 + b', "model": "m"}',
    "larger than one read": b'{"model": "m", "x": "' + b"x" * 90_000 + b'"}',
}


@pytest.mark.parametrize("kind", ODD)
def test_a_body_is_the_same_after_others_with_its_head(here: World, kind: str) -> None:
    """Of whatever kind and length it is: the head is known, and says nothing of it."""
    request = ask(ODD[kind])

    async def scenario() -> None:
        plain = await observed(here, Case(request=request), [other(ask())], 0)
        known = await observed(here, Case(request=request), [ask()], 0)
        again = await observed(here, Case(request=request), [ask(), ask(), ask()], 0)
        assert msgspec.structs.asdict(known) == msgspec.structs.asdict(plain) == msgspec.structs.asdict(again)

    here.run(scenario())


@pytest.mark.parametrize("kind", ["a key that is none", "torn", "torn in the body"])
def test_what_is_not_as_it_was_is_the_same(here: World, kind: str) -> None:
    request = ask(WATCHED, b"Authorization: Bearer key")

    async def torn(w: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        writer.write(whole_request[cut:])

    whole_request, cut, act = request, len(request), None
    if kind == "a key that is none":
        whole_request = request.replace(b"Bearer key", b"Bearer kez")
    else:
        cut = 40 if kind == "torn" else len(request) - 3
        act = torn

    async def scenario() -> None:
        case = Case(request=whole_request[:cut], act=act)
        plain = await observed(here, case, [other(request)], 0)
        known = await observed(here, case, [request], 0)
        assert msgspec.structs.asdict(known) == msgspec.structs.asdict(plain)
        assert not WAS_QUICK

    here.run(scenario())


@inside
async def test_a_body_that_is_too_large_is_refused_whatever_came_before(w: World) -> None:
    reader, writer = await w.connect()
    writer.write(ask())
    await message(reader)
    writer.write(ask(b" " * 100_001))
    assert status((await message(reader))[0]) == 413
    assert not WAS_QUICK
