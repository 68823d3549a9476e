"""Heads of servers' answers: where the body ends (RFC 9112, 6.3), and what of them is not of the connection alone."""

from __future__ import annotations

import msgspec

from sidecar.mechanism.exchanges import Framing
from sidecar.mechanism.hop_by_hop import HOP_BY_HOP

Pair = tuple[bytes, bytes]

HEAD_END = b"\r\n\r\n"

_LOOKED_AT = (HOP_BY_HOP - {b"trailer"}) | {b"content-length", b"content-type"}
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_PLAIN = (b"close,", b"keep-alive,")  # which name no other headers
_BY_STATUS = {101: Framing.TUNNEL, 204: Framing.NONE, 304: Framing.NONE}  # whatever the headers say


class AnswerHead(msgspec.Struct, frozen=True, gc=False):
    """passed_on: the headers that are not of this connection alone, and those that tell of the framing.

    content_type: in lower case. length: of the body, if it was told. unfit: why the answer cannot be used, or "".
    """

    framing: Framing
    passed_on: list[Pair]
    content_type: bytes
    length: int
    unfit: str


def read_head(status: int, headers: list[Pair], *, upgrade: bool) -> AnswerHead:
    """upgrade: another protocol was asked for."""
    framing, named, passed_on = Framing.CLOSE, b"", []
    content_type, length, unfit = b"", 0, ""
    for pair in headers:
        name = pair[0].lower()
        if name not in _LOOKED_AT:
            passed_on.append(pair)
        elif name == b"content-length":
            passed_on.append(pair)
            length = int(pair[1])
            framing = Framing.LENGTH
        elif name == b"content-type":
            passed_on.append(pair)
            content_type = pair[1].lower()
        elif name == b"transfer-encoding":
            passed_on.append(pair)
            if framing is Framing.CHUNKED or pair[1].strip(b" \t").lower() != b"chunked":
                unfit = "it uses a transfer coding that is not understood"
            framing = Framing.CHUNKED
        elif name == b"connection":
            named += pair[1].lower() + b","
    if named and named not in _PLAIN:
        passed_on = _without(passed_on, named)
    if status == 101 and not upgrade:
        unfit = "it switched to another protocol, which nobody asked for"
    return AnswerHead(_BY_STATUS.get(status, framing), passed_on, content_type, length, unfit)


def after_heads(data: bytes, count: int) -> bytes | None:
    """What follows so many heads; None if one of them has no end."""
    end = 0
    for _ in range(count):
        while data[end : end + 1] in (b"\r", b"\n"):  # the parser passes over empty lines before a head
            end += 1
        found = data.find(HEAD_END, end)
        if found < 0:
            return None
        end = found + len(HEAD_END)
    return data[end:]


def without_lines(data: bytes) -> bytes:
    """Without empty lines before a head."""
    return data.lstrip(b"\r\n") if data[:1] in (b"\r", b"\n") else data


def _without(headers: list[Pair], named: bytes) -> list[Pair]:
    """Without those that Connection names (RFC 9110, 7.6.1); but nobody can do without those that tell the end."""
    names = {token.strip() for token in named.split(b",")} - _FRAMING
    return [pair for pair in headers if pair[0].lower() not in names]
