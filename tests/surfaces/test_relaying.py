"""How servers' answers go on to clients: as they came, through filters, after comments, and broken off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import pytest

from plugin_sdk import End, Event, Exchange, Filter, Headers, Reject, Request, inline
from plugin_sdk import Response as Head
from sidecar.mechanism.chain import Chain
from sidecar.mechanism.connections import Connection
from sidecar.mechanism.exchanges import UpstreamError
from sidecar.mechanism.filters import Passage
from sidecar.mechanism.instance import Instance
from sidecar.mechanism.origins import Origin
from sidecar.mechanism.pool import Pool
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.relaying import ERROR_BYTES, FILL_BYTES, Relaying
from sidecar.surfaces.dataplane.steps import QUEUE_BYTES
from sidecar.surfaces.dataplane.withheld import UsageWithheld
from tests.support import plugin, until
from tests.surfaces.test_response import COMMENT, Client

JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Served-By: it\r\nContent-Length: %d\r\n\r\n"
EVENTS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nX-Served-By: it\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
DATA = (b"data: 1\n\n", b"data: [DONE]\n\n")
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def error(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d Oh\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


class ServersLine(asyncio.Transport):
    """The way to the server: what it sends is given to the connection by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = self.paused = False

    def write(self, data: Any) -> None: ...

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def abort(self) -> None:
        self.aborted = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Relay(Client):
    """One answer, from a server's bytes to a client's; it does as the request would (`Owner`)."""

    def __init__(
        self,
        passage: Passage | None = None,
        *,
        comments: int = 0,
        withheld: UsageWithheld | None = None,
        http11: bool = True,
    ) -> None:
        super().__init__(http11=http11)
        for _ in range(comments):
            self.response.comment(COMMENT)
        self.told: list[Any] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.server = ServersLine()
        self.connection = Connection(Pool(), Origin("http", "it", 80))
        self.connection.connection_made(self.server)
        self.relaying = Relaying(self, self.response, self.wire, passage, withheld)
        self.connection.ask(self.relaying, b"request", pieces=self.relaying.pieces)
        self.relaying.connection = self.connection

    def hears(self, *pieces: bytes) -> Relay:
        for piece in pieces:
            if self.server.aborted:
                break
            self.connection.data_received(piece)
        return self

    def breaks(self) -> Relay:
        self.connection.eof_received()
        return self

    def server_waits(self) -> bool:
        return self.server.paused

    async def settles(self) -> Relay:
        await until(lambda: self.told, "it is over")
        await asyncio.gather(*self.tasks)
        return self

    def answered(self) -> None:
        self.told.append("answered")
        self.wire.end()

    def broken(self, error: UpstreamError) -> None:
        self.told.append(error)
        self._refuse(ApiError(502, "upstream_failed", str(error)), End.UPSTREAM_FAILED)

    def refused(self, error: Exception) -> None:
        self.told.append(error)
        assert isinstance(error, Reject)
        self._refuse(ApiError.rejected(error), End.REFUSED)

    def headed(self, status: int) -> None:
        assert not self.told

    def server_slow(self, paused: bool) -> None: ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.ensure_future(work))

    def _refuse(self, error: ApiError, end: End) -> None:
        if not self.relaying.end_chunk():
            self.response.tail.streamed = False
        self.response.refuse(error, end)

    @property
    def outcome(self) -> tuple[int, str, End]:
        return self.response.status, self.response.code, self.response.end


pytestmark = pytest.mark.asyncio  # connections belong to a loop


# --- as it came -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_an_answer_keeps_its_head_and_its_very_bytes(size: int) -> None:
    for sent in (
        JSON_HEAD % 7 + b'{"a":1}',
        EVENTS + chunk(DATA[0]) + chunk(DATA[1]) + LAST,
        EVENTS + b"9;x=y\r\ndata: 1\n\n\r\n0\r\nT: 1\r\n\r\n",
        error(400, b"{}"),
        b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n",
    ):
        relay = Relay().hears(*(sent[at : at + size] for at in range(0, len(sent), size)))
        assert relay.sent == sent
        assert relay.told == ["answered"]
        assert (relay.line.closed, relay.done) == ("", 1)
        assert relay.outcome == (int(sent[9:12]), "", End.OK)


async def test_bytes_that_nobody_sees_are_never_touched() -> None:
    pieces = [bytes([number]) * 50 for number in range(9)]
    relay = Relay().hears(JSON_HEAD % 450)
    relay.hears(*pieces)
    assert all(one is other for one, other in zip(pieces[1:], relay.line.pieces[-8:], strict=True))


async def test_hop_by_hop_headers_end_here() -> None:
    sent = b"HTTP/1.1 200 OK\r\nConnection: X-B\r\nX-B: 1\r\nKeep-Alive: x\r\nX-A: 1\r\nContent-Length: 0\r\n\r\n"
    assert Relay().hears(sent).sent == b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 0\r\n\r\n"


async def test_interim_answers_are_passed_on() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    assert Relay().hears(early + JSON_HEAD % 0).sent == early + JSON_HEAD % 0


async def test_an_answer_without_a_length_gets_chunks() -> None:
    relay = Relay().hears(b"HTTP/1.1 200 OK\r\n\r\n", b"a", b"b").breaks()
    assert relay.sent == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n"


async def test_an_old_client_gets_no_chunks() -> None:
    relay = Relay(http11=False).hears(EVENTS + chunk(DATA[0]) + LAST)
    assert b"chunked" not in relay.head
    assert (relay.body, relay.line.closed) == (DATA[0], "closed")


async def test_what_is_counted_is_what_the_server_said() -> None:
    relay = Relay().hears(EVENTS + chunk(DATA[0]) + chunk(DATA[1]) + LAST)
    assert relay.response.chunked
    assert relay.response.tail.read(chunked=True) == b"".join(DATA)
    assert relay.response.first_byte_at is not None
    assert relay.response.tail.streamed


# --- broken off -----------------------------------------------------------------------------------------------------


async def test_a_break_before_the_head_is_a_plain_error() -> None:
    relay = Relay().breaks()
    assert relay.head.startswith(b"HTTP/1.1 502")
    assert relay.outcome == (502, "upstream_failed", End.UPSTREAM_FAILED)


@pytest.mark.parametrize("cut", range(len(EVENTS), len(EVENTS) + 40))
async def test_a_stream_that_breaks_off_anywhere_ends_in_an_event_that_can_be_read(cut: int) -> None:
    sent = (EVENTS + chunk(DATA[0]) + chunk(b"data: " + b"x" * 20 + b"\n\n"))[:cut]
    relay = Relay().hears(sent).breaks()
    assert relay.sent.startswith(sent)
    assert relay.error["code"] == "upstream_failed"
    assert relay.outcome == (200, "upstream_failed", End.UPSTREAM_FAILED)


async def test_a_chunk_that_is_too_large_to_be_filled_up_is_broken_off_as_it_is() -> None:
    sent = EVENTS + b"%x\r\ndata" % (2 * FILL_BYTES)
    relay = Relay().hears(sent).breaks()
    assert (relay.sent, relay.line.closed) == (sent, "closed")


async def test_a_body_with_a_length_is_broken_off_as_it_is() -> None:
    sent = EVENTS.replace(b"Transfer-Encoding: chunked", b"Content-Length: 99") + b"data: 1\n\n"
    for start in (sent, JSON_HEAD % 99 + b"{"):
        relay = Relay().hears(start).breaks()
        assert (relay.sent, relay.line.closed) == (start, "closed")


# --- after comments -------------------------------------------------------------------------------------------------


async def test_comments_open_a_stream_that_the_servers_continues() -> None:
    relay = Relay(comments=2).hears(EVENTS, chunk(DATA[0]) + chunk(DATA[1])[:5], chunk(DATA[1])[5:] + LAST)
    assert relay.sent.count(b"HTTP/1.1") == 1
    assert relay.body == COMMENT + COMMENT + b"".join(DATA)
    assert relay.sent.endswith(LAST)
    assert relay.outcome == (200, "", End.OK)
    assert relay.response.tail.read() == b"".join(DATA)


async def test_a_stream_that_breaks_off_after_comments_ends_in_an_event() -> None:
    relay = Relay(comments=1).hears(EVENTS + chunk(DATA[0])).breaks()
    assert relay.error["code"] == "upstream_failed"
    assert relay.outcome == (200, "upstream_failed", End.UPSTREAM_FAILED)


async def test_a_servers_error_after_comments_becomes_the_event() -> None:
    told = {"message": "the prompt is too long", "type": "invalid_request_error", "n_ctx": 4096}
    sent = error(400, json.dumps({"error": told}, indent=1).encode())
    relay = Relay(comments=1).hears(sent[:100], sent[100:])
    assert relay.error == told
    assert relay.outcome == (400, "", End.OK)


async def test_a_servers_error_without_a_body_after_comments_becomes_the_event() -> None:
    relay = Relay(comments=1).hears(error(500, b""))
    assert relay.error["message"] == "the server answered 500: nothing else"


async def test_an_endless_error_is_read_up_to_a_bound() -> None:
    relay = Relay(comments=1).hears(error(500, b"x")[:-1].replace(b"Length: 1", b"Length: 9999999"))
    read = 0
    while not relay.told:
        relay.hears(b"x" * 1024)
        read += 1024
    assert read <= ERROR_BYTES + 1024
    assert relay.server.aborted
    assert relay.error["message"].startswith("the server answered 500: xxx")
    assert len(relay.body) < 1024
    assert relay.response.status == 500


async def test_an_error_that_breaks_off_is_an_upstreams_failure() -> None:
    relay = Relay(comments=1).hears(error(500, b"{}")[:-1]).breaks()
    assert relay.outcome == (500, "upstream_failed", End.UPSTREAM_FAILED)
    assert relay.line.closed == "closed"


@pytest.mark.parametrize(
    ("head", "named"),
    [
        (JSON_HEAD % 99, "application/json, not with a plain event stream"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", "with no content type, not"),
        (EVENTS.replace(b"X-Served-By: it", b"Content-Encoding: gzip"), "gzip text/event-stream"),
    ],
)
async def test_what_cannot_continue_an_event_stream_is_not_put_into_one(head: bytes, named: str) -> None:
    relay = Relay(comments=1).hears(head, b'{"choices": []}')
    assert named in relay.error["message"]
    assert relay.body.startswith(COMMENT + b"\n\ndata: ")
    assert relay.outcome == (502, "upstream_failed", End.UPSTREAM_FAILED)
    assert relay.server.aborted
    [told] = relay.told
    assert told.processed


# --- filters --------------------------------------------------------------------------------------------------------


class Shouts(Filter):
    """Changes every event."""

    @inline
    def on_event(self, exchange: Exchange, event: Event) -> Event:
        return Event(data=event.data.upper(), whole=event.whole)


class Stops(Filter):
    """Lets one event pass."""

    @inline
    def on_event(self, exchange: Exchange, event: Event) -> None:
        if b"2" in event.data:
            raise Reject(451, "not this", code="forbidden")


class Heads(Filter):
    """Another head, which lies about the body."""

    @inline
    def on_response(self, exchange: Exchange) -> Head:
        raw = ((b"x-by", b"it"), (b"content-length", b"1"), (b"transfer-encoding", b"chunked"))
        return Head(status=203, headers=Headers(raw))


class Waits(Filter):
    """Changes pieces when it may."""

    may = asyncio.Event()

    async def on_chunk(self, exchange: Exchange, chunk: bytes) -> bytes:
        await self.may.wait()
        if b"2" in chunk:
            raise Reject(451, "not this", code="forbidden")
        return chunk.upper()


async def filtered(*classes: type[Filter]) -> Passage:
    instances = [Instance(cls.__name__, plugin(cls)) for cls in classes]
    for instance in instances:
        await instance.open()
    way = Chain(instances).passage("chat", 100)
    assert way is not None
    await way.request(Request(method="POST", path="/v1/x"))
    return way


async def test_a_body_that_filters_see_gets_its_own_length() -> None:
    relay = Relay(await filtered(Shouts)).hears(JSON_HEAD % 9 + b'{"a":', b'"b"}')
    assert relay.head.endswith(b"X-Served-By: it\r\ncontent-length: 9")
    assert (relay.body, relay.line.closed) == (b'{"A":"B"}', "")
    assert relay.response.tail.read() == b'{"a":"b"}'  # what the server said, for its token counts


async def test_a_body_that_filters_keep_whole_has_no_head_until_then() -> None:
    relay = Relay(await filtered(Shouts)).hears(JSON_HEAD % 9 + b'{"a":')
    assert not relay.sent
    assert relay.breaks().head.startswith(b"HTTP/1.1 502")


async def test_a_stream_that_filters_see_starts_at_once_and_has_no_length() -> None:
    relay = Relay(await filtered(Shouts)).hears(EVENTS)
    assert b"text/event-stream; charset=utf-8" in relay.head
    relay.hears(chunk(b"data: a\n"), chunk(b"\n") + LAST)
    assert (relay.body, relay.sent.endswith(LAST)) == (b"data: A\n\n", True)


async def test_a_refusal_of_a_whole_body_is_a_plain_answer() -> None:
    relay = Relay(await filtered(Stops)).hears(JSON_HEAD % 1 + b"2")
    assert relay.head.startswith(b"HTTP/1.1 451")
    assert relay.outcome == (451, "forbidden", End.REFUSED)


async def test_a_refusal_within_a_stream_breaks_it_off() -> None:
    relay = Relay(await filtered(Stops)).hears(EVENTS + chunk(b"data: 1\n\n"), chunk(b"data: 2\n\n"))
    assert relay.body.startswith(b"data: 1\n\n\n\ndata: {")
    assert relay.error["code"] == "forbidden"
    assert relay.outcome == (200, "forbidden", End.REFUSED)
    assert relay.server.aborted


async def test_a_filter_cannot_lie_about_a_body_that_it_does_not_change() -> None:
    relay = Relay(await filtered(Heads)).hears(JSON_HEAD % 9 + b'{"a":"b"}')
    assert relay.head.split(b"\r\n") == [
        b"HTTP/1.1 203 Non-Authoritative Information",
        b"x-by: it",
        b"Content-Length: 9",
    ]
    assert relay.body == b'{"a":"b"}'


async def test_after_comments_filters_see_what_follows() -> None:
    relay = Relay(await filtered(Shouts, Heads), comments=1).hears(EVENTS + chunk(b"data: a\n\n") + LAST)
    assert (relay.sent.count(b"HTTP/1.1"), relay.body) == (1, COMMENT + b"data: A\n\n")


async def test_pieces_go_through_a_filter_that_waits_one_after_the_other() -> None:
    Waits.may = asyncio.Event()
    relay = Relay(await filtered(Waits)).hears(EVENTS, chunk(b"data: a\n\n"), chunk(b"data: b\n\n") + LAST)
    await asyncio.sleep(0)
    assert b"A" not in relay.body
    Waits.may.set()
    await relay.settles()
    assert (relay.body, relay.told) == (b"DATA: A\n\nDATA: B\n\n", ["answered"])
    assert relay.sent.endswith(LAST)


async def test_a_break_comes_after_what_waits_for_a_filter() -> None:
    Waits.may = asyncio.Event()
    relay = Relay(await filtered(Waits)).hears(EVENTS, chunk(b"data: a\n\n")).breaks()
    Waits.may.set()
    await relay.settles()
    assert relay.body.startswith(b"DATA: A\n\n\n\ndata: {")
    assert relay.error["code"] == "upstream_failed"


async def test_a_refusal_by_a_filter_that_waits_cancels_the_server() -> None:
    Waits.may = asyncio.Event()
    relay = Relay(await filtered(Waits)).hears(EVENTS, chunk(b"data: 2\n\n"), chunk(b"data: b\n\n"))
    Waits.may.set()
    await relay.settles()
    assert relay.error["code"] == "forbidden"
    assert relay.server.aborted
    assert b"B" not in relay.body.partition(b"data: {")[0]


# --- slow ones ------------------------------------------------------------------------------------------------------


async def test_a_slow_client_stops_the_server_until_it_has_caught_up() -> None:
    relay = Relay().hears(EVENTS)
    relay.relaying.slow(True)
    stopped = relay.server_waits()
    relay.relaying.slow(False)
    assert (stopped, relay.server_waits()) == (True, False)


async def test_a_filter_that_waits_stops_the_server_when_much_waits_for_it() -> None:
    Waits.may = asyncio.Event()
    relay = Relay(await filtered(Waits)).hears(EVENTS, chunk(b"a" * QUEUE_BYTES))
    assert not relay.server_waits()
    relay.hears(chunk(b"b"))
    assert relay.server_waits()
    relay.relaying.slow(True)
    relay.relaying.slow(False)  # the client has caught up, the filter has not
    assert relay.server_waits()
    Waits.may.set()
    await until(lambda: not relay.server_waits(), "it is heard again")
    relay.hears(LAST)
    await relay.settles()
    assert relay.body == b"A" * QUEUE_BYTES + b"B"


async def test_nothing_is_passed_on_once_it_was_stopped() -> None:
    relay = Relay().hears(EVENTS + chunk(DATA[0]))
    sent = relay.sent
    relay.relaying.stop()
    assert relay.server.aborted
    relay.connection.connection_lost(None)
    assert (relay.sent, relay.told) == (sent, [])


# --- what only we have asked for ------------------------------------------------------------------------------------


async def test_the_event_with_the_counts_that_nobody_asked_for_is_withheld_and_counted() -> None:
    counts = b'data: {"choices": [], "usage": {"prompt_tokens": 1}}\n\n'
    relay = Relay(withheld=UsageWithheld()).hears(EVENTS + chunk(DATA[0]) + chunk(counts)[:9], chunk(counts)[9:])
    relay.hears(chunk(DATA[1]) + LAST)
    assert relay.body == b"".join(DATA)
    assert relay.sent.endswith(LAST)
    assert counts in relay.response.tail.read()


async def test_a_whole_answer_is_not_changed_where_counts_might_have_been_withheld() -> None:
    relay = Relay(withheld=UsageWithheld()).hears(JSON_HEAD % 9 + b'{"a":"b"}')
    assert relay.body == b'{"a":"b"}'
