"""Asks by a head that is parsed, and by one that is known, and tells apart all that anybody sees of it."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from plugin_sdk import Outcome
from sidecar.mechanism.sampling import Sampler
from sidecar.mechanism.spans import Stage
from sidecar.mechanism.traces import Traces
from sidecar.surfaces.dataplane.quick import Quick
from sidecar.surfaces.dataplane.turns import Phase
from tests.support import until
from tests.surfaces.quick.plugins import DOES, LOG, timeless
from tests.surfaces.world import OK, STREAM, Does, World, answers, ask, chunk, get, status

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
    await until(condition, what, 1.0)


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


def slowly(*pieces: bytes) -> Does:
    """Answer with these bytes, one read each, mostly."""

    async def does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            for _ in range(3):
                await asyncio.sleep(0)

    return does


CALLER = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = CALLER[:-1] + b"0"


def asked_on(w: World) -> Any:
    """The connection on which the only request was asked."""
    edge = w.connections[0]
    if edge._quick is not None:
        return edge._quick._connection
    call: Any = edge._turns[0].answering if edge._turns else None
    return call._relaying.connection if call is not None and call._relaying is not None else None


async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    assert not await reader.read(1)


async def reached(w: World, reader: asyncio.StreamReader, wanted: bytes) -> None:
    await soon(lambda: w.server.seen, "it was asked")
    buffer = reader._buffer  # type: ignore[attr-defined] # nothing must be taken from it
    await soon(lambda: wanted in bytes(buffer), "so much has come")
