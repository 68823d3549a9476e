"""Heads of requests, where a proxy has to be stricter than a parser: what others might read in another way is refused.

RFC 9112 (HTTP/1.1), 11.2: a message that is passed on must mean the same to everybody who reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import httptools

from sidecar.mechanism.upstream import Pair
from sidecar.surfaces.dataplane.request import DROPPED

HEADERS_MOST = 200
HEAD_BYTES = 64 * 1024

_TARGET = re.compile(rb"[\x21\x22\x24-\x7e]+")  # no fragment, no spaces, no controls, nothing beyond ASCII
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+;=%:\[\]-]*")


class BadRequestError(Exception):
    """What has come is no request that could be answered, or passed on."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Facts:
    """What matters of a head. named: what Connection names. passed_on: the headers for a server, in their order.

    request_id: what the client calls the request, if that can be written anywhere.
    """

    __slots__ = (
        "content_type",
        "expects_continue",
        "hosts",
        "http11",
        "length",
        "named",
        "passed_on",
        "request_id",
        "traced",
        "upgrade",
    )

    def __init__(self, http11: bool) -> None:
        self.http11 = http11
        self.hosts = 0
        self.named = b""
        self.length = 0
        self.content_type = ""
        self.expects_continue = False
        self.traced = False
        self.request_id = ""
        self.upgrade = b""
        self.passed_on: list[Pair] = []


def read(version: str, headers: list[Pair]) -> Facts:
    """Raises BadRequestError.

    Space at the end of values, which belongs to none (RFC 9112, 5.1), is taken away in place.
    """
    facts = Facts(version == "1.1")
    if not facts.http11 and version != "1.0":
        raise BadRequestError(505, f"HTTP/{version} is not spoken here")
    if len(headers) > HEADERS_MOST:
        raise BadRequestError(431, f"more than {HEADERS_MOST} headers")
    passed_on = facts.passed_on
    for index, pair in enumerate(headers):
        if pair[1][-1:] in _SPACES:
            pair = headers[index] = (pair[0], pair[1].rstrip(b" \t"))  # noqa: PLW2901 - from here on without it
        note = _NOTES.get(pair[0].lower())
        if note is None:
            passed_on.append(pair)
        else:
            note(facts, pair)
    if facts.hosts > 1 or (facts.http11 and not facts.hosts):
        raise BadRequestError(400, "expected one Host header")  # RFC 9112, 3.2
    if facts.named and facts.named.lower() not in _PLAIN:
        facts.passed_on = _without(passed_on, facts.named)
    return facts


def check_size(headers: list[Pair]) -> None:
    """Raises BadRequestError if they are too large; there is no need to ask if they came in one read that was not."""
    if sum(len(name) + len(value) for name, value in headers) > HEAD_BYTES:
        raise BadRequestError(431, f"the headers have more than {HEAD_BYTES} bytes")


def target(url: bytes) -> tuple[str, str, str]:
    """The target as a server gets it, its path and its query, as they came. Raises BadRequestError."""
    if not _TARGET.fullmatch(url):
        raise BadRequestError(400, "the request's target is not as it should be")
    if not url.startswith(b"/") and url != b"*":
        url = _origin_form(url)
    text = url.decode("ascii")
    path, _, query = text.partition("?")
    return text, path, query


def _origin_form(url: bytes) -> bytes:
    """Of an absolute one, as a proxy gets it (RFC 9112, 3.2.2)."""
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserError:
        parsed = None
    if parsed is None or not parsed.host:
        raise BadRequestError(400, "the request's target is not as it should be")
    return (parsed.path or b"/") + (b"?" + parsed.query if parsed.query else b"")


def _host(facts: Facts, pair: Pair) -> None:
    facts.hosts += 1
    if not _HOST.fullmatch(pair[1]):
        raise BadRequestError(400, "the Host header is not a host")


def _connection(facts: Facts, pair: Pair) -> None:
    facts.named += b"," + pair[1]


def _without(headers: list[Pair], named: bytes) -> list[Pair]:
    """Without those that Connection names (RFC 9110, 7.6.1)."""
    names = {token.strip().lower() for token in named.split(b",")}
    return [pair for pair in headers if pair[0].lower() not in names]


def _coding(facts: Facts, pair: Pair) -> None:
    if not facts.http11:
        raise BadRequestError(400, "HTTP/1.0 has no Transfer-Encoding")  # RFC 9112, 6.1
    if pair[1].lower() != b"chunked":
        raise BadRequestError(501, "no Transfer-Encoding but chunked is understood")


def _expect(facts: Facts, pair: Pair) -> None:
    if pair[1].lower() != b"100-continue":
        raise BadRequestError(417, "nothing but 100-continue can be expected")
    facts.expects_continue = facts.http11


def _length(facts: Facts, pair: Pair) -> None:
    facts.length = int(pair[1])


def _content_type(facts: Facts, pair: Pair) -> None:
    facts.content_type = facts.content_type or pair[1].decode("latin-1")
    facts.passed_on.append(pair)


def _traced(facts: Facts, pair: Pair) -> None:
    facts.traced = True
    facts.passed_on.append(pair)


def _request_id(facts: Facts, pair: Pair) -> None:
    if _ID.fullmatch(pair[1]):
        facts.request_id = pair[1].decode("ascii")
    facts.passed_on.append(pair)


def _upgrade(facts: Facts, pair: Pair) -> None:
    facts.upgrade = pair[1].lower()


def _nothing(_facts: Facts, _pair: Pair) -> None:
    """It is not passed on, and says nothing here."""


_Note = Callable[[Facts, Pair], None]

# What to do with a header; all others are passed on.
_NOTES: dict[bytes, _Note] = dict.fromkeys(DROPPED, _nothing) | {
    b"host": _host,
    b"connection": _connection,
    b"transfer-encoding": _coding,
    b"expect": _expect,
    b"content-length": _length,
    b"content-type": _content_type,
    b"traceparent": _traced,
    b"upgrade": _upgrade,
    b"x-request-id": _request_id,
}
_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_SPACES = (b" ", b"\t")
_PLAIN = frozenset((b",close", b",keep-alive"))  # which name no other headers
