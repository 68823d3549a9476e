"""Server-sent events: what the standard's own examples say, and the same whatever the pieces in which they come."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from plugin_sdk import Event
from plugin_sdk.sse import Parser, Piece, TooLargeError, written

MANY = 1 << 20


def parse(*chunks: bytes) -> list[Piece]:
    parser = Parser(MANY)
    return [piece for chunk in chunks for piece in parser.feed(chunk)] + parser.finish()


def events(*chunks: bytes) -> list[Event]:
    return [piece.event for piece in parse(*chunks) if piece.event is not None]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [Event(data=b"YHOO\n+2\n10")]),
        (
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            [Event(data=b"first event", id="1"), Event(data=b"second event"), Event(data=b" third event")],
        ),
        (b"data\n\ndata\ndata\n\n", [Event(data=b""), Event(data=b"\n")]),
        (b"data:test\n\ndata: test\n\n", [Event(data=b"test"), Event(data=b"test")]),
        (b"event: add\ndata: 73857293\n\n", [Event(data=b"73857293", name="add")]),
        (b"\xef\xbb\xbfdata: 1\n\n\xef\xbb\xbfdata: 2\n\n", [Event(data=b"1")]),
        (b"event: lost\n\ndata: kept\n\n", [Event(data=b"kept")]),
        (b"id: a\0b\ndata: x\n\n", [Event(data=b"x")]),
        (b"Data: x\n\n", []),
        (
            b"data: 1\r\rdata: 2\r\n\r\ndata: 3\n\r\ndata: 4\r\n\ndata: 5\n\n",
            [Event(data=b"%d" % n) for n in range(1, 6)],
        ),
        (b"\n\n\ndata: x\n\n\n", [Event(data=b"x")]),
        (b"data: not complete", [Event(data=b"not complete")]),
        (b"", []),
    ],
)
def test_streams_are_read_as_the_standard_says(stream: bytes, expected: list[Event]) -> None:
    assert events(stream) == expected
    assert b"".join(piece.raw for piece in parse(stream)) == stream


WORDS = st.sampled_from([b"data:", b"data: x", b"event: e", b"id: 7", b": c", b"retry: 5", b"\xef\xbb\xbf", b"{}"])
STREAMS = st.lists(st.one_of(WORDS, st.sampled_from([b"\n", b"\r", b"\r\n"]))).map(b"".join)


@given(stream=STREAMS, cuts=st.lists(st.integers(0, 200)))
@example(stream=b"data: x\r\n\r\ndata: y\n\n", cuts=[10])
@example(stream=b"data: x\r\r\n", cuts=[9])
def test_cutting_it_elsewhere_changes_nothing(stream: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    chunks = [stream[start:end] for start, end in pairwise(places)]
    assert parse(*chunks) == parse(stream) == parse(*(bytes([byte]) for byte in stream))
    assert b"".join(piece.raw for piece in parse(*chunks)) == stream


@given(
    data=st.binary(max_size=50),
    name=st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=9),
)
def test_what_is_written_is_read_again(data: bytes, name: str) -> None:
    (event,) = events(written(Event(data=data, name=name)))
    assert event == Event(data=data.replace(b"\r\n", b"\n").replace(b"\r", b"\n"), name=name)


def test_an_event_comes_as_soon_as_it_is_complete() -> None:
    parser = Parser(MANY)
    assert parser.feed(b"data: 1\n") == []
    assert [piece.event for piece in parser.feed(b"\ndata: 2\r\n\r\nda")] == [Event(data=b"1"), Event(data=b"2")]
    assert parser.rest() == b"da"
    assert parser.finish() == []


def test_comments_and_unknown_lines_stay_beside_an_event() -> None:
    (piece,) = parse(b": hello\nretry: 10\ndata: x\nfoo\n\n")
    assert (piece.event, piece.beside) == (Event(data=b"x"), b": hello\nretry: 10\nfoo\n")


def test_an_event_without_an_end_is_held_only_up_to_a_bound() -> None:
    parser = Parser(100)
    parser.feed(b"data: 1\n\ndata: " + b"x" * 80)
    with pytest.raises(TooLargeError):
        parser.feed(b"x" * 80)
    assert len(parser.rest()) == 166


def test_one_byte_at_a_time_takes_no_longer_for_long_events() -> None:
    parser = Parser(MANY)
    for _ in range(20_000):
        assert parser.feed(b"x") == []
    assert parser.rest() == b"x" * 20_000


@pytest.mark.parametrize("event", [Event(data=b"", name="a\ndata: evil"), Event(data=b"", id="a\rdata: evil")])
def test_nothing_can_break_out_of_its_line(event: Event) -> None:
    with pytest.raises(ValueError, match="line breaks"):
        written(event)
