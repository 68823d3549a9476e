"""Heads of requests, where a proxy has to be stricter than a parser: what others might read in another way is refused.

RFC 9112 (HTTP/1.1), 11.2: a message that is passed on must mean the same to everybody who reads it.
"""

from __future__ import annotations

import re

import httptools

from sidecar.mechanism.upstream import Pair

HEADERS_MOST = 200
HEAD_BYTES = 64 * 1024

_TARGET = re.compile(rb"[\x21\x22\x24-\x7e]+")  # no fragment, no spaces, no controls, nothing beyond ASCII
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+;=%:\[\]-]*")


class BadRequestError(Exception):
    """What has come is no request that could be answered, or passed on."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def checked(version: str, headers: list[Pair]) -> tuple[bool, bool]:
    """(it is HTTP/1.1, the client expects 100-continue). Raises BadRequestError.

    Space at the end of values, which belongs to none (RFC 9112, 5.1), is taken away in place.
    """
    http11 = version == "1.1"
    if not http11 and version != "1.0":
        raise BadRequestError(505, f"HTTP/{version} is not spoken here")
    _check_size(headers)
    hosts, expects = 0, False
    for index, (name, value) in enumerate(headers):
        if value[-1:] in (b" ", b"\t"):
            value = value.rstrip(b" \t")  # noqa: PLW2901 - from here on it is without
            headers[index] = (name, value)
        if len(name) not in _LENGTHS:
            continue
        lower = name.lower()
        if lower == b"host":
            hosts += 1
            _check_host(value)
        elif lower == b"transfer-encoding":
            _check_coding(value, http11)
        elif lower == b"expect":
            expects = _continue(value)
    if hosts > 1 or (http11 and not hosts):
        raise BadRequestError(400, "expected one Host header")  # RFC 9112, 3.2
    return http11, expects


_LENGTHS = frozenset(map(len, ("host", "transfer-encoding", "expect")))


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


def _check_size(headers: list[Pair]) -> None:
    if len(headers) > HEADERS_MOST:
        raise BadRequestError(431, f"more than {HEADERS_MOST} headers")
    if sum(len(name) + len(value) for name, value in headers) > HEAD_BYTES:
        raise BadRequestError(431, f"the headers have more than {HEAD_BYTES} bytes")


def _check_host(value: bytes) -> None:
    if not _HOST.fullmatch(value):
        raise BadRequestError(400, "the Host header is not a host")


def _check_coding(value: bytes, http11: bool) -> None:
    if not http11:
        raise BadRequestError(400, "HTTP/1.0 has no Transfer-Encoding")  # RFC 9112, 6.1
    if value.lower() != b"chunked":
        raise BadRequestError(501, "no Transfer-Encoding but chunked is understood")


def _continue(value: bytes) -> bool:
    if value.lower() != b"100-continue":
        raise BadRequestError(417, "nothing but 100-continue can be expected")
    return True
