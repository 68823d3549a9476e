"""Requests whose head comes again: all that anybody sees of them is what it would be, had each been parsed anew."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plugin_sdk import (
    Auth,
    Config,
    End,
    Endpoint,
    Exchange,
    Filter,
    Headers,
    Interface,
    Outcome,
    Principal,
    Reject,
    Request,
    Usage,
    inline,
)
from plugin_sdk import Response as Answer
from sidecar.mechanism.exchanges import UpstreamError
from sidecar.mechanism.sampling import ALWAYS, Sampler
from sidecar.mechanism.spans import Stage
from sidecar.mechanism.traces import Traces
from sidecar.surfaces.dataplane.call import Call
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.quick import Quick
from sidecar.surfaces.dataplane.relaying import Relaying
from sidecar.surfaces.dataplane.turns import KEEP_ALIVE_S, Phase
from tests.servers import http_server
from tests.support import until
from tests.surfaces.world import OK, STREAM, Does, World, answers, ask, chunk, get, inside, message, running, status

JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Served-By: it\r\nContent-Length: %d\r\n\r\n%b"
USAGE = b'{"model": "theirs", "usage": {"prompt_tokens": 3, "completion_tokens": 5}}'
EVENTS = (
    b'data: {"n": 1}\n\n',
    b'data: {"usage": {"prompt_tokens": 3, "completion_tokens": 5}}\n\n',
    b"data: [DONE]\n\n",
)
LAST = b"0\r\n\r\n"
M, RENAMED, WATCHED = b'{"model": "m"}', b'{"model": "renamed"}', b'{"model": "watched"}'
STREAMED = b'{"model": "%b", "stream": true, "stream_options": {"include_usage": true}}'

WAS_QUICK: list[Quick] = []
LOG: list[Any] = []  # what plugins have seen
DOES: dict[str, Callable[[Exchange], Any]] = {}  # what a filter makes of it, by its name and hook
KNOWN: dict[str, Principal] = {}


# They are in what requests that are not quick go through, too (protocol, known, call).
UNMENDED = pytest.mark.xfail(strict=True, reason="a fault that is known, and not yet mended")


class Keys(Auth):
    """Those of the test."""

    @inline
    def authenticate(self, request: Request) -> Principal:
        LOG.append(("auth", seen(request)))
        principal = KNOWN.get(request.bearer_token)
        if principal is None:
            raise Reject(401, "no such key", code="invalid_key")
        return principal


class Watching(Config):
    name: str


class Watch(Filter[Watching]):
    """Writes down all that it sees, and does what the test says."""

    @inline
    def on_request(self, exchange: Exchange) -> Request | Answer | None:
        exchange.state["n"] = exchange.state.get("n", 0) + 1
        found: Request | Answer | None = self._take("on_request", exchange)
        return found

    @inline
    def on_response(self, exchange: Exchange) -> Answer | None:
        exchange.state["n"] = exchange.state.get("n", 0) + 10
        found: Answer | None = self._take("on_response", exchange)
        return found

    @inline
    def on_end(self, exchange: Exchange, outcome: Outcome) -> None:
        self._take("on_end", exchange)
        LOG.append((self.config.name, timeless(outcome)))

    def _take(self, hook: str, exchange: Exchange) -> Any:
        response = exchange.response
        head = None if response is None else (response.status, response.headers.raw, response.streamed, response.body)
        LOG.append((self.config.name, hook, dict(exchange.state), seen(exchange.request), head))
        does = DOES.get(f"{self.config.name}.{hook}")
        return does(exchange) if does is not None else None


class Sorting(Interface):
    """Speaks as nobody else does, on a path that another mode has, too."""

    provides = "sorting"
    endpoints = (Endpoint("/v1/sort", "sort"), Endpoint("/v1/sort", "resort", method="PUT"))

    def error(self, status: int, code: str, message: str, param: str | None = None) -> bytes:
        return b'{"sorting": "%b"}' % code.encode()

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        return Usage(input_tokens=len(tail))


class Shuffling(Interface):
    """The mode that comes first on that path."""

    provides = "shuffling"
    endpoints = (Endpoint("/v1/sort", "shuffle"),)


MORE = """
[plugins.keys]
import = "tests.surfaces.test_quick:Keys"
[plugins.outer]
import = "tests.surfaces.test_quick:Watch"
config = { name = "outer" }
[plugins.inner]
import = "tests.surfaces.test_quick:Watch"
config = { name = "inner" }
[plugins.shuffling]
import = "tests.surfaces.test_quick:Shuffling"
[plugins.sorting]
import = "tests.surfaces.test_quick:Sorting"
[plugins.limits]
import = "sidecar.builtin.limits:Limits"
config = { requests_per_minute = 3 }

[models.renamed]
mode = "chat"
aliases = ["other"]
[[models.renamed.variants]]
url = "URL"
model_name = "org/inner"
api_key = { file = "SECRET" }

[models.watched]
mode = ["chat", "messages"]
chain = ["keys", "outer", "inner"]
[[models.watched.variants]]
url = "URL"

[models.limited]
mode = "chat"
chain = ["limits"]
[[models.limited.variants]]
url = "URL"

[models.counted]
mode = "chat"
count_streams = true
chain = ["outer"]
[[models.counted.variants]]
url = "URL"
model_name = "inner"

[models.sorts]
mode = "sorting"
chain = ["keys", "outer"]
[[models.sorts.variants]]
url = "URL"

[models.embeds]
mode = "embedding"
[[models.embeds.variants]]
url = "URL"
"""


def seen(request: Request) -> Any:
    """All of a request."""
    return msgspec.structs.asdict(request) | {"headers": request.headers.raw}


def timeless(outcome: Outcome) -> dict[str, Any]:
    """All of an outcome but the times, and the ids that are made up for each."""
    found = msgspec.structs.asdict(outcome)
    for name in ("started_s", "duration_s", "queue_s", "trace_id"):
        del found[name]
    found["first_byte_s"] = outcome.first_byte_s is not None
    return found


class Seen(msgspec.Struct, kw_only=True):
    """All that anybody sees of one request."""

    client: bytes = b""
    ended: bool = False
    server: list[tuple[bytes, bytes]] = []
    plugins: list[Any] = []
    outcomes: list[tuple[dict[str, Any], str]] = []
    spans: list[Any] = []
    counts: dict[str, Any] = {}
    retried: list[str] = []
    phase: Phase | None = None


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    settings = 'max_body = "100kB"\nrequest_timeout = "100s"'
    folder = tmp_path_factory.mktemp("quick")
    (folder / "secret").write_text("secret")
    with running(folder, settings=settings, more=MORE.replace("SECRET", str(folder / "secret"))) as made:
        yield made


@pytest.fixture(autouse=True)
def spied(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Which requests were quick; nothing is left of the test before."""
    KNOWN.update(key=Principal("team", {"key": "first"}))
    run = Quick.run

    def noted(self: Quick, body: bytes) -> None:
        WAS_QUICK.append(self)
        run(self, body)

    monkeypatch.setattr(Quick, "run", noted)
    yield
    for one in (WAS_QUICK, LOG, DOES, KNOWN):
        one.clear()


async def whole(reader: asyncio.StreamReader) -> bytes:
    """The bytes of the next answer, and of those interim ones before it."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    if lower.startswith(b"http/1.1 1"):
        return head + await whole(reader)
    if status(head) in (204, 304):
        return head
    if b"transfer-encoding: chunked" in lower:
        body = b""
        while not (b"\r\n0\r\n" in body and body.endswith(b"\r\n\r\n")):
            body += await reader.readuntil(b"\r\n")
        return head + body
    if found := re.search(rb"content-length: (\d+)", lower):
        return head + await reader.readexactly(int(found.group(1)))
    raise AssertionError(f"an answer without an end: {head!r}")


async def rest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, bool]:
    """All that has come, and whether the connection is at its end."""
    end = b"\r\n\r\n/-/end 0"
    if not writer.transport.is_closing():
        writer.write(get(b"/-/end"))
    came = b""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(2**20):
            came += data
            if came.endswith(end):
                return came[: came.rindex(b"HTTP/1.1 200 OK")], False
    return came, True


Act = Callable[[World, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Case(msgspec.Struct, kw_only=True):
    """A request, what its server does, and what happens meanwhile.

    act: after it was sent. breaks: the server's answer cannot be had twice on one connection. before: it is sent.
    """

    does: Does = answers(OK)
    request: bytes = ask()
    act: Act | None = None
    breaks: bool = False
    before: Callable[[], None] | None = None
    traces: Sampler | None = None


async def observed(w: World, case: Case, warm: Sequence[bytes], repeats: int) -> Seen:
    """What all see of the request, after others on the same connection."""
    spans: list[Sequence[Stage]] = []
    operations: list[str] = []
    retried: list[str] = []
    DOES.clear()
    reader, writer = await w.connect()
    w.server.does = answers(OK)
    for one in warm:
        writer.write(one)
        await whole(reader)
        await soon(lambda: w.outcomes, "an outcome")
        w.outcomes.clear()
    edge = w.connections[0]
    if case.before is not None:
        case.before()
    w.server.does = case.does
    for _ in range(repeats):
        writer.write(case.request)
        await whole(reader)
        await soon(lambda: w.outcomes, "an outcome")
        w.outcomes.clear()
    LOG.clear()
    WAS_QUICK.clear()
    w.server.seen.clear()
    w.server.bodies.clear()
    requests = w.plane.requests
    count = w.plane.meter.count

    def counted(outcome: Outcome, operation: str) -> None:
        operations.append(operation)
        count(outcome, operation)

    held = w.server.open - w.plane.pool.idle
    w.plane.meter.count = counted  # type: ignore[method-assign] # to see which operation is told
    retry, w.plane.meter.retried = w.plane.meter.retried, retried.append  # type: ignore[method-assign,assignment] # as above
    before, w.plane.traces = w.plane.traces, Traces(case.traces, spans.append) if case.traces else w.plane.traces
    try:
        writer.write(case.request)
        if case.act is not None:
            await case.act(w, reader, writer)
        await soon(lambda: w.outcomes, "an outcome")
        came, ended = await rest(reader, writer)
    finally:
        w.plane.meter.count, w.plane.meter.retried = count, retry  # type: ignore[method-assign] # as they were
        w.plane.traces = before
    await soon(lambda: w.generation.leases == 0, "nothing is in flight")
    assert not w.controller.fleet.external_in_flight
    await soon(lambda: w.server.open - w.plane.pool.idle <= held, "no connection to the server is forgotten")
    after = w.plane.requests
    outcomes = [timeless(w.outcomes.pop(0)) for _ in range(len(w.outcomes))]
    found = Seen(
        client=came,
        ended=ended,
        server=[(without_ids(head), body) for head, body in zip(w.server.seen, w.server.bodies, strict=True)],
        plugins=list(LOG),
        outcomes=list(zip(outcomes, operations, strict=True)),
        spans=[told(trace) for trace in spans],
        retried=retried,
        counts={
            name: (getattr(after, name), getattr(requests, name))
            for name in ("listed", "refused_early", "abandoned", "malformed", "connections")
        },
        phase=None if ended else edge.phase,
    )
    found.counts = {name: new - old for name, (new, old) in found.counts.items()}
    found.counts["accepted"] = after.accepted - requests.accepted
    found.counts["in_flight"] = after.in_flight
    found.counts["ended"] = {kind: after.ended[kind] - requests.ended[kind] for kind in after.ended}
    writer.close()
    await soon(lambda: not w.connections, "it is gone")
    return found


async def soon(condition: Callable[[], object], what: str) -> None:
    """As `until`, for what takes no more than some turns of the loop."""
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0)
    await until(condition, what, 2.0)


def without_ids(head: bytes) -> bytes:
    """Without the ids of a trace that is made up."""
    return re.sub(rb"traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}", b"traceparent: 00-TRACE-SPAN", head)


def told(spans: Sequence[Stage]) -> list[Any]:
    """All of a trace but times and ids."""
    names = {span.span_id: span.name for span in spans}
    return [
        (one.name, one.kind, one.attributes, one.failed, one.message, names.get(one.parent_id), len(one.notes))
        for one in spans
    ]


def other(request: bytes) -> bytes:
    """The same request with another head."""
    line, _, rest_ = request.partition(b"\r\n")
    return line + b"\r\nX-Warm: up\r\n" + rest_


def same_quick_or_not(w: World, case: Case, *, quick: bool = True) -> Seen:
    """Ask by a head that is parsed, and by one that is known, and once more by a server that is known."""
    first: list[Seen] = []

    async def scenario() -> None:
        plain = await observed(w, case, [other(case.request)], 0)
        assert not WAS_QUICK
        known = await observed(w, case, [case.request], 0)
        assert len(WAS_QUICK) == quick, "it was not quick"
        assert msgspec.structs.asdict(known) == msgspec.structs.asdict(plain)
        if not case.breaks:
            again = await observed(w, case, [case.request], 2)
            assert len(WAS_QUICK) == quick
            assert msgspec.structs.asdict(again) == msgspec.structs.asdict(plain)
        first.append(plain)

    w.run(scenario())
    return first[0]


# --- answers --------------------------------------------------------------------------------------------------------


def sent(status_line: bytes, *lines: bytes, body: bytes = b"", length: bool = True) -> bytes:
    framed = (b"Content-Length: %d" % len(body),) if length else ()
    return b"\r\n".join([b"HTTP/1.1 " + status_line, *lines, *framed, b"", b""]) + body


WHOLE = JSON % (len(USAGE), USAGE)
LARGE = b"x" * 1_000_000
TYPE = b"Content-Type: application/json"
CHUNKED = sent(b"200 OK", TYPE, b"Transfer-Encoding: chunked", length=False)
ANSWERS: dict[str, bytes | tuple[bytes, ...]] = {
    "whole": WHOLE,
    "in two parts": (WHOLE[:-20], WHOLE[-20:]),
    "in its head and its body": (WHOLE[: -len(USAGE)], USAGE),
    "byte by byte": tuple(WHOLE[at : at + 1] for at in range(len(WHOLE))),
    "empty": sent(b"200 OK", TYPE),
    "204": sent(b"204 No Content", b"X-Served-By: it", length=False),
    "304": sent(b"304 Not Modified", b"ETag: x", length=False),
    "400": sent(b"400 Bad Request", TYPE, body=b'{"error": 1}'),
    "429": sent(b"429 Slow Down", TYPE, b"Retry-After: 3", body=b'{"error": 1}'),
    "500": sent(b"500 Oh", TYPE, body=b'{"error": 1}'),
    "an empty reason": sent(b"200 ", TYPE, body=USAGE),
    "chunked": CHUNKED + chunk(USAGE[:9]) + chunk(USAGE[9:]) + LAST,
    "chunked in many parts": (CHUNKED, chunk(USAGE[:9]), b"4", chunk(USAGE[9:])[1:4], chunk(USAGE[9:])[4:], LAST),
    "chunked with trailers": CHUNKED + chunk(USAGE) + b"0\r\nX-Sum: 1\r\n\r\n",
    "events": STREAM + b"".join(map(chunk, EVENTS)) + LAST,
    "events one by one": (STREAM, *map(chunk, EVENTS), LAST),
    "events torn": (STREAM + chunk(EVENTS[0])[:-4], chunk(EVENTS[0])[-4:] + b"4", b"\r\nx\n\n\n\r\n", LAST),
    "events of a known length": sent(b"200 OK", b"Content-Type: text/event-stream", body=b"".join(EVENTS)),
    "early hints": b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + WHOLE,
    "early hints by themselves": (b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n", WHOLE),
    "100 and then": (b"HTTP/1.1 100 Continue\r\n\r\n", WHOLE),
    "gzip": sent(b"200 OK", TYPE, b"Content-Encoding: gzip", body=b"\x1f\x8b\x08 no one reads it"),
    "much": (sent(b"200 OK", TYPE, body=LARGE)[:-900_000], *[LARGE[:100_000]] * 9),
    "hop by hop": sent(b"200 OK", TYPE, b"Connection: keep-alive, X-Mine", b"X-Mine: 1", b"X-Yours: 2", body=b"{}"),
    "a length that is called hop by hop": sent(b"200 OK", TYPE, b"Connection: keep-alive, content-length", body=b"{}"),
    "chunks that are called hop by hop": CHUNKED[:-2] + b"Connection: Transfer-Encoding\r\n\r\n" + chunk(USAGE) + LAST,
    "twice the same header": sent(b"200 OK", b"Set-Cookie: a", b"set-cookie: b", TYPE, body=b"{}"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_is_the_same(here: World, kind: str) -> None:
    pieces = ANSWERS[kind]
    does = answers(pieces) if isinstance(pieces, bytes) else slowly(*pieces)
    plain = same_quick_or_not(here, Case(does=does))
    assert plain.outcomes[0][0]["end"] is End.OK
    assert not plain.ended
    asked = ask(WATCHED, b"Authorization: Bearer key")
    watched = same_quick_or_not(here, Case(does=does, request=asked))
    assert watched.client == plain.client
    assert [one[1] for one in watched.plugins[1:] if len(one) == 5] == [
        *["on_request"] * 2,
        *["on_response"] * 2,
        *["on_end"] * 2,
    ]


def slowly(*pieces: bytes) -> Does:
    """Answer with these bytes, one read each, mostly."""

    async def does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            for _ in range(3):
                await asyncio.sleep(0)

    return does


def test_an_answer_until_the_connection_closes_is_the_same(here: World) -> None:
    plain = same_quick_or_not(here, Case(does=answers(sent(b"200 OK", TYPE, length=False) + USAGE, close=True)))
    assert plain.client.endswith(chunk(USAGE) + LAST)
    assert not plain.ended


@pytest.mark.parametrize("kind", ["whole", "chunked"])
def test_a_body_of_many_megabytes_is_the_same(here: World, kind: str) -> None:
    data = bytes(range(256)) * 16_384
    pieces = (CHUNKED, *[chunk(data[:524_288])] * 8, LAST) if kind == "chunked" else (sent(b"200 OK", TYPE, body=data),)
    plain = same_quick_or_not(here, Case(does=answers(*pieces)))
    assert plain.outcomes[0][0]["bytes_out"] >= len(data)
    assert plain.client.count(data[:524_288]) == 8


def noted_length(exchange: Exchange) -> None:
    assert exchange.response is not None
    LOG.append(exchange.response.headers.get("content-length"))


@inside
async def test_answers_with_the_same_head_and_other_lengths_are_each_their_own(w: World) -> None:
    reader, writer = await w.connect()
    for length in (7, 7, 8, 700, 0, 1, 60_000, 200_000, 7):
        w.server.does = answers(JSON % (length, b"x" * length))
        DOES["inner.on_response"] = noted_length
        LOG.clear()
        writer.write(ask(WATCHED, b"Authorization: Bearer key"))
        head, body = await message(reader)
        assert body == b"x" * length
        assert str(length) in LOG
        assert b"Content-Length: %d\r\n" % length in head
        assert (await w.outcome()).bytes_out == length
    assert len(WAS_QUICK) == 8


@pytest.mark.parametrize("extra", [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", b"\r\n\r\n"])
@pytest.mark.parametrize("kind", ["whole", "204", "in its head and its body"])
def test_what_follows_an_answer_is_nobodys(here: World, kind: str, extra: bytes) -> None:
    pieces = ANSWERS[kind]
    plain = same_quick_or_not(
        here, Case(does=answers(pieces + extra) if isinstance(pieces, bytes) else answers(pieces[0], pieces[1] + extra))
    )
    assert b"evil" not in plain.client
    assert plain.outcomes[0][0]["end"] is End.OK


@inside
async def test_an_answer_that_nobody_asked_for_is_nobodys(w: World) -> None:
    reader, writer = await w.connect()

    async def twice(_: asyncio.StreamReader, back: asyncio.StreamWriter, head: bytes) -> None:
        back.write(WHOLE)
        await until(lambda: len(w.outcomes) == len(w.server.seen), "it was taken")
        back.write(JSON % (4, b"evil"))

    w.server.does = twice
    for _ in range(4):
        writer.write(ask())
        assert (await message(reader))[1] == USAGE
        await until(lambda: not w.plane.pool.idle, "the connection is given up")
    assert len(WAS_QUICK) == 3


# --- traces ---------------------------------------------------------------------------------------------------------


CALLER = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = CALLER[:-1] + b"0"


@pytest.mark.parametrize("kind", ["whole", "in two parts", "500", "events one by one", "early hints"])
@pytest.mark.parametrize(
    ("line", "sampler", "sampled"),
    [
        (CALLER, ALWAYS, True),
        (b"X-Nobody: asks", ALWAYS, True),
        (UNSAMPLED, ALWAYS, False),
        (b"X-Nobody: asks", Sampler(1, by_parent=True), False),
    ],
)
def test_a_trace_is_the_same(here: World, kind: str, line: bytes, sampler: Sampler, sampled: bool) -> None:
    pieces = ANSWERS[kind]
    does = answers(pieces) if isinstance(pieces, bytes) else slowly(*pieces)
    request = ask(WATCHED, b"Authorization: Bearer key", line)
    plain = same_quick_or_not(here, Case(does=does, request=request, traces=sampler))
    names = [[span[0] for span in trace] for trace in plain.spans]
    assert names == ([["chat watched", "auth", "filters", "upstream"]] if sampled else [])
    assert (b"traceparent" in plain.server[0][0]) == (sampled or line is UNSAMPLED)


# --- requests -------------------------------------------------------------------------------------------------------


def test_a_model_that_its_server_calls_otherwise_is_renamed_and_has_its_key(here: World) -> None:
    for asked in (b"renamed", b"other"):
        plain = same_quick_or_not(here, Case(request=ask(b'{"model": "%b", "x": [1]}' % asked)))
        [(head, body)] = plain.server
        assert body == b'{"model": "org/inner", "x": [1]}'
        assert b"authorization: Bearer secret\r\n" in head
        assert plain.outcomes[0][0]["model"] == "renamed"


def test_a_stream_that_asks_for_its_usage_is_the_same(here: World) -> None:
    does = answers(STREAM, *map(chunk, EVENTS), LAST)
    plain = same_quick_or_not(here, Case(does=does, request=ask(STREAMED % b"watched", b"Authorization: Bearer key")))
    outcome = plain.outcomes[0][0]
    assert outcome["streamed"]
    assert outcome["usage"] == Usage(input_tokens=3, output_tokens=5)


ODD = {
    "no JSON": b"{not",
    "nothing": b"",
    "no object": b"[1]",
    "no model": b'{"x": 1}',
    "a model that is none": b'{"model": 7}',
    "no such model": b'{"model": "nobody"}',
    "a model of another mode": b'{"model": "embeds"}',
    "two models": b'{"model": "m", "x": 1, "model": "renamed"}',
    "two models, one written otherwise": b'{"model": "m", "mod\\u0065l": "renamed"}',
    "two models, in other case": b'{"model": "m", "Model": "renamed"}',
    "the same model twice": b'{"model": "m", "model": "m"}',
    "a model within": b'{"x": {"model": "renamed"}, "model": "m"}',
    "a model written otherwise": b'{"mod\\u0065l": "m"}',
    "a model as text": b'{"x": "\\"model\\"", "model": "m"}',
    "a stream whose usage was not asked for": b'{"model": "m", "stream": true}',
    "a flag that is none": b'{"model": "m", "stream": 1}',
    "no text": b'{"model": "\xff"}',
    "much nested": b'{"x": ' + b"[" * 2000 + b"]" * 2000 + b', "model": "m"}',
    "larger than one read": b'{"model": "m", "x": "' + b"x" * 90_000 + b'"}',
}


@pytest.mark.parametrize("kind", ODD)
def test_a_body_is_the_same_after_others_with_its_head(here: World, kind: str) -> None:
    """Of whatever kind and length it is: the head is known, and says nothing of it."""
    request = ask(ODD[kind])

    async def scenario() -> None:
        plain = await observed(here, Case(request=request), [other(ask())], 0)
        known = await observed(here, Case(request=request), [ask()], 0)
        again = await observed(here, Case(request=request), [ask(), ask(), ask()], 0)
        assert msgspec.structs.asdict(known) == msgspec.structs.asdict(plain) == msgspec.structs.asdict(again)

    here.run(scenario())


@pytest.mark.parametrize("kind", ["a key that is none", "torn", "torn in the body"])
def test_what_is_not_as_it_was_is_the_same(here: World, kind: str) -> None:
    request = ask(WATCHED, b"Authorization: Bearer key")

    async def torn(w: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        writer.write(whole_request[cut:])

    whole_request, cut, act = request, len(request), None
    if kind == "a key that is none":
        whole_request = request.replace(b"Bearer key", b"Bearer kez")
    else:
        cut = 40 if kind == "torn" else len(request) - 3
        act = torn

    async def scenario() -> None:
        case = Case(request=whole_request[:cut], act=act)
        plain = await observed(here, case, [other(request)], 0)
        known = await observed(here, case, [request], 0)
        assert msgspec.structs.asdict(known) == msgspec.structs.asdict(plain)
        assert not WAS_QUICK

    here.run(scenario())


@inside
async def test_a_body_that_is_too_large_is_refused_whatever_came_before(w: World) -> None:
    reader, writer = await w.connect()
    writer.write(ask())
    await message(reader)
    writer.write(ask(b" " * 100_001))
    assert status((await message(reader))[0]) == 413
    assert not WAS_QUICK


# --- plugins --------------------------------------------------------------------------------------------------------


def rejects(_: Exchange) -> None:
    raise Reject(451, "not this", code="forbidden", retry_after_s=2)


def fails(_: Exchange) -> None:
    raise ValueError("no")


def with_header(exchange: Exchange) -> Request:
    request = exchange.request
    return msgspec.structs.replace(request, headers=Headers((*request.headers.raw, (b"X-Mine", b"1"))))


def without_headers(exchange: Exchange) -> Request:
    return msgspec.structs.replace(exchange.request, headers=Headers(exchange.request.headers.raw[:2]))


def answered(exchange: Exchange, **changed: Any) -> Answer:
    assert exchange.response is not None
    return msgspec.structs.replace(exchange.response, **changed)


def with_answers_header(exchange: Exchange) -> Answer:
    assert exchange.response is not None
    return answered(exchange, headers=Headers((*exchange.response.headers.raw, (b"X-Mine", b"1"), (b"Upgrade", b"x"))))


FORM = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ncounted\r\n'
    b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--b--\r\n'
)


def into_a_form(exchange: Exchange) -> Request:
    headers = Headers((*exchange.request.headers.raw, (b"Content-Type", b"multipart/form-data; boundary=b")))
    return msgspec.structs.replace(exchange.request, headers=headers, body=FORM)


def replaced(**changed: Any) -> Callable[[Exchange], Request]:
    return lambda exchange: msgspec.structs.replace(exchange.request, **changed)


FILTERS: dict[str, tuple[str, Callable[[Exchange], Any]]] = {
    "rejects": ("inner.on_request", rejects),
    "rejects at once": ("outer.on_request", rejects),
    "answers": ("inner.on_request", lambda _: Answer(status=202, headers=Headers(((b"X-Mine", b"1"),)), body=b"mine")),
    "answers with nothing": ("outer.on_request", lambda _: Answer(status=204)),
    "fails": ("inner.on_request", fails),
    "returns nonsense": ("inner.on_request", lambda _: 7),
    "adds a header": ("inner.on_request", with_header),
    "takes headers away": ("outer.on_request", without_headers),
    "changes the body": ("inner.on_request", replaced(body=b'{"model": "watched", "y": [2]}')),
    "changes the model": ("inner.on_request", replaced(body=b'{"model": "another"}')),
    "makes no JSON of it": ("inner.on_request", replaced(body=b"{")),
    "makes a form of it": ("inner.on_request", into_a_form),
    "changes the path": ("inner.on_request", replaced(path="/v1/elsewhere")),
    "asks something": ("outer.on_request", replaced(query="a=1&b=2")),
    "changes the path to what cannot be sent": ("inner.on_request", replaced(path="/\u20ac")),
    "changes the method": ("inner.on_request", replaced(method="PUT")),
    "rejects the answer": ("inner.on_response", rejects),
    "fails on the answer": ("outer.on_response", fails),
    "changes the status": ("inner.on_response", lambda exchange: answered(exchange, status=418)),
    "adds a header to the answer": ("inner.on_response", with_answers_header),
    "takes the answer's headers away": ("outer.on_response", lambda exchange: answered(exchange, headers=Headers())),
    "calls it a stream": ("inner.on_response", lambda exchange: answered(exchange, streamed=True)),
    "fails at the end": ("inner.on_end", fails),
}
SOME = ("whole", "in two parts", "events one by one", "500", "204")


@pytest.mark.parametrize("kind", FILTERS)
@pytest.mark.parametrize("line", [b"X-Nobody: asks", CALLER])
def test_what_a_filter_does_is_the_same(here: World, kind: str, line: bytes) -> None:
    hook, does = FILTERS[kind]
    request = ask(WATCHED, b"Authorization: Bearer key", line)
    for answer in SOME[: 4 if "status" in kind else 5] if "response" in hook else SOME[:1]:
        pieces = ANSWERS[answer]
        case = Case(
            does=answers(pieces) if isinstance(pieces, bytes) else slowly(*pieces),
            request=request,
            before=lambda: DOES.update({hook: does}),
            traces=ALWAYS,
        )
        plain = same_quick_or_not(here, case)
        assert len(plain.outcomes) == 1
        ends = [entry[0] for entry in plain.plugins if len(entry) == 2 and entry[0] != "auth"]
        alone = kind in ("rejects at once", "answers with nothing", "fails at the end")  # the first, or the last
        assert ends == (["outer"] if alone else ["inner", "outer"])


@UNMENDED
def test_a_request_of_which_a_filter_takes_the_model_away_leaves_no_connection_behind(here: World) -> None:
    case = Case(request=ask(b'{"model": "counted"}'), traces=ALWAYS)
    case.before = lambda: DOES.update({"outer.on_request": replaced(body=b"{}")})
    plain = same_quick_or_not(here, case)
    assert b'"model_missing"' in plain.client


def test_a_model_that_is_renamed_after_a_filter_has_made_a_form_of_it_is_the_same(here: World) -> None:
    case = Case(request=ask(b'{"model": "counted"}'), before=lambda: DOES.update({"outer.on_request": into_a_form}))
    plain = same_quick_or_not(here, case)
    assert plain.server[0][1] == FORM.replace(b"counted", b"inner")


def test_a_stream_that_a_filter_asks_for_tells_its_usage_all_the_same(here: World) -> None:
    """The body that counts is the one that is sent."""
    streams = replaced(body=b'{"model": "counted", "stream": true}')
    case = Case(
        does=answers(STREAM, *map(chunk, EVENTS), LAST),
        request=ask(b'{"model": "counted"}'),
        before=lambda: DOES.update({"outer.on_request": streams}),
    )
    plain = same_quick_or_not(here, case)
    assert b'"include_usage":true' in plain.server[0][1]


def test_a_key_that_is_none_any_more_is_refused(here: World) -> None:
    for line in (b"X-Nobody: asks", CALLER):
        case = Case(
            request=ask(WATCHED, b"Authorization: Bearer key", line),
            before=KNOWN.clear,
            breaks=True,
            traces=ALWAYS,
        )

        async def scenario(case: Case = case) -> None:
            found = []
            for warm in (other(case.request), case.request):
                KNOWN.update(key=Principal("team", {"key": "first"}))
                found.append(await observed(here, case, [warm], 0))
            assert len(WAS_QUICK) == 1
            assert msgspec.structs.asdict(found[0]) == msgspec.structs.asdict(found[1])
            assert b'"invalid_key"' in found[1].client

        here.run(scenario())


def test_errors_have_the_shape_of_the_mode_that_was_asked(here: World) -> None:
    """Another mode has the same path, and comes first there."""
    for hook in ("outer.on_request", "outer.on_response"):
        case = Case(
            request=ask(b'{"model": "sorts"}', b"Authorization: Bearer key", path=b"/v1/sort"),
            before=lambda hook=hook: DOES.update({hook: rejects}),  # type: ignore[misc] # bound at once
        )
        plain = same_quick_or_not(here, case)
        assert b'{"sorting": "forbidden"}' in plain.client


def test_methods_of_one_path_are_each_their_own(here: World) -> None:
    post = ask(b'{"model": "sorts"}', b"Authorization: Bearer key", path=b"/v1/sort")
    same_quick_or_not(here, Case(request=post))
    plain = same_quick_or_not(here, Case(request=post.replace(b"POST", b"PUT")), quick=False)
    assert plain.outcomes[0][1] == "resort"


@inside
async def test_limits_count_each_request(w: World) -> None:
    reader, writer = await w.connect()
    codes = []
    for _ in range(5):
        writer.write(ask(b'{"model": "limited"}'))
        head, _ = await message(reader)
        codes.append(status(head))
    assert codes == [200, 200, 200, 429, 429]
    assert len(WAS_QUICK) == 4


# --- servers that break off -----------------------------------------------------------------------------------------


HALF = chunk(EVENTS[0]) + b"20\r\ndata: half"
BROKEN: dict[str, tuple[tuple[bytes, ...], int]] = {
    "before its head": ((), 502),
    "in its head": ((b"HTTP/1.1 20",), 502),
    "after early hints": ((b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n",), 502),
    "with garbage": ((b"garbage\r\n\r\n",), 502),
    "with another protocol": ((b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nxx",), 502),
    "after its head": ((WHOLE[: -len(USAGE)],), 200),
    "in a body": ((WHOLE[:-20],), 200),
    "in chunks": ((CHUNKED + chunk(USAGE) + b"9\r\nhalf",), 200),
    "between events": ((STREAM + chunk(EVENTS[0]),), 200),
    "in an event": ((STREAM + HALF,), 200),
    "in an event, later": ((STREAM, chunk(EVENTS[0]), HALF), 200),
    "in a size": ((STREAM + chunk(EVENTS[0]) + b"2",), 200),
    "before the last chunk": ((STREAM, *map(chunk, EVENTS)), 200),
    "with chunks that are none": ((STREAM + chunk(EVENTS[0]), b"xx\r\n"), 200),
    "with more than its answer": ((STREAM + chunk(EVENTS[0]), LAST + b"x"), 200),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_server_that_breaks_off_is_told_of_in_the_same_way(here: World, kind: str) -> None:
    pieces, code = BROKEN[kind]
    came = asyncio.Event()
    for asked in (ask(), ask(WATCHED, b"Authorization: Bearer key", CALLER)):

        async def does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
            for number, piece in enumerate(pieces):
                if number:
                    await came.wait()
                writer.write(piece)
            if code == 200:
                await came.wait()
            writer.close()

        async def act(w: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if code == 200:
                await soon(lambda: reader._buffer, "some of it has come")  # type: ignore[attr-defined] # untouched
            came.set()

        plain = same_quick_or_not(
            here, Case(does=does, act=act, request=asked, breaks=True, before=came.clear, traces=ALWAYS)
        )
        [(outcome, _)] = plain.outcomes
        assert (outcome["end"], outcome["code"], outcome["status"]) == (End.UPSTREAM_FAILED, "upstream_failed", code)
        assert plain.ended == (code == 200)
        assert not plain.retried
        told = code == 502 or (kind not in ("after its head", "in a body", "in chunks"))
        assert (b"upstream_failed" in plain.client) == told


def asked_on(w: World) -> Any:
    """The connection on which the only request was asked."""
    edge = w.connections[0]
    if edge._quick is not None:
        return edge._quick._connection
    call: Any = edge._turns[0].answering if edge._turns else None
    return call._relaying.connection if call is not None and call._relaying is not None else None


async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    assert not await reader.read(1)


def test_a_server_that_closes_its_idle_connection_in_that_moment_is_asked_once_more(here: World) -> None:
    async def act(w: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await soon(lambda: len(w.server.seen) == 1, "it was asked")
        w.server.does = answers(WHOLE)
        asked_on(w)._fail("it was idle", processed=False)
        await soon(lambda: len(w.server.seen) == 2, "it was asked again")

    for asked in (ask(), ask(WATCHED, b"Authorization: Bearer key")):
        case = Case(does=hangs, act=act, request=asked, breaks=True, traces=ALWAYS)
        plain = same_quick_or_not(here, case)
        assert plain.client.endswith(USAGE)
        assert len(plain.retried) == 1
        assert len(set(plain.server)) == 1


def test_a_connection_that_is_closed_as_it_is_taken_is_replaced(here: World) -> None:
    async def act(w: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await soon(lambda: w.outcomes, "it is answered")

    def before() -> None:
        [connection] = [one for idle in here.plane.pool._idle.values() for one in idle]

        def ask_none(*_: Any, **__: Any) -> None:
            connection.abort()
            raise UpstreamError("closed", processed=False, reused=True)

        connection.ask = ask_none  # type: ignore[method-assign] # it closes in this very moment

    for traces in (None, ALWAYS):
        here.plane.pool.close()
        case = Case(act=act, before=before, breaks=True, traces=traces, request=ask(RENAMED))
        plain = same_quick_or_not(here, case)
        assert len(plain.server) == 1


def test_without_an_idle_connection_another_is_made(here: World) -> None:
    for asked in (ask(), ask(WATCHED, b"Authorization: Bearer key", CALLER)):
        case = Case(does=answers(WHOLE), request=asked, before=here.plane.pool.close, traces=ALWAYS)
        plain = same_quick_or_not(here, case)
        assert plain.client.endswith(USAGE)


# --- clients --------------------------------------------------------------------------------------------------------


def then_hangs(*pieces: bytes) -> Does:
    async def does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        writer.write(b"".join(pieces))
        await reader.read(1)

    return does


STAGES: dict[str, tuple[Does, bytes]] = {
    "before the head": (hangs, b""),
    "after the head": (then_hangs(STREAM), STREAM),
    "within a stream": (then_hangs(STREAM, chunk(EVENTS[0])), chunk(EVENTS[0])),
    "after the last event": (then_hangs(STREAM, *map(chunk, EVENTS)), b"[DONE]"),
    "within a body": (then_hangs(WHOLE[:-9]), WHOLE[-20:-9]),
}


async def reached(w: World, reader: asyncio.StreamReader, wanted: bytes) -> None:
    await soon(lambda: w.server.seen, "it was asked")
    buffer = reader._buffer  # type: ignore[attr-defined] # nothing must be taken from it
    await soon(lambda: wanted in bytes(buffer), "so much has come")


@pytest.mark.parametrize("kind", STAGES)
def test_a_client_that_leaves_is_the_same(here: World, kind: str) -> None:
    does, wanted = STAGES[kind]

    async def act(w: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reached(w, reader, wanted)
        writer.transport.abort()

    for asked in (ask(), ask(WATCHED, b"Authorization: Bearer key", CALLER)):
        case = Case(does=does, act=act, request=asked, breaks=True, traces=ALWAYS)
        plain = same_quick_or_not(here, case)
        gone = kind != "after the last event"
        assert plain.outcomes[0][0]["end"] is (End.CLIENT_GONE if gone else End.OK)


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("what", ["request_timeout", "shutdown", "plane"])
def test_what_ends_a_request_from_outside_is_the_same(here: World, kind: str, what: str) -> None:
    does, wanted = STAGES[kind]

    async def act(w: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reached(w, reader, wanted)
        if what == "request_timeout":
            w.pass_time(101)
        elif what == "plane":
            w.connections[0].cut_off(ApiError(503, "shutting_down", "the end"))
        else:
            w.connections[0].shutdown()
            await asyncio.sleep(0)
            asked_on(w)._fail("gone")

    case = Case(does=does, act=act, breaks=True, traces=ALWAYS)
    plain = same_quick_or_not(here, case)
    assert plain.ended


@pytest.mark.parametrize("kind", ["before the head", "within a stream"])
def test_a_sidecar_that_shuts_down_lets_an_answer_be_the_last(here: World, kind: str) -> None:
    may = asyncio.Event()

    async def does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        if kind != "before the head":
            writer.write(STREAM + chunk(EVENTS[0]))
        await may.wait()
        writer.write(STREAM + LAST if kind == "before the head" else chunk(EVENTS[1]) + LAST)

    async def act(w: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reached(w, reader, b"" if kind == "before the head" else EVENTS[0])
        w.connections[0].shutdown()
        may.set()

    plain = same_quick_or_not(here, Case(does=does, act=act, breaks=True, before=may.clear))
    assert plain.client.endswith(LAST)
    assert plain.ended
    assert (b"connection: close" in plain.client) == (kind == "before the head")


SECONDS: dict[str, bytes] = {
    "the same": ask(),
    "another": ask(b'{"model": "renamed"}'),
    "two": ask() + ask(b'{"model": "other"}'),
    "for the application": get(b"/-/x"),
    "for the list": get(b"/v1/models"),
    "for nowhere": get(b"/v1/nowhere"),
    "garbage": b"garbage\r\n\r\n",
    "half of one": ask()[:50],
    "all but a byte of one": ask()[:-1],
}


@pytest.mark.parametrize("kind", SECONDS)
@pytest.mark.parametrize("late", [False, True])
def test_what_comes_while_a_request_is_answered_is_answered_after_it(here: World, kind: str, late: bool) -> None:
    may = asyncio.Event()

    async def does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        if len(here.server.seen) == 1:
            if late:
                writer.write(WHOLE[:-5])
            await may.wait()
            writer.write(WHOLE[-5:] if late else WHOLE)
        else:
            writer.write(JSON % (1, b"%d" % len(here.server.seen)))

    async def act(w: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reached(w, reader, WHOLE[-9:-5] if late else b"")
        edge = w.connections[0]
        was = edge._quick
        writer.write(SECONDS[kind])
        await soon(lambda: edge._turns and (was is None or edge._quick is not was), "it has come")
        await asyncio.sleep(0.002)
        may.set()
        await soon(lambda: WHOLE[-9:] in bytes(reader._buffer), "it is answered")  # type: ignore[attr-defined] # as above
        rest_ = {"half of one": ask()[50:], "all but a byte of one": ask()[-1:]}.get(kind, b"")
        writer.write(rest_)
        await asyncio.sleep(0.005)

    plain = same_quick_or_not(here, Case(does=does, act=act, breaks=True, before=may.clear))
    assert plain.client.startswith(WHOLE)
    assert plain.ended == (kind == "garbage")


# --- heads that are others' -----------------------------------------------------------------------------------------


A, B = ask(M, b"X-Who: A", b"Authorization: Bearer A"), ask(M, b"X-Who: B", b"Authorization: Bearer B")


@UNMENDED
@inside
async def test_a_head_that_comes_again_after_another_that_came_in_two_reads_is_still_its_own(w: World) -> None:
    reader, writer = await w.connect()
    for cut in (1, 30, len(B) - 3):
        w.server.seen.clear()
        for request in (A, A, B, A, B):
            if request is B:
                writer.write(B[:cut])
                await asyncio.sleep(0.005)
            writer.write(request[cut:] if request is B else request)
            await message(reader)
        assert [head.split(b"X-Who: ")[1][:1] for head in w.server.seen] == [b"A", b"A", b"B", b"A", b"B"]


@UNMENDED
@inside
async def test_a_head_that_comes_again_after_another_that_came_while_it_was_answered_is_still_its_own(w: World) -> None:
    may = asyncio.Event()

    async def does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        await may.wait()
        writer.write(OK)

    w.server.does = does
    reader, writer = await w.connect()
    may.set()
    writer.write(A)
    await message(reader)
    may.clear()
    writer.write(A)
    await w.asked(2)
    writer.write(B)
    await asyncio.sleep(0.005)
    may.set()
    for _ in range(2):
        await message(reader)
    for request in (A, B, A):
        writer.write(request)
        await message(reader)
    assert [head.split(b"X-Who: ")[1][:1] for head in w.server.seen] == [b"A", b"A", b"B", b"A", b"B", b"A"]


# --- clients that do not read ---------------------------------------------------------------------------------------


BUFFERED = 3_000_000  # what the kernel and the transports may hold


@inside
async def test_a_client_that_does_not_read_a_stream_stops_its_server(w: World) -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        nonlocal sent
        writer.write(STREAM)
        while True:
            writer.write(chunk(b"data: %b\n\n" % (b"x" * 50_000)))
            await writer.drain()
            sent += 50_000

    reader, writer = await w.connect(receive_buffer=4096)
    writer.write(ask())
    await message(reader)
    w.server.does = endless
    writer.write(ask())
    edge = await w.connection()
    await until(lambda: edge.flow.write_paused and edge._turns, "it became a call")
    stood = -1
    while sent != stood:  # the kernel takes its time
        stood = sent
        await asyncio.sleep(0.05)
    assert sent < 30_000_000
    assert edge.transport.get_write_buffer_size() < BUFFERED
    assert len(WAS_QUICK) == 1
    assert len(await reader.read(1000)) == 1000
    for _ in range(20_000):
        if sent > stood:
            break
        await reader.read(2**20)
    assert sent > stood, "it goes on"


@inside
async def test_a_client_that_asks_on_and_on_and_reads_nothing_is_not_served_out_of_memory(w: World) -> None:
    """What waits to be written is bounded, whether each answer is small enough for it or not."""
    body = b"x" * 200_000
    w.server.does = answers(JSON % (len(body), body))
    _, writer = await w.connect(receive_buffer=4096)
    edge = await w.connection()
    for _ in range(200):
        writer.write(ask())
        await asyncio.sleep(0.002)
        if edge.flow.read_paused:
            break
    assert edge.transport.get_write_buffer_size() < BUFFERED
    assert len(w.server.seen) < 100


@inside
async def test_a_client_that_becomes_slow_in_the_moment_in_which_its_server_is_asked_is_answered_once(w: World) -> None:
    """What is written to the one may have what waits for the other be written, too."""
    w.server.does = answers(WHOLE)
    reader, writer = await w.connect()
    edge = await w.connection()
    writer.write(ask())
    await message(reader)
    await w.outcome()
    [connection] = [one for idle in w.plane.pool._idle.values() for one in idle]
    transport: Any = connection._transport
    written: list[bytes] = []

    class Sending:
        """Its first write fills what goes to the client."""

        def __getattr__(self, name: str) -> Any:
            return getattr(transport, name)

        def write(self, data: bytes) -> None:
            if not written:
                edge.pause_writing()
            written.append(data)
            transport.write(data)

    connection._transport = Sending()  # type: ignore[assignment] # it is one
    writer.write(ask())
    await w.asked(2)
    await asyncio.sleep(0.01)
    assert edge._turns, "it became a call"
    edge.resume_writing()
    for _ in range(2):
        assert (await message(reader))[1] == USAGE
        assert (await w.outcome()).end is End.OK
        assert (edge._turns, w.generation.leases, w.plane.requests.in_flight) == ([], 0, 0)
        writer.write(ask())


@inside
async def test_a_slow_client_gets_all_of_a_large_body(w: World) -> None:
    body = bytes(range(256)) * 40_000
    w.server.does = answers(JSON % (len(body), body))
    reader, writer = await w.connect(receive_buffer=4096)
    for _ in range(2):
        writer.write(ask())
        head = await reader.readuntil(b"\r\n\r\n")
        assert status(head) == 200
        assert await reader.readexactly(len(body)) == body
        assert (await w.outcome()).bytes_out == len(body)
    assert len(WAS_QUICK) == 1


@inside
async def test_requests_of_other_lengths_get_there_whole(w: World) -> None:
    w.server.does = answers(WHOLE)
    reader, writer = await w.connect()
    for size in (1, 60_000, 99_000, 1):
        request = ask(b'{"model": "m", "x": "%b"}' % (b"x" * size))
        writer.write(request)
        assert (await message(reader))[1] == USAGE
        assert len(w.server.bodies[-1]) == size + 23


# --- what changes meanwhile -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [True, False])
def test_a_request_in_flight_ends_on_the_generation_that_it_began_with(here: World, early: bool) -> None:
    here.run(_over_a_reload(here, early))


async def _over_a_reload(w: World, early: bool) -> None:
    may = asyncio.Event()

    async def does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        if not early:
            writer.write(WHOLE[:-5])
        await may.wait()
        writer.write(WHOLE if early else WHOLE[-5:])

    reader, writer = await w.connect()
    request = ask(WATCHED, b"Authorization: Bearer key")
    w.server.does = answers(OK)
    writer.write(request)
    await message(reader)
    w.server.does = does
    w.server.seen.clear()
    LOG.clear()
    writer.write(request)
    await w.asked()
    before = w.generation
    assert before.leases == 1
    assert await w.controller.reload()
    assert w.generation is not before
    assert (before.leases, w.generation.leases) == (1, 0)
    may.set()
    assert (await message(reader))[1] == USAGE
    await until(lambda: before.leases == 0, "it is left")
    assert w.generation.leases == 0
    assert [entry[:2] for entry in LOG if len(entry) == 5][-1] == ("outer", "on_end")
    assert len(WAS_QUICK) == 1
    for _ in range(3):
        writer.write(request)
        await message(reader)
    assert (before.leases, w.generation.leases) == (0, 0)
    assert WAS_QUICK[-1]._course.generation is w.generation


@UNMENDED
def test_who_may_read_an_answer_is_said_anew_after_a_reload(tmp_path: Path) -> None:
    origin = b"Origin: https://app.example"
    with running(tmp_path) as w:

        async def scenario() -> None:
            reader, writer = await w.connect()
            path = tmp_path / "manifests" / "sidecar.toml"
            without = path.read_text()
            for text, allowed in (
                (without, False),
                (without.replace("[sidecar]", '[sidecar]\ncors_origins = ["https://app.example"]'), True),
                (without, False),
            ):
                path.write_text(text)
                await w.controller.reload()
                for _ in range(3):
                    writer.write(ask(M, origin))
                    head, _ = await message(reader)
                    assert (b"access-control-allow-origin" in head) == allowed
            assert len(WAS_QUICK) >= 3

        w.run(scenario())


def test_a_server_of_ours_that_is_stopped_or_drained_is_asked_no_more(tmp_path: Path) -> None:
    server = f"""
[models.ours]
mode = "chat"
[[models.ours.variants]]
required_devices = ["cpu"]
memory_mb = 1
command = ["{sys.executable}", "{Path(http_server.__file__)}", "--port", "{{port}}"]
"""
    with running(tmp_path, more=server) as w:

        async def scenario() -> None:
            reader, writer = await w.connect()

            async def asked() -> Outcome:
                writer.write(ask(b'{"model": "ours"}'))
                await message(reader)
                return await w.outcome()

            assert (await asked()).cold
            for _ in range(3):
                outcome = await asked()
                assert (outcome.cold, outcome.status) == (False, 200)
            server = w.controller.fleet.server_of("ours")
            assert server is not None
            assert not server.in_flight
            await w.controller.stop("ours", force=False)
            outcome = await asked()
            assert (outcome.cold, outcome.status) == (True, 200)
            await w.controller.drain("ours")
            outcome = await asked()
            assert (outcome.status, outcome.code) == (503, "drained")
            assert len(WAS_QUICK) == 5

        w.run(scenario())


@inside
async def test_a_model_that_an_operator_takes_out_of_service_is_refused_until_it_is_back(w: World) -> None:
    reader, writer = await w.connect()

    async def asked() -> int:
        writer.write(ask())
        return status((await message(reader))[0])

    assert [await asked(), await asked()] == [200, 200]
    assert await w.controller.drain("m")
    assert [await asked(), await asked()] == [503, 503]
    assert w.controller.undrain("m")
    assert await asked() == 200
    assert len(w.server.seen) == 3
    assert len(WAS_QUICK) == 4


# --- connections ----------------------------------------------------------------------------------------------------


@inside
async def test_an_idle_connection_is_closed_a_while_after_the_last_quick_answer(w: World) -> None:
    reader, writer = await w.connect()
    edge = await w.connection()
    for _ in range(3):
        writer.write(ask())
        await message(reader)
        assert (edge.phase, edge._quick, edge._turns) == (Phase.IDLE, None, [])
    requests = w.uvicorns.total_requests
    w.pass_time(KEEP_ALIVE_S - 1)
    writer.write(ask())
    await message(reader)
    assert w.uvicorns.total_requests == requests + 1
    w.pass_time(KEEP_ALIVE_S + 1)
    assert await reader.read() == b""
    assert len(WAS_QUICK) == 3


@inside
async def test_connections_between_requests_keep_nothing_of_them(w: World) -> None:
    reader, writer = await w.connect()
    edge = await w.connection()
    large = b'{"model": "m", "x": "%b"}' % (b"x" * 50_000)
    w.server.does = answers(JSON % (90_000, b"y" * 90_000))
    for _ in range(3):
        writer.write(ask(large))
        await message(reader)
    WAS_QUICK.clear()
    gc.collect()
    held = [one for one in gc.get_objects() if type(one) in (Quick, Call, Relaying)]
    assert not held
    seen: set[int] = set()

    def size(one: Any, depth: int = 6) -> int:
        if id(one) in seen or depth == 0 or isinstance(one, type):
            return 0
        seen.add(id(one))
        if isinstance(one, bytes):
            return len(one)
        return sum(size(inner, depth - 1) for inner in gc.get_referents(one))

    own: list[Any] = [edge._known, edge._repeats, edge._turn, edge.cycle]
    [connection] = [one for idle in w.plane.pool._idle.values() for one in idle]
    own += [connection._repeats, connection._again, connection._before, connection._seen]
    assert sum(map(size, own)) < 5_000


# --- nothing is left ------------------------------------------------------------------------------------------------


class Asking(asyncio.Protocol):
    """A client that sends one request after the other."""

    def __init__(self, request: bytes, times: int) -> None:
        self.request = request
        self.left = times
        self.got = b""
        self.done = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        transport.write(self.request)  # type: ignore[attr-defined] # uvloop's are none by inheritance

    def data_received(self, data: bytes) -> None:
        self.got += data
        if not self.got.endswith((b"}", LAST, b"mine")):
            return
        self.got = b""
        self.left -= 1
        if self.left:
            self.transport.write(self.request)
        else:
            self.transport.close()
            self.done.set()


LEFT: dict[str, tuple[Does, bytes, int, tuple[str, Any]]] = {
    "answered": (answers(WHOLE), ask(), 20_000, ("", None)),
    "streamed": (answers(STREAM + b"".join(map(chunk, EVENTS)) + LAST), ask(), 2_000, ("", None)),
    "filtered": (answers(WHOLE), ask(WATCHED, b"Authorization: Bearer key"), 2_000, ("", None)),
    "refused": (answers(WHOLE), ask(WATCHED, b"Authorization: Bearer no"), 500, ("", None)),
    "rejected": (answers(WHOLE), ask(WATCHED, b"Authorization: Bearer key"), 500, ("inner.on_request", rejects)),
    "rejected late": (answers(WHOLE), ask(WATCHED, b"Authorization: Bearer key"), 500, ("inner.on_response", rejects)),
    "answered by a filter": (
        answers(WHOLE),
        ask(WATCHED, b"Authorization: Bearer key"),
        500,
        ("inner.on_request", lambda _: Answer(status=202, body=b"mine")),
    ),
    "with hints": (answers(b"HTTP/1.1 103 Hints\r\n\r\n" + WHOLE), ask(), 500, ("", None)),
}


@pytest.mark.parametrize("kind", LEFT)
def test_quick_requests_leave_nothing_to_the_garbage_collector(here: World, kind: str) -> None:
    does, request, count, (hook, makes) = LEFT[kind]

    async def scenario() -> None:
        here.server.does = does
        if hook:
            DOES[hook] = makes

        async def some(times: int) -> int:
            _, client = await here.plane.loop.create_connection(lambda: Asking(request, times), "127.0.0.1", here.port)
            async with asyncio.timeout(30):
                await client.done.wait()
            await until(lambda: not here.connections and not here.generation.leases, "it is gone")
            for one in (here.outcomes, LOG, WAS_QUICK, here.server.seen, here.server.bodies):
                one.clear()
            return len(gc.get_objects())

        await some(50)
        gc.collect()
        gc.disable()
        try:
            counts = [await some(count // 4) for _ in range(4)]
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            found = [one for one in gc.garbage if type(one).__module__.startswith(("sidecar", "plugin_sdk"))]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        # Probes and timers leave something now and then.
        assert min(after - before for before, after in itertools.pairwise(counts)) < 50, counts
        assert len(found) < 20, found[:20]

    here.run(scenario())
