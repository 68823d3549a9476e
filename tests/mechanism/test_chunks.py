"""Where in a chunked body one is, for any body and any cut: a parser of its own is the judge."""

from __future__ import annotations

import itertools

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.mechanism.chunks import ChunkPosition

MOST = 1000
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

_extensions = st.sampled_from([b"", b"", b";a=b", b";q=xy", b";a;b=1"])
_sizes = st.sampled_from([b"%x", b"%X", b"%04x"])
_trailers = st.sampled_from([b"", b"T: 1\r\n", b"A: b\r\nC: d\r\n"])


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A body in chunks, and their data. Line ends in them look like those of the framing."""
    data = draw(st.lists(st.binary(min_size=1, max_size=40) | st.sampled_from([b"\r\n", b"0\r\n\r\n", b"a" * 300])))
    size, extension = draw(_sizes), draw(_extensions)
    framed = b"".join(size % len(one) + extension + b"\r\n" + one + b"\r\n" for one in data)
    return framed + b"0\r\n" + draw(_trailers) + b"\r\n", data


class Parsed:
    """What a client makes of the bytes."""

    def __init__(self, raw: bytes) -> None:
        self.body = b""
        self.complete = False
        httptools.HttpResponseParser(self).feed_data(HEAD + raw)

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


def position(raw: bytes, cuts: list[int]) -> ChunkPosition:
    made = ChunkPosition()
    edges = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        made.feed(raw[start:end])
    return made


@given(chunked(), st.integers(0), st.lists(st.integers(0), max_size=8))
def test_at_any_place_a_chunk_of_ones_own_may_follow_what_was_filled_up(
    body: tuple[bytes, list[bytes]], place: int, cuts: list[int]
) -> None:
    raw, data = body
    sent = raw[: place % (len(raw) + 1)]
    filling = position(sent, cuts).to_boundary(MOST)
    if filling is None:
        # The last chunk has begun; or a size has, with a digit that says nothing yet, or an extension.
        assert Parsed(sent).body == b"".join(data) or sent.endswith(b"0") or b";" in sent.rpartition(b"\r\n")[2]
        return
    assert len(filling) <= MOST + 4
    parsed = Parsed(sent + filling + b"5\r\nerror\r\n0\r\n\r\n")
    assert parsed.complete
    passed = parsed.body.removesuffix(b"error")
    assert parsed.body != passed
    before = Parsed(sent).body
    assert passed.startswith(before)
    assert not passed[len(before) :].strip(b"\n")
    assert b"".join(data).startswith(before)


@given(chunked(), st.lists(st.integers(0), max_size=8), st.lists(st.integers(0), max_size=8))
def test_how_the_bytes_are_cut_makes_no_difference(
    body: tuple[bytes, list[bytes]], one: list[int], other: list[int]
) -> None:
    raw = body[0]
    for end in (len(raw) // 3, len(raw) // 2, len(raw)):
        assert position(raw[:end], one).to_boundary(MOST) == position(raw[:end], other).to_boundary(MOST)


@pytest.mark.parametrize(
    ("sent", "filling"),
    [
        (b"", b""),
        (b"2", b"\r\n\n\n\r\n"),
        (b"2;a", None),
        (b"2\r", b"\n\n\n\r\n"),
        (b"2\r\n", b"\n\n\r\n"),
        (b"2\r\no", b"\n\r\n"),
        (b"2\r\nok", b"\r\n"),
        (b"2\r\nok\r", b"\n"),
        (b"2\r\nok\r\n", b""),
        (b"2\r\nok\r\n3", b"\r\n\n\n\n\r\n"),
        (b"2\r\nok\r\n0", None),  # it is the last one, or will be of a size that nobody knows
        (b"2\r\nok\r\n0\r\n", None),
        (b"2\r\nok\r\n0\r\nT: 1", None),
        (b"2\r\nok\r\n0\r\n\r\n", None),
        (b"%x\r\n" % MOST, b"\n" * MOST + b"\r\n"),
        (b"%x\r\n" % (MOST + 1), None),
        (b"%x\r\nx" % (MOST + 1), b"\n" * MOST + b"\r\n"),
        (b"ffffffff", None),
    ],
)
def test_what_it_takes_to_get_to_where_a_chunk_may_follow(sent: bytes, filling: bytes | None) -> None:
    for cuts in ([], list(range(len(sent)))):
        assert position(sent, cuts).to_boundary(MOST) == filling


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=4), st.integers(0), st.binary(max_size=3), chunked())
def test_what_is_skipped_are_whole_chunks_for_a_parser_and_leaves_both_where_they_were(
    before: list[bytes], place: int, more: bytes, body: tuple[bytes, list[bytes]]
) -> None:
    raw, data = body
    framed = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in before)
    place %= len(framed) + 1
    for sent in (framed, framed[:place], framed[:place] + more + framed[place:]):
        made = ChunkPosition()
        if made.skips(sent):
            passed = Parsed(sent + raw)
            assert passed.complete
            assert passed.body == Parsed(sent).body + b"".join(data)
            assert made.to_boundary(MOST) == b""
        else:
            assert sent != framed


@pytest.mark.parametrize(
    "sent",
    [
        b"0\r\n\r\n",
        b"2\r\nok\r\n0\r\n\r\n",
        b"2\r\nok",
        b"2\r\nok\r",
        b"2\r\nokay",
        b"0x2\r\nok\r\n",
        b"+2\r\nok\r\n",
        b"2;a=b\r\nok\r\n",
        b"2 \r\nok\r\n",
        b" 2\r\nok\r\n",
        b"2\nok\r\n",
        b"2\r\nok\n\n",
        b"\r\n2\r\nok\r\n",
        b"000000002\r\nok\r\n",
    ],
)
def test_what_is_not_plainly_a_whole_chunk_is_for_the_parser(sent: bytes) -> None:
    assert not ChunkPosition().skips(sent)


def test_within_a_chunk_nothing_is_skipped() -> None:
    for begun in (b"2", b"2\r\n", b"9\r\nabc", b"2\r\nok", b"2\r\nok\r", b"0\r\n"):
        made = ChunkPosition()
        made.feed(begun)
        assert not made.skips(b"2\r\nok\r\n")
