"""What the checks of a contract feed to plugins where their author gives nothing better."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from plugin_sdk.messages import End, Headers, Outcome, Principal, Request, Target, Usage
from plugin_sdk.reports import DIMENSIONS, LoadedServer, UsageQuery

TOKEN = "sk-never-to-be-told-5f2c"  # noqa: S105 - nobody's
CALLERS = 50

STREAM = (
    b": a comment\n\n"
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    b'event: delta\nid: 7\ndata: {"choices":[{"index":0,"delta":{"content":"Gr\xc3\xbc\xc3\x9fe "}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"to ada@exam"}}]}\r\n\r\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"ple.com \xf0\x9f\x8c\x8d 4111 1111"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":" 1111 1111"},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9,"total_tokens":14}}\n\n'
    b"data: [DONE]\n\n"
)

TARGETS = (
    Target(name="a", base_url="http://127.0.0.1:1", model="qwen", in_flight=2),
    Target(name="b", base_url="http://127.0.0.1:2", model="qwen", weight=3),
    Target(name="cold", base_url="", ready=False),
)

OUTCOMES = (
    Outcome(model="qwen", status=200, principal="ada", usage=Usage(input_tokens=5, output_tokens=9)),
    Outcome(model=""),
    Outcome(model="qwen", end=End.CLIENT_GONE, usage=None, first_byte_s=None),
    Outcome(model="qwen", end=End.REFUSED, status=429, code="rate_limit_exceeded", streamed=True, cold=True),
    Outcome(model="qwen", end=End.UPSTREAM_FAILED, status=502, duration_s=1e9, bytes_in=2**70, bytes_out=2**70),
    Outcome(model="m\n\0'\"{}%s\ud800", principal="\u202e;DROP TABLE x--", path="/" + "x" * 10_000, status=-1),
    Outcome(model="qwen", duration_s=-1.0, queue_s=math.nan, started_s=math.inf),
    Outcome(model="qwen", usage=Usage(input_tokens=2**70, output_tokens=-1, response_model="\0")),
)

SERVERS = (
    LoadedServer(id="qwen-1", model="qwen", variant="gpu", since_s=1e9, until_s=1e9 + 60, reserved_mb={"gpu-0": 9000}),
    LoadedServer(id="qwen-2", model="qwen", variant="gpu", since_s=1e9, until_s=1e9, ended=True),
    LoadedServer(id="m'\0\ud800", model="m'\0\ud800", variant="", since_s=1e9, until_s=1e9 - 5),
)

QUERIES = (
    UsageQuery(),
    UsageQuery(by=("model", "principal", "day"), since_s=0.0),
    UsageQuery(model="m*'\0\ud800[", principal="%;--", since_s=-1.0, until_s=1e18),
    UsageQuery(since_s=5.0, until_s=4.0),
    UsageQuery(by=("no such thing",)),
    *(UsageQuery(by=(name,)) for name in DIMENSIONS),
)

TAILS = (
    b"",
    b"\0\xff\xfe",
    b"{",
    b"null",
    b"[]",
    b'{"usage": null}',
    b'{"usage": 7}',
    b'{"usage": {"prompt_tokens": "many"}}',
    b'{"usage": {"prompt_tokens": -5, "completion_tokens": 1e99}}',
    b"[" * 50_000,
    b'data: {"usage": {\n\n',
    b'data: [DONE]\n\ndata: {"usage": []}\n\n',
    STREAM,
    STREAM[37:],
)

TOKENS = ("", "x", "Bearer", "a.b.c", "eyJhbGciOiJub25lIn0.e30.", "\xff\xfe", "' OR '1'='1", "x" * 10_000)


def request() -> Request:
    """A chat request with a token that nobody knows."""
    plain = Request(
        method="POST",
        path="/v1/chat/completions",
        headers=Headers(((b"content-type", b"application/json"),)),
        body=b'{"model":"qwen","messages":[{"role":"user","content":"Hello"}]}',
        model="qwen",
        requested_model="qwen",
        mode="chat",
        client="127.0.0.1",
    )
    return with_token(plain, TOKEN)


def with_token(request: Request, token: str) -> Request:
    """The request of somebody who has this token."""
    others = tuple(pair for pair in request.headers.raw if pair[0].lower() not in (b"authorization", b"x-api-key"))
    raw = (*others, (b"authorization", b"Bearer " + token.encode("latin-1")))
    return msgspec.structs.replace(request, headers=Headers(raw))


def marked(request: Request, word: str) -> Request:
    """The request of another caller, with a word all over it."""
    try:
        body: Any = msgspec.json.decode(request.body)
    except msgspec.DecodeError:
        body = None  # a form, say: then the headers have to do
    changed = msgspec.json.encode(body | {"user": word}) if isinstance(body, dict) else request.body
    headers = Headers((*request.headers.raw, (b"x-request-id", word.encode())))
    return msgspec.structs.replace(request, headers=headers, body=changed, principal=Principal(word))


def caller(number: int) -> str:
    """A word that is found in nobody else's request."""
    return f"caller-{number:04}-of-the-contract"


def stream(word: str) -> list[bytes]:
    """The pieces of a stream that has the word in it."""
    encoded = word.encode()
    return [
        b'data: {"choices":[{"delta":{"content":"for ' + encoded[:9],
        encoded[9:] + b'"}}]}\n\ndata: {"choices":[{"delta":{"content":"and ' + encoded + b'"}}]}\n\n',
        b"data: [DONE]\n\n",
    ]


REQUEST = request()  # known by its identity: whoever gives another one says that it is admitted
