"""Makes up messages: good ones in all the ways that RFC 9112 allows, and the same with a few bytes gone wrong."""

from __future__ import annotations

import json
from random import Random

import msgspec

NAMES = ("X-A", "x-a", "Accept", "User-Agent", "X-Long-Name", "Cookie", "Content-Type", "Via", "!#$%&'*+-.^_`|~")
VALUES = (
    "",
    "1",
    "a, b",
    "a  b",
    "text/plain; q=0.5",
    '"quoted \\" text"',
    "caf\xe9",
    "\t tab ",
    "x" * 300,
    "a:b",
    "=,;",
)
TARGETS = ("/v1/chat/completions", "/v1/chat/completions?a=1&b=%20", "/v1/completions", "/v1/messages?x")
REASONS = ("OK", "", "Quite So", "caf\xe9")

# What parsers have been known to disagree about.
TOKENS = (
    *(b"\r\n", b"\n", b"\r", b"\r\n ", b"\r\n\t", b" ", b"\t", b"\0", b"\x0b", b"\x7f", b"\xff", b"\r\r\n", b"\n\n"),
    *(b":", b" :", b": ", b";", b",", b'"', b"0", b"-", b"+", b"0x", b"00", b"f", b"g", b"ffffffffffffffff", b"9" * 20),
    *(b"Content-Length: 0\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: evil\r\n"),
    *(b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Content-Length : 3\r\n"),
    *(b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Connection: x-a\r\n", b"Expect: 100-continue\r\n"),
    *(b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"X: y\rTransfer-Encoding: chunked\r\n", b" folded\r\n"),
    *(b"0\r\n\r\n", b"1\r\nx\r\n", b"5;a=b\r\n", b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2", b"http/1.1", b" HTTP/1.1"),
    *(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n"),
)


class Made(msgspec.Struct, frozen=True):
    """A message, or several. good: nothing is wrong with it, so it must pass."""

    data: bytes
    good: bool


def made_request(random: Random) -> Made:
    """What a client sends on one connection."""
    parts = [_request(random, last=False) for _ in range(random.choice((0, 0, 0, 1, 2)))]
    parts.append(_request(random, last=True))
    return _perhaps_wrong(random, b"".join(parts))


def made_response(random: Random) -> Made:
    """What a server answers to a POST, before it closes the connection."""
    interim = b"".join(
        random.choice((b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n"))
        for _ in range(random.choice((0, 0, 0, 0, 1, 2)))
    )
    return _perhaps_wrong(random, interim + _response(random))


def _request(random: Random, *, last: bool) -> bytes:
    lines = _fields(random)
    extra = {"n": random.randrange(10**6), "s": random.choice(VALUES)}
    body = json.dumps({"model": "plain", **extra}, ensure_ascii=random.random() < 0.5).encode()
    old = last and random.random() < 0.1
    framed, body = _framed(random, body, old)
    lines.insert(random.randrange(len(lines) + 1), framed)
    lines.insert(
        random.randrange(len(lines) + 1), "Host: " + random.choice(("here", "here:80", "[::1]:8080", "127.0.0.1"))
    )
    if random.random() < 0.1:
        lines.append("Expect: 100-continue")
    if last and random.random() < 0.1:
        lines.append("Connection: close")
    version = "1.0" if old else "1.1"
    return _message(f"POST {random.choice(TARGETS)} HTTP/{version}", lines, body)


def _response(random: Random) -> bytes:
    lines = _fields(random)
    if random.random() < 0.3:
        lines.append("Content-Type: text/event-stream")
        body = b"".join(b"data: %d\n\n" % number for number in range(random.randrange(4)))
    else:
        body = bytes(random.randrange(256) for _ in range(random.choice((0, 1, 10, 100))))
    status = random.choice((200, 200, 200, 201, 206, 400, 404, 429, 500, 503, 204, 304))
    line = f"HTTP/1.1 {status} {random.choice(REASONS)}"
    if status in (204, 304):
        return _message(line, lines, b"")
    if random.random() < 0.8:
        framed, body = _framed(random, body, old=False)
        lines.insert(random.randrange(len(lines) + 1), framed)
    if random.random() < 0.1:
        lines.append("Connection: close")
    return _message(line, lines, body)


def _fields(random: Random) -> list[str]:
    lines = [
        f"{random.choice(NAMES)}:{random.choice(('', ' ', '  '))}{random.choice(VALUES)}"
        for _ in range(random.randrange(5))
    ]
    if random.random() < 0.1:
        lines.append(f"Connection: {random.choice(('x-a', 'keep-alive, X-A', 'keep-alive'))}")
    return lines


def _framed(random: Random, body: bytes, old: bool) -> tuple[str, bytes]:
    """The header line that says how long the body is, and the body as it says."""
    if old or random.random() < 0.5:
        return f"{random.choice(('Content-Length', 'content-length'))}: {len(body)}", body
    chunks = []
    while body:
        size = random.randrange(1, len(body) + 1)
        zeros, letters = random.choice(("", "", "0", "000")), random.choice(("x", "X"))
        extension = random.choice(("", "", ";a", ";a=b", ';a="b;c"'))
        chunks.append(f"{zeros}{size:{letters}}{extension}\r\n".encode() + body[:size] + b"\r\n")
        body = body[size:]
    trailers = random.choice((b"", b"", b"X-T: 1\r\n", b"X-T: 1\r\nx-t:2\r\n"))
    coding = random.choice(("Transfer-Encoding: chunked", "transfer-encoding:Chunked"))
    return coding, b"".join(chunks) + b"0\r\n" + trailers + b"\r\n"


def _message(line: str, lines: list[str], body: bytes) -> bytes:
    return "\r\n".join([line, *lines, "", ""]).encode("latin-1") + body


def _perhaps_wrong(random: Random, data: bytes) -> Made:
    if random.random() < 0.3:
        return Made(data, good=True)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        data = _wrong(random, data)
    return Made(data, good=False)


def _wrong(random: Random, data: bytes) -> bytes:
    """With one thing changed. Mostly in the head, where most of the meaning is."""
    head = data.find(b"\r\n\r\n") + 4
    at = random.randrange(head if head > 4 and random.random() < 0.7 else len(data) + 1)
    lines = [place + 2 for place in range(len(data) - 1) if data[place : place + 2] == b"\r\n"]
    match random.randrange(7):
        case 0:
            return data[:at] + random.choice(TOKENS) + data[at:]
        case 1:
            line = random.choice(lines) if lines else at
            return data[:line] + random.choice(TOKENS) + data[line:]
        case 2:
            return data[:at] + data[at + 1 :]
        case 3:
            return data[:at] + bytes((random.randrange(256),)) + data[at + 1 :]
        case 4:
            return data[:at]
        case 5:
            end = at + random.randrange(1, 20)
            return data[:end] + data[at:]
        case _:
            end = min(len(data), at + random.randrange(1, 20))
            return data[:at] + data[end:]
