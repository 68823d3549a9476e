"""What is kept of a response for its token counts."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin_sdk.usage import anthropic_usage, openai_usage
from sidecar.surfaces.dataplane.tail import HEAD_BYTES, STREAM_BYTES, WHOLE_BYTES, Tail


def fed(text: bytes, size: int, *, streamed: bool = True) -> Tail:
    tail = Tail(streamed)
    for place in range(0, len(text), size):
        tail.feed(text[place : place + size])
    return tail


def chunked(text: bytes, sizes: list[int], extension: bytes = b"") -> bytes:
    """That text with the framing of HTTP's chunks (RFC 9112, 7.1)."""
    framed: list[bytes] = []
    place, turn = 0, 0
    while place < len(text):
        piece = text[place : place + sizes[turn % len(sizes)]]
        framed.append(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece))
        place += len(piece)
        turn += 1
    return b"".join(framed) + b"0\r\n\r\n"


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=STREAM_BYTES), st.integers(1, 500))
def test_what_is_short_is_kept_whole(text: bytes, size: int) -> None:
    assert fed(text, size).read() == text


@settings(deadline=None, max_examples=40)
@given(st.integers(2 * STREAM_BYTES, 3 * WHOLE_BYTES), st.integers(1, 5000), st.booleans())
def test_of_what_is_long_both_ends_are_kept_and_little_more(length: int, size: int, streamed: bool) -> None:
    text = (bytes(range(251)) * (length // 251 + 1))[:length]
    tail = fed(text, size, streamed=streamed)
    limit = STREAM_BYTES if streamed else WHOLE_BYTES
    assert tail.total == length
    kept = tail.read()
    assert kept.startswith(text[:HEAD_BYTES])
    assert kept.endswith(text[-min(limit, length) :])
    assert len(kept) <= max(2 * limit, HEAD_BYTES + 2 + limit)


ANTHROPIC = [
    {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 11, "output_tokens": 1}}},
    *[{"type": "content_block_delta", "delta": {"text": "word"}}] * 500,
    {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 500}},
]
ANTHROPIC_TEXT = b"".join(b"event: x\ndata: " + json.dumps(event).encode() + b"\n\n" for event in ANTHROPIC)
COUNTED = {"model": "m", "usage": {"prompt_tokens": 3, "completion_tokens": 400}}
OPENAI_TEXT = b'data: {"choices":[]}\n\n' * 900 + b"data: " + json.dumps(COUNTED).encode() + b"\n\ndata: [DONE]\n\n"


def test_counts_are_read_from_either_end_of_a_long_stream() -> None:
    usage = anthropic_usage(fed(ANTHROPIC_TEXT, 97).read(), streamed=True)
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (11, 500)
    usage = openai_usage(fed(OPENAI_TEXT, 97).read(), streamed=True)
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (3, 400)


@pytest.mark.parametrize("sizes", [[1], [7, 130], [41], [1000], [9000], [100_000]])
@pytest.mark.parametrize("extension", [b"", b";a=b"])
def test_counts_are_read_from_between_the_framing_of_chunks_whose_sizes_split_its_lines(
    sizes: list[int], extension: bytes
) -> None:
    for size in (61, 1448, 65_536):
        kept = fed(chunked(ANTHROPIC_TEXT, sizes, extension), size).read(chunked=True)
        usage = anthropic_usage(kept, streamed=True)
        assert usage is not None
        assert (usage.input_tokens, usage.output_tokens) == (11, 500)
        usage = openai_usage(fed(chunked(OPENAI_TEXT, sizes, extension), size).read(chunked=True), streamed=True)
        assert usage is not None
        assert (usage.input_tokens, usage.output_tokens) == (3, 400)


@settings(deadline=None, max_examples=60)
@given(st.randoms(use_true_random=False), st.lists(st.integers(1, 400), min_size=1, max_size=5), st.integers(0, 40_000))
def test_the_end_of_chunks_is_the_end_of_their_data(random: Random, sizes: list[int], length: int) -> None:
    text = b"".join(b"data: {%d}\n\n" % random.randrange(10**9) for _ in range(length // 14))
    kept = fed(chunked(text, sizes), 300).read(chunked=True)
    if len(chunked(text, sizes)) <= 2 * STREAM_BYTES:
        assert kept == text
    elif max(sizes) >= 14:
        assert kept.endswith(text[-1000:])


@pytest.mark.parametrize(
    "text", [b"", b"zz\r\n", b"5\r\nab", b"2\r\nab\r", b"2\r\nab\r\nx\r\n", b"ffffffffffffffff\r\na"]
)
def test_framing_that_is_none_or_cut_off_is_no_error(text: bytes) -> None:
    assert fed(text, 3).read(chunked=True) in {b"", b"ab", b"a"}
    assert fed(text * 9000, 1000).read(chunked=True)[:2] in {b"\n\n", b"ab", b"a\r", b""}


FAREWELLS = [
    b'data: {"choices": []}\n\ndata: [DONE]\n\n',
    b"data:[DONE]\r\n\r\n",
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    b'event: response.completed\ndata: {"type":"response.completed"}\n\n',
]


@pytest.mark.parametrize("farewell", FAREWELLS)
@pytest.mark.parametrize("before", [b"", b"data: {}\n\n" * 3000])
def test_the_last_event_of_a_stream_is_known_once_it_is_whole(farewell: bytes, before: bytes) -> None:
    stream = before + farewell
    for size in (7, 100):
        assert fed(stream, size).says_farewell()
        assert not fed(stream[:-2], size).says_farewell()
        assert not fed(stream, size, streamed=False).says_farewell()
        framed = chunked(stream, [50]).removesuffix(b"0\r\n\r\n")
        assert fed(framed, size).says_farewell(chunked=True)


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b'data: {"content": "data: [DONE]\\n\\n"}\n\n',
        b'data: {"x": "\\ndata: [DONE]"}\n\n',
        b"data: [DONE",
        b'event: content_block_stop\ndata: {"type":"message_stop"}\n\n',
        b"event: response.output_text.done\ndata: {}\n\n",
    ],
)
def test_nothing_else_is_taken_for_the_last_event(stream: bytes) -> None:
    assert not fed(stream, 5).says_farewell()
