"""Bytes that two parsers could take for different requests: refused, or forwarded in the one form that nobody mistakes.

After each of these comes a second request, the smuggled one, which must reach a server only where the bytes, by the
letter of RFC 9112, are two requests. The judge of what arrived is h11, and a strict reader of heads on top.
"""

from __future__ import annotations

import contextlib
import enum

import msgspec
import pytest

from tests.conformance.judge import requests, strict_head
from tests.conformance.upstream import Upstream, head_of
from tests.conformance.world import Client, World, answer, body_of, chunked, post

BODY = body_of()
EVIL = post(body_of(rest=',"evil":1'), "X-Evil: 1")
HOST = b"Host: here\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKS = chunked(BODY)
TE = b"Transfer-Encoding: chunked\r\n"
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"


class Expect(enum.Enum):
    """REFUSED: an error and the connection's end; nothing arrives. TWO: both are good requests.

    EITHER: refused, or served as what h11 makes of it.
    """

    REFUSED = enum.auto()
    TWO = enum.auto()
    EITHER = enum.auto()


class Case(msgspec.Struct, frozen=True):
    """What is sent before the smuggled request, and what must come of it."""

    name: str
    data: bytes
    expect: Expect = Expect.REFUSED


def head(*lines: bytes, line: bytes = LINE, host: bytes = HOST) -> bytes:
    """A head whose lines are whatever they are."""
    return line + host + b"".join(lines) + b"\r\n"


def te(value: bytes, name: bytes = b"Transfer-Encoding: ") -> bytes:
    """A chunked message whose Transfer-Encoding is written like this."""
    return head(name + value + b"\r\n") + CHUNKS


def cl(value: bytes, name: bytes = b"Content-Length: ") -> bytes:
    """A message whose Content-Length is written like this."""
    return head(name + value + b"\r\n") + BODY


def chunk(size: bytes, end: bytes = b"\r\n", data: bytes = BODY) -> bytes:
    """A chunked message whose first chunk's size line is this."""
    return head(TE) + size + end + data + b"\r\n0\r\n\r\n"


SIZE = b"%x" % len(BODY)
NUMBER = b"%d" % len(BODY)

CASES = (
    # --- two words on the length: RFC 9112, 6.1 and 6.3
    Case("CL.TE", head(LENGTH, TE) + CHUNKS),
    Case("TE.CL", head(TE, LENGTH) + CHUNKS),
    Case("CL.TE with a short length", head(b"Content-Length: 4\r\n", TE) + CHUNKS),
    Case("CL.TE with the length of nothing", head(b"Content-Length: 0\r\n", TE) + CHUNKS),
    Case("CL.TE with a bad coding", head(LENGTH, b"Transfer-Encoding: xchunked\r\n") + BODY),
    Case("CL and an empty TE", head(LENGTH, b"Transfer-Encoding:\r\n") + BODY),
    # --- Transfer-Encoding in disguise
    Case("TE twice, chunked", head(TE, TE) + CHUNKS),
    Case("TE.TE, identity last", head(TE, b"Transfer-Encoding: identity\r\n") + CHUNKS),
    Case("TE.TE, identity first", head(b"Transfer-Encoding: identity\r\n", TE) + CHUNKS),
    Case("TE.TE, one of them spaced", head(TE, b"Transfer-Encoding : x\r\n") + CHUNKS),
    Case("TE chunked, identity", te(b"chunked, identity")),
    Case("TE identity, chunked", te(b"identity, chunked")),
    Case("TE chunked, chunked", te(b"chunked, chunked")),
    Case("TE gzip, chunked", te(b"gzip, chunked")),
    Case("TE gzip", te(b"gzip")),
    Case("TE identity", te(b"identity")),
    Case("TE identity with a length", head(LENGTH, b"Transfer-Encoding: identity\r\n") + BODY),
    Case("TE xchunked", te(b"xchunked")),
    Case("TE chunkedx", te(b"chunkedx")),
    Case("TE quoted", te(b'"chunked"')),
    Case("TE with a parameter", te(b"chunked;a=b")),
    Case("TE with a vertical tab", te(b"\x0bchunked")),
    Case("TE with a nul", te(b"chunked\x00")),
    Case("TE in capitals", te(b"CHUNKED"), Expect.TWO),
    Case("TE in odd case", te(b"cHuNkEd", b"tRANSFER-eNCODING: "), Expect.TWO),
    Case("TE with spaces around", te(b"  \t chunked \t "), Expect.EITHER),
    Case("TE without space", te(b"chunked", b"Transfer-Encoding:"), Expect.TWO),
    Case("TE folded", te(b"\r\n chunked")),
    Case("TE folded with a tab", te(b"\r\n\tchunked")),
    Case("TE with a space before the colon", te(b"chunked", b"Transfer-Encoding : ")),
    Case("TE with a tab before the colon", te(b"chunked", b"Transfer-Encoding\t: ")),
    Case("TE after a space", te(b"chunked", b" Transfer-Encoding: ")),
    Case("TE behind a bare CR", te(b"chunked", b"X: y\rTransfer-Encoding: ")),
    Case("TE behind a bare LF", te(b"chunked", b"X: y\nTransfer-Encoding: "), Expect.EITHER),
    Case("TE with an underscore", head(b"Transfer_Encoding: chunked\r\n", LENGTH) + BODY, Expect.TWO),
    Case("TE from HTTP/1.0", head(TE, line=LINE.replace(b"1.1", b"1.0")) + CHUNKS, Expect.EITHER),
    Case("TE and CL from HTTP/1.0", head(TE, LENGTH, line=LINE.replace(b"1.1", b"1.0")) + CHUNKS),
    # --- Content-Length: 1*DIGIT (RFC 9110, 8.6)
    Case("CL twice, different", head(LENGTH, b"Content-Length: 4\r\n") + BODY),
    Case("CL twice, the short one first", head(b"Content-Length: 4\r\n", LENGTH) + BODY),
    Case("CL twice, the same", head(LENGTH, LENGTH) + BODY, Expect.EITHER),
    Case("CL as a list, different", cl(NUMBER + b", 4")),
    Case("CL as a list, the same", cl(NUMBER + b", " + NUMBER), Expect.EITHER),
    Case("CL with a plus", cl(b"+" + NUMBER)),
    Case("CL with a minus", cl(b"-" + NUMBER)),
    Case("CL minus nothing", head(b"Content-Length: -0\r\n")),
    Case("CL in hex", cl(b"0x" + SIZE)),
    Case("CL with a space within", cl(NUMBER[:1] + b" " + NUMBER[1:])),
    Case("CL with an underscore within", cl(NUMBER[:1] + b"_" + NUMBER[1:])),
    Case("CL with a point", cl(NUMBER + b".0")),
    Case("CL with an exponent", cl(b"1e1")),
    Case("CL with letters behind", cl(NUMBER + b"abc")),
    Case("CL quoted", cl(b'"' + NUMBER + b'"')),
    Case("CL past 64 bits", cl(b"%d" % (2**64 + len(BODY)))),
    Case("CL past 32 bits", cl(b"%d" % (2**32 + len(BODY)))),
    Case("CL of nothing", cl(b"")),
    Case("CL with a nul", cl(NUMBER + b"\x00")),
    Case("CL in wide digits", cl("\uff11\uff17".encode())),
    Case("CL with leading zeros", cl(b"000" + NUMBER), Expect.EITHER),
    Case("CL with spaces around", cl(b"\t " + NUMBER + b" \t"), Expect.TWO),
    Case("CL folded", cl(b"\r\n " + NUMBER)),
    Case("CL with a space before the colon", cl(NUMBER, b"Content-Length : ")),
    Case("CL behind a bare CR", cl(NUMBER, b"X: y\rContent-Length: ")),
    Case("CL behind a bare LF", cl(NUMBER, b"X: y\nContent-Length: "), Expect.EITHER),
    # --- chunks: RFC 9112, 7.1
    Case("chunk size with 0x", chunk(b"0x" + SIZE)),
    Case("chunk size with a minus", chunk(b"-" + SIZE)),
    Case("chunk size with a plus", chunk(b"+" + SIZE)),
    Case("chunk size past 64 bits", chunk(b"1" + b"0" * 15 + SIZE)),
    Case("chunk size past all bounds", chunk(b"f" * 64)),
    Case("chunk size of nothing", chunk(b"")),
    Case("chunk size with a space before", chunk(b" " + SIZE)),
    Case("chunk size with a space behind", chunk(SIZE + b" "), Expect.EITHER),
    Case("chunk size with words behind", chunk(SIZE + b" abc")),
    Case("chunk size with an underscore", chunk(b"1_1")),
    Case("chunk size with a nul", chunk(SIZE + b"\x00")),
    Case("chunk size in capitals", chunk(SIZE.upper()), Expect.TWO),
    Case("chunk size with leading zeros", chunk(b"000" + SIZE), Expect.TWO),
    Case("chunk size line with a bare LF", chunk(SIZE, b"\n")),
    Case("chunk size line with a bare CR", chunk(SIZE, b"\r")),
    Case("chunk size line with two CRs", chunk(SIZE, b"\r\r\n")),
    Case("chunk extension", chunk(SIZE + b';name=value;other="quo;ted"'), Expect.TWO),
    Case("chunk extension with a bare LF", chunk(SIZE + b";a\nb")),
    Case("chunk extension with a bare CR", chunk(SIZE + b";a\rb"), Expect.EITHER),
    Case("chunk extension with a nul", chunk(SIZE + b";a\x00b"), Expect.EITHER),
    Case("chunk extension of 100 KB", chunk(SIZE + b";" + b"a" * 100_000), Expect.EITHER),
    Case("chunk data too long", chunk(b"%x" % (len(BODY) - 1))),
    Case("chunk data too short", chunk(b"%x" % (len(BODY) + 1))),
    Case("chunk without its line end", head(TE) + SIZE + b"\r\n" + BODY + b"0\r\n\r\n"),
    Case("chunk ends with a bare LF", head(TE) + SIZE + b"\r\n" + BODY + b"\n0\r\n\r\n"),
    Case("chunk ends with two other bytes", head(TE) + SIZE + b"\r\n" + BODY + b"XX0\r\n\r\n"),
    Case("last chunk ends with a bare LF", head(TE) + SIZE + b"\r\n" + BODY + b"\r\n0\n\n"),
    Case("last chunk of many zeros", head(TE) + SIZE + b"\r\n" + BODY + b"\r\n0000\r\n\r\n", Expect.TWO),
    Case("trailer that names a length", head(TE) + chunked(BODY, trailers=b"Content-Length: 4\r\n"), Expect.EITHER),
    Case("trailer that names a host", head(TE) + chunked(BODY, trailers=b"Host: evil\r\n"), Expect.EITHER),
    Case("trailer with a space before the colon", head(TE) + chunked(BODY, trailers=b"X : 4\r\n")),
    Case("trailer without a colon", head(TE) + chunked(BODY, trailers=b"nonsense\r\n")),
    # --- names and values: RFC 9112, 5
    Case("a name with a space", head(b"X Y: 1\r\n", LENGTH) + BODY),
    Case("no name", head(b": 1\r\n", LENGTH) + BODY),
    Case("no colon", head(b"nonsense\r\n", LENGTH) + BODY),
    Case("a name with a nul", head(b"X\x00: 1\r\n", LENGTH) + BODY),
    Case("a name with brackets", head(b"X(y): 1\r\n", LENGTH) + BODY),
    Case("a name of other letters", head("Xé: 1\r\n".encode(), LENGTH) + BODY),
    Case("a name of odd tokens", head(b"!#$%&'*+-.^_`|~: 1\r\n", LENGTH) + BODY, Expect.TWO),
    Case("a value with a nul", head(b"X: a\x00b\r\n", LENGTH) + BODY),
    Case("a value with a bare CR", head(b"X: a\rb\r\n", LENGTH) + BODY),
    Case("a value with a control byte", head(b"X: a\x01b\r\n", LENGTH) + BODY, Expect.EITHER),
    Case("a value with a delete", head(b"X: a\x7fb\r\n", LENGTH) + BODY, Expect.EITHER),
    Case("a value of other letters", head(b"X: \xc3\xa9\xff\r\n", LENGTH) + BODY, Expect.TWO),
    Case("a folded value", head(b"X: a\r\n b\r\n", LENGTH) + BODY),
    Case("a folded first line", head(LENGTH, line=LINE + b" X: 1\r\n") + BODY),
    Case("line ends of bare LF", (head(LENGTH)).replace(b"\r\n", b"\n") + BODY, Expect.EITHER),
    Case("an end of bare LF", head(LENGTH)[:-2] + b"\n" + BODY, Expect.EITHER),
    Case("a head that ends with two CRs", head(LENGTH)[:-2] + b"\r\r\n" + BODY),
    Case("a header of 200 KB", head(b"X: " + b"a" * 200_000 + b"\r\n", LENGTH) + BODY),
    Case("20,000 headers", head(b"X: a\r\n" * 20_000, LENGTH) + BODY),
    Case("100 headers", head(*(b"X-%d: a\r\n" % number for number in range(100)), LENGTH) + BODY, Expect.TWO),
    # --- who is asked, and for what: RFC 9112, 3
    Case("no host", head(LENGTH, host=b"") + BODY),
    Case("two hosts", head(LENGTH, host=HOST + b"Host: evil\r\n") + BODY),
    Case("the same host twice", head(LENGTH, host=HOST * 2) + BODY),
    Case("an empty host", head(LENGTH, host=b"Host:\r\n") + BODY, Expect.EITHER),
    Case("a host with a space", head(LENGTH, host=b"Host: here evil\r\n") + BODY),
    Case("a host with a path", head(LENGTH, host=b"Host: here/evil\r\n") + BODY),
    Case("a host with a user", head(LENGTH, host=b"Host: evil@here\r\n") + BODY),
    Case("a host as a list", head(LENGTH, host=b"Host: here, evil\r\n") + BODY),
    Case(
        "an absolute target",
        head(LENGTH, line=b"POST http://here/v1/chat/completions HTTP/1.1\r\n") + BODY,
        Expect.EITHER,
    ),
    Case(
        "an absolute target elsewhere",
        head(LENGTH, line=b"POST http://evil/v1/chat/completions HTTP/1.1\r\n") + BODY,
        Expect.EITHER,
    ),
    Case("a target with a fragment", head(LENGTH, line=LINE.replace(b" HTTP", b"#x HTTP")) + BODY, Expect.EITHER),
    Case("a target with a space", head(LENGTH, line=LINE.replace(b" HTTP", b" x HTTP")) + BODY),
    Case("a target with a nul", head(LENGTH, line=LINE.replace(b" HTTP", b"?\x00 HTTP")) + BODY),
    Case("a target with a bare CR", head(LENGTH, line=LINE.replace(b" HTTP", b"?\r HTTP")) + BODY),
    Case(
        "a target of other letters", head(LENGTH, line=LINE.replace(b" HTTP", b"?\xc3\xa9 HTTP")) + BODY, Expect.EITHER
    ),
    Case("a target without a slash", head(LENGTH, line=LINE.replace(b"/v1", b"v1")) + BODY),
    Case(
        "a request line with two spaces",
        head(LENGTH, line=LINE.replace(b"POST ", b"POST  ")) + BODY,
        Expect.EITHER,
    ),
    Case("a request line with a tab", head(LENGTH, line=LINE.replace(b"POST ", b"POST\t")) + BODY),
    Case("a request line with a space before", head(LENGTH, line=b" " + LINE) + BODY),
    Case("a request line with a space behind", head(LENGTH, line=LINE.replace(b"1.1\r", b"1.1 \r")) + BODY),
    Case("a version without a point", head(LENGTH, line=LINE.replace(b"1.1", b"11")) + BODY),
    Case("a version of two digits", head(LENGTH, line=LINE.replace(b"1.1", b"1.10")) + BODY),
    Case("version 0.9", head(LENGTH, line=LINE.replace(b"1.1", b"0.9")) + BODY),
    Case("version 1.2", head(LENGTH, line=LINE.replace(b"1.1", b"1.2")) + BODY, Expect.EITHER),
    Case("version 2.0", head(LENGTH, line=LINE.replace(b"1.1", b"2.0")) + BODY),
    Case("a version in small letters", head(LENGTH, line=LINE.replace(b"HTTP", b"http")) + BODY),
    Case("no version", head(LENGTH, line=LINE.replace(b" HTTP/1.1", b"")) + BODY),
    Case("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    Case("a method with a bracket", head(LENGTH, line=LINE.replace(b"POST", b"PO[ST")) + BODY),
    Case("a method in small letters", head(LENGTH, line=LINE.replace(b"POST", b"post")) + BODY, Expect.EITHER),
    Case("CONNECT", b"CONNECT evil:80 HTTP/1.1\r\n" + HOST + b"\r\n"),
    Case("GET with a hidden body", b"GET /-/healthy HTTP/1.1\r\n" + HOST + LENGTH + b"\r\n" + BODY, Expect.EITHER),
    Case(
        "an upgrade with a hidden request",
        head(LENGTH, b"Connection: upgrade\r\n", b"Upgrade: websocket\r\n") + BODY,
        Expect.EITHER,
    ),
    Case("an upgrade to HTTP/2", head(LENGTH, b"Connection: upgrade\r\n", b"Upgrade: h2c\r\n") + BODY, Expect.EITHER),
    Case("Connection names the length", head(LENGTH, b"Connection: content-length\r\n") + BODY, Expect.TWO),
    Case("Connection names the coding", head(TE, b"Connection: transfer-encoding\r\n") + CHUNKS, Expect.TWO),
    Case("ten empty lines before", b"\r\n" * 10 + head(LENGTH) + BODY, Expect.TWO),
)


def served(here: World, data: bytes) -> tuple[Client, list[bytes], bool]:
    """What reached the upstream of these bytes, and whether the sidecar has closed the connection by itself."""
    client = here.connect()
    client.send(data)
    here.barrier()
    before = -1
    while before != len(here.quiet()):  # the second request follows when the first is answered
        before = len(here.quiet())
        here.barrier()
    seen = here.quiet()
    client.socket.settimeout(0.002)
    with contextlib.suppress(TimeoutError):  # it is open, and has nothing more to say
        client.rest()
    return client, [asked.raw for asked in seen if asked.whole], client.ended


def check_forwarded(raw: list[bytes], upstream: Upstream, sent: bytes) -> None:
    """What arrived is, without any doubt, what h11 makes of what was sent: the first of it, in its order."""
    assert not upstream.errors
    meant = requests(sent).messages
    for one in raw:
        assert strict_head(head_of(one)) == "", one
        (arrived,) = requests(one).messages
        while meant and meant[0].body != arrived.body:
            meant.pop(0)
        assert meant, f"nobody sent this: {one!r}"
        assert meant.pop(0).method == arrived.method


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_is_smuggled(here: World, case: Case) -> None:
    here.upstream.answer = answer()
    client, raw, ended = served(here, case.data + EVIL)
    check_forwarded(raw, here.upstream, case.data + EVIL)
    if case.expect is Expect.TWO:
        assert len(raw) == 2, client.received
    if case.expect is Expect.REFUSED:
        assert raw == []
        assert ended, "the connection is kept, although nobody knows where the next request begins"
        assert client.received == b"" or client.received.startswith(b"HTTP/1.1 4") or b"HTTP/1.1 50" in client.received


def test_there_are_more_than_forty_ways() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40
