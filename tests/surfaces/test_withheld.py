"""The event with token counts that the client did not ask for is kept from it, and not one byte else."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin_sdk.usage import openai_usage
from sidecar.surfaces.dataplane.withheld import MOST_BYTES, UsageWithheld

USAGE = {"prompt_tokens": 7, "completion_tokens": 4}


def data(value: object, end: str = "\n") -> bytes:
    return f"data: {json.dumps(value)}{end}{end}".encode()


CHUNK = data({"choices": [{"delta": {"content": 'so "choices": [] and "usage": {}'}}], "usage": None})
EXTRA = data({"id": "x", "choices": [], "usage": USAGE})
DONE = b"data: [DONE]\n\n"


def passed(stream: bytes, cuts: list[int]) -> tuple[bytes, bytes]:
    """What comes out of a stream that comes in those pieces, and what was withheld."""
    stage = UsageWithheld()
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    pieces = [stage.feed(stream[start:end]) for start, end in itertools.pairwise(edges)]
    return b"".join(pieces) + stage.finish(), stage.withheld


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_extra_event_is_withheld_wherever_the_stream_is_cut(end: str) -> None:
    around = [(part.decode().replace("\n", end)).encode() for part in (b": hi\n\n" + CHUNK, DONE)]
    extra = data({"choices": [], "usage": USAGE}, end)
    stream = extra.join(around)
    for cut in range(len(stream)):
        assert passed(stream, [cut]) == (b"".join(around), extra)
    assert passed(stream, list(range(len(stream)))) == (b"".join(around), extra)
    assert passed(stream, []) == (b"".join(around), extra)


def test_the_extra_event_may_stand_on_several_lines() -> None:
    event = b'event: x\rdata: {"choices" : [ ],\rdata: "usage": {}}\r\r'
    assert passed(event + DONE, list(range(len(event)))) == (DONE, event)


@pytest.mark.parametrize(
    "event",
    [
        data({"choices": [{"delta": {}}], "usage": USAGE}),
        data({"choices": [], "prompt_filter_results": [1]}),
        data({"choices": [], "usage": None}),
        data({"usage": USAGE, "nested": {"choices": []}}),
        data({"choices": [{"x": {"choices": []}}], "usage": USAGE}),
        data('"choices": [], "usage": {}'),
        b'data: {"choices": [], "usage": {}\n\n',
        b': "choices": [], "usage": {}\n\n',
        b'event: x\nretry: 7\n\n: "choices":[]\ndata: [DONE]\n\n',
    ],
)
def test_every_other_event_is_passed_on(event: bytes) -> None:
    for cuts in ([], list(range(len(event)))):
        assert passed(event + DONE, cuts) == (event + DONE, b"")


def test_an_extra_event_without_an_end_is_withheld_too() -> None:
    assert passed(CHUNK + EXTRA[:-1], []) == (CHUNK, EXTRA[:-1])
    assert passed(CHUNK + EXTRA[:-9], []) == (CHUNK + EXTRA[:-9], b"")


def test_what_is_whole_and_cannot_be_it_is_given_as_it_came() -> None:
    assert UsageWithheld().feed(piece := CHUNK + CHUNK) is not CHUNK
    assert UsageWithheld().feed(data({"choices": [1]})) == data({"choices": [1]})
    assert UsageWithheld().feed(piece) == piece


def test_what_is_held_is_bounded() -> None:
    stage = UsageWithheld()
    huge = b'data: {"choices": [], "usage": {"x": "' + b"y" * MOST_BYTES * 3 + b'"}}\n\n'
    out = b""
    for place in range(0, len(huge), 5000):
        out += stage.feed(huge[place : place + 5000])
        assert len(huge[: place + 5000]) - len(out) <= MOST_BYTES
    assert out + stage.feed(EXTRA + DONE) == huge + DONE
    assert stage.withheld == EXTRA


def test_the_counts_can_be_read_from_what_was_withheld() -> None:
    usage = openai_usage(passed(CHUNK + EXTRA + DONE, [30])[1], streamed=True)
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (7, 4)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([CHUNK, EXTRA, DONE, b": x\n\n", b"\n", b"\r", b"data: y", EXTRA[:-2]]), max_size=8),
    st.lists(st.integers(0, 3000), max_size=9),
)
def test_cuts_never_matter(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts)
    assert passed(stream, cuts) == passed(stream, [])
    if EXTRA[:-2] not in stream:
        assert passed(stream, cuts) == (stream, b"")
