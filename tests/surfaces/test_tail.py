"""What is kept of a response for its token counts."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from plugin_sdk.usage import anthropic_usage, openai_usage
from sidecar.surfaces.dataplane.tail import HEAD_BYTES, STREAM_BYTES, WHOLE_BYTES, Tail


def fed(text: bytes, size: int, *, streamed: bool = True) -> Tail:
    tail = Tail(streamed)
    for place in range(0, len(text), size):
        tail.feed(text[place : place + size])
    return tail


@settings(deadline=None)
@given(st.binary(max_size=STREAM_BYTES), st.integers(1, 500))
def test_what_is_short_is_kept_whole(text: bytes, size: int) -> None:
    assert fed(text, size).read() == text


@settings(deadline=None, max_examples=40)
@given(st.integers(STREAM_BYTES + HEAD_BYTES, 3 * WHOLE_BYTES), st.integers(1, 5000), st.booleans())
def test_of_what_is_long_both_ends_are_kept_and_little_more(length: int, size: int, streamed: bool) -> None:
    text = bytes(place % 251 for place in range(length))
    tail = fed(text, size, streamed=streamed)
    limit = STREAM_BYTES if streamed else WHOLE_BYTES
    assert tail.total == length
    kept = tail.read()
    assert kept.startswith(text[:HEAD_BYTES])
    assert kept.endswith(text[-min(limit, length) :])
    assert len(kept) <= HEAD_BYTES + 2 + limit + size


def test_counts_are_read_from_either_end_of_a_long_stream() -> None:
    start = {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 11, "output_tokens": 1}}}
    end = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 500}}
    events = [start, *[{"type": "content_block_delta", "delta": {"text": "word"}}] * 500, end]
    text = b"".join(b"event: x\ndata: " + json.dumps(event).encode() + b"\n\n" for event in events)
    usage = anthropic_usage(fed(text, 97).read(), streamed=True)
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (11, 500)
    counted = {"model": "m", "usage": {"prompt_tokens": 3, "completion_tokens": 400}}
    text = b'data: {"choices":[]}\n\n' * 900 + b"data: " + json.dumps(counted).encode() + b"\n\ndata: [DONE]\n\n"
    usage = openai_usage(fed(text, 97).read(), streamed=True)
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (3, 400)
