"""A head that is known is the very same one, but for the digits of the length; everything else is the parser's."""

from __future__ import annotations

import pytest

from sidecar.mechanism.repeats import MISSES, Repeats, with_length


def request(body: bytes, *, extra: bytes = b"", length: bytes | None = None) -> bytes:
    told = b"%d" % len(body) if length is None else length
    return (
        b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: " + told + b"\r\nAccept: */*" + extra + b"\r\n\r\n" + body
    )


def known(body: bytes = b"hello") -> Repeats:
    repeats = Repeats()
    assert repeats.learn(request(body), len(body))
    return repeats


@pytest.mark.parametrize("body", [b"hello", b"", b"x" * 100_000, b"\r\n\r\nContent-Length: 7\r\n\r\n"])
def test_the_same_head_with_another_length_is_known(body: bytes) -> None:
    repeats = known()
    assert repeats.body_of(request(body)) == body
    assert repeats.length == len(body)


@pytest.mark.parametrize(
    "data",
    [
        request(b"hello")[:-1],  # not whole
        request(b"hello") + b"x",  # and something more
        request(b"hello") + request(b"hello"),
        request(b"hello", extra=b"\r\nX: y"),
        request(b"hello", length=b"+5"),
        request(b"hello", length=b"5 "),
        request(b"hello", length=b"5, 5"),
        request(b"hello", length=b""),
        request(b"hello", length=b"0x5"),
        request(b"hello", length=b"\xd9\xa5"),  # a digit, but not in ASCII
        request(b"hello").replace(b"POST", b"post"),
        request(b"hello").replace(b"Content-Length", b"content-length"),
        b"\r\n" + request(b"hello"),
        b"",
    ],
)
def test_anything_else_is_not(data: bytes) -> None:
    assert known().body_of(data) is None


@pytest.mark.parametrize(
    ("data", "length"),
    [
        (request(b"hello")[:-1], 5),
        (request(b"hello") + b"more", 5),
        (b"Accept: */*\r\nContent-Length: 5\r\n\r\nhello"[1:], 4),  # no whole message
        (b"\r\n" + request(b"hello"), 5),
        (b"POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0),
    ],
)
def test_what_is_not_one_whole_message_with_a_length_is_not_learnt(data: bytes, length: int) -> None:
    repeats = Repeats()
    assert not repeats.learn(data, length)
    assert repeats.body_of(data) is None


def test_heads_that_are_never_the_same_are_given_up() -> None:
    repeats = Repeats()
    for number in range(MISSES):
        assert repeats.learn(request(b"a", extra=b"\r\nX-Id: %d" % number), 1)
    assert not repeats.learn(request(b"a"), 1)
    assert repeats.body_of(request(b"a")) is None


def test_one_that_comes_again_now_and_then_is_not_given_up() -> None:
    repeats = Repeats()
    for number in range(4 * MISSES):
        data = request(b"a", extra=b"\r\nX-Date: %d" % number)
        assert repeats.learn(data, 1)
        assert repeats.body_of(data) == b"a"


def test_the_length_among_the_headers_is_put_right_in_its_place() -> None:
    headers = [(b"A", b"1"), (b"content-LENGTH", b"5"), (b"B", b"2")]
    assert with_length(headers, 70) == [(b"A", b"1"), (b"content-LENGTH", b"70"), (b"B", b"2")]
