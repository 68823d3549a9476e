"""Filters: in which order, what they may change, what is never touched, and what their failures do."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from plugin_sdk import Event, Exchange, Filter, Headers, Outcome, Plugin, Principal, Reject, Request, Response, inline
from plugin_sdk import on_chunk as chunk_filter
from sidecar.mechanism import bodies, bounded
from sidecar.mechanism.calls import at_once
from sidecar.mechanism.chain import Chain
from sidecar.mechanism.filters import Passage
from sidecar.mechanism.instance import Instance
from tests.mechanism.conftest import Opened
from tests.support import PATIENCE_S, plugin

REQUEST = Request(method="POST", path="/v1/chat/completions", body=b'{"model": "m"}', model="m", mode="chat")
STREAM = Response(headers=Headers(((b"content-type", b"text/event-stream"),)), streamed=True)
WHOLE = Response(headers=Headers(((b"content-type", b"application/json"),)))
MOST = 1000

Make = Callable[..., Awaitable[Instance]]


@pytest.fixture
def made(opened: Opened) -> Make:
    """`await made(cls, name, on_error=...)` makes and opens an instance."""

    async def make(cls: type[Plugin[Any]], name: str = "guard", *, deadline_s: float = PATIENCE_S, **table: Any) -> Any:
        loaded = plugin(cls, name, deadline_s=deadline_s)
        declaration = msgspec.structs.replace(loaded.declaration, **table)
        return await opened(msgspec.structs.replace(loaded, declaration=declaration))

    return make


def passage(*instances: Instance, mode: str = "chat", events: bool = True) -> Passage:
    found = Chain(instances).passage(mode, MOST, events=events)
    assert found is not None
    return found


async def through(way: Passage, *chunks: bytes, head: Response = STREAM, encoding: str = "") -> list[bytes]:
    """What comes out at each chunk, and at the end."""
    assert isinstance(await way.request(REQUEST), Request)
    await way.response(head, encoding)
    return [*[await way.chunk(chunk) for chunk in chunks], await way.finish()]


# --- order ----------------------------------------------------------------------------------------------------------


class Tells(Filter):
    """Takes note of all that it sees."""

    told: ClassVar[list[str]] = []

    def on_request(self, exchange: Exchange) -> None:
        self.told.append(f"{self.name} request")

    @inline
    def on_response(self, exchange: Exchange) -> None:
        self.told.append(f"{self.name} response")

    async def on_chunk(self, exchange: Exchange, chunk: bytes) -> None:
        self.told.append(f"{self.name} {'last' if exchange.last else chunk.decode()}")

    def on_end(self, exchange: Exchange, outcome: Outcome) -> None:
        self.told.append(f"{self.name} end")


async def test_requests_pass_in_the_manifests_order_and_answers_in_the_reverse(made: Make) -> None:
    Tells.told.clear()
    way = passage(await made(Tells, "a"), await made(Tells, "b"))
    assert await through(way, b"x") == [b"x", b""]
    await way.end(Outcome(model="m"))
    assert [told.partition(" ")[2] for told in Tells.told[::2]] == ["request", "response", "x", "last", "end"]
    assert Tells.told == [
        *("a request", "b request", "b response", "a response", "b x", "a x", "b last", "a last", "b end", "a end")
    ]


async def test_the_end_is_told_to_those_whose_turn_had_come(made: Make) -> None:
    class Refuses(Tells):
        def on_request(self, exchange: Exchange) -> None:
            raise Reject(403, "no")

    Tells.told.clear()
    way = passage(await made(Tells, "a"), await made(Refuses, "b"), await made(Tells, "c"))
    with pytest.raises(Reject, match="no"):
        await way.request(REQUEST)
    await way.end(Outcome(model="m"))
    assert Tells.told == ["a request", "b end", "a end"]


# --- what is not touched --------------------------------------------------------------------------------------------


class OnlyRequest(Filter):
    def on_request(self, exchange: Exchange) -> None: ...


async def test_without_a_hook_on_the_body_the_very_same_bytes_come_out(made: Make) -> None:
    way = passage(await made(OnlyRequest, "a"), await made(OnlyRequest, "b"))
    chunks = [bytes([number]) * 20 for number in range(10)]
    out = await through(way, *chunks)
    assert not way.sees_body
    assert all(one is other for one, other in zip(chunks, out, strict=False))


async def test_hooks_that_are_not_overridden_are_not_called(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    for name in ("on_response", "on_chunk", "on_event", "on_end"):
        monkeypatch.setattr(Filter, name, never)
    way = passage(await made(OnlyRequest))
    assert not way.has_end
    assert await through(way, b"x") == [b"x", b""]
    await way.end(Outcome(model="m"))


async def test_a_chain_without_filters_has_no_passage(made: Make) -> None:
    assert Chain([]).passage("chat", MOST) is None


class OnlyChat(OnlyRequest):
    modes = ("chat",)


async def test_a_filter_of_another_mode_is_left_out_if_it_may_be(made: Make) -> None:
    skipped = await made(OnlyChat, on_error="skip")
    assert Chain([skipped]).passage("embedding", MOST) is None
    assert Chain([skipped]).passage("chat", MOST) is not None


async def test_a_guard_that_cannot_run_refuses(made: Make) -> None:
    way = passage(await made(OnlyChat), mode="embedding")
    with pytest.raises(Reject) as refused:
        await way.request(REQUEST)
    assert (refused.value.status, refused.value.code) == (503, "filter_unavailable")


# --- requests -------------------------------------------------------------------------------------------------------


async def test_a_request_is_changed_for_those_that_follow(made: Make) -> None:
    class Adds(Filter):
        def on_request(self, exchange: Exchange) -> Request:
            body = exchange.request.body + self.name.encode()
            return Request(method="POST", path="/v1/x", body=body, headers=Headers(((b"x-a", b"1"),)))

    changed = await passage(await made(Adds, "1"), await made(Adds, "2")).request(REQUEST)
    assert isinstance(changed, Request)
    assert (changed.body, changed.path, changed.headers.get("x-a")) == (b'{"model": "m"}12', "/v1/x", "1")


async def test_who_asks_and_for_which_model_stays_what_it_was(made: Make) -> None:
    class Usurps(Filter):
        @inline
        def on_request(self, exchange: Exchange) -> Request:
            root = Principal("root")
            return msgspec.structs.replace(
                exchange.request, principal=root, model="big", requested_model="big", mode="x", client="x", body=b"{}"
            )

    class Sees(Filter):
        @inline
        def on_request(self, exchange: Exchange) -> None:
            seen.append(exchange.request)

    seen: list[Request] = []
    asked = msgspec.structs.replace(REQUEST, principal=Principal("guest"), requested_model="alias", client="10.0.0.1")
    changed = await passage(await made(Usurps, "1"), await made(Sees, "2")).request(asked)
    assert [changed] == seen == [msgspec.structs.replace(asked, body=b"{}")]


async def test_an_answer_ends_the_way(made: Make) -> None:
    class Answers(Filter):
        @inline
        def on_request(self, exchange: Exchange) -> Response:
            return Response(status=201, body=b"cached")

    Tells.told.clear()
    way = passage(await made(Answers, "cache"), await made(Tells))
    answer = await way.request(REQUEST)
    assert isinstance(answer, Response)
    assert (answer.status, answer.body, way.answered_by) == (201, b"cached", "cache")
    assert Tells.told == []


class Answers(Filter):
    """Answers in the server's place, with two events."""

    streamed = True

    @inline
    def on_request(self, exchange: Exchange) -> Response:
        head = STREAM if self.streamed else WHOLE
        return msgspec.structs.replace(head, body=b"data: one\n\ndata: two\n\n" if self.streamed else b"{one}")

    def on_response(self, exchange: Exchange) -> None:
        raise AssertionError  # what it gives is what it means


class Shouts(Filter):
    """Changes head and body, and adds to the end of a stream."""

    @inline
    def on_response(self, exchange: Exchange) -> Response | None:
        assert exchange.response is not None
        assert exchange.response.body == b""
        raw = (*exchange.response.headers.raw, (b"x-by", self.name.encode()))
        return msgspec.structs.replace(exchange.response, headers=Headers(raw))

    async def on_event(self, exchange: Exchange, event: Event) -> Event:
        return msgspec.structs.replace(event, data=b"over" if not event.data else event.data.upper())


@pytest.mark.parametrize(("streamed", "body"), [(True, b"data: ONE\n\ndata: TWO\n\ndata: over\n\n"), (False, b"{ONE}")])
async def test_an_answer_that_a_filter_gives_passes_those_before_it(made: Make, streamed: bool, body: bytes) -> None:
    Tells.told.clear()
    answering = await made(Answers, "cache")
    assert isinstance(answering.plugin, Answers)
    answering.plugin.streamed = streamed
    way = passage(await made(Tells, "a"), await made(Shouts, "b"), answering, await made(Tells, "c"))
    answer = await way.request(REQUEST)
    assert isinstance(answer, Response)
    assert (answer.body, answer.headers.get("x-by"), answer.streamed) == (body, "b", streamed)
    await way.end(Outcome(model="m"))
    assert Tells.told[:2] == ["a request", "a response"]
    assert Tells.told[-2:] == ["a last", "a end"]


async def test_a_filter_before_may_refuse_what_another_answers(made: Make) -> None:
    class Censors(Filter):
        @inline
        def on_event(self, exchange: Exchange, event: Event) -> None:
            raise Reject(403, "not this word")

    with pytest.raises(Reject, match="not this word"):
        await passage(await made(Censors, "a"), await made(Answers, "cache")).request(REQUEST)


async def test_each_filter_has_a_state_of_its_own_for_each_request(made: Make) -> None:
    class Counts(Filter):
        def on_request(self, exchange: Exchange) -> None:
            assert exchange.state == {}
            exchange.state["chunks"] = 0

        @inline
        def on_chunk(self, exchange: Exchange, chunk: bytes) -> bytes | None:
            exchange.state["chunks"] += not exchange.last
            return str(exchange.state["chunks"]).encode() if exchange.last else None

    instances = await made(Counts, "a"), await made(Counts, "b")
    ways = [passage(*instances) for _ in range(20)]
    outs = await asyncio.gather(*(through(way, *[b"x"] * number) for number, way in enumerate(ways)))
    # b comes first, and what it adds at its end is one more piece for a
    assert [out[-1] for out in outs] == [b"%d%d" % (number, number + 1) for number in range(20)]


# --- heads and bodies -----------------------------------------------------------------------------------------------


async def test_a_head_is_changed(made: Make) -> None:
    class Heads(Filter):
        def on_response(self, exchange: Exchange) -> Response:
            assert exchange.response is not None
            raw = (*exchange.response.headers.raw, (b"x-by", self.name.encode()))
            return Response(status=299, headers=Headers(raw))

    way = passage(await made(Heads, "a"), await made(Heads, "b"))
    await way.request(REQUEST)
    head = await way.response(WHOLE, "")
    assert (head.status, head.headers.get_all("x-by")) == (299, ["b", "a"])


async def test_headers_alone_take_the_place_of_those_of_the_same_names(made: Make) -> None:
    class Later(Filter):
        async def on_response(self, exchange: Exchange) -> Headers:
            assert exchange.response is not None
            before = exchange.response.headers.get("X-By")
            return Headers(((b"x-by", f"{before}{self.name}".encode()), (b"x-only", self.name.encode())))

    class AtOnce(Filter):
        @inline
        def on_response(self, exchange: Exchange) -> Headers:
            assert exchange.response is not None
            before = exchange.response.headers.get("X-By")
            return Headers(((b"x-by", f"{before}{self.name}".encode()), (b"x-only", self.name.encode())))

    for kind in (Later, AtOnce):
        way = passage(await made(kind, "a"), await made(kind, "b"))
        await way.request(REQUEST)
        head = way.response_now(WHOLE, "") if kind is AtOnce else await way.response(WHOLE, "")
        assert (head.status, head.headers.get_all("x-by"), head.headers.get_all("x-only")) == (200, ["ba"], ["a"])
        assert head.headers.get("content-type") == WHOLE.headers.get("content-type")


async def test_headers_alone_leave_the_head_that_the_filter_was_shown_as_it_was(made: Make) -> None:
    """The same whether it waits or not: what it finds in `exchange.response` must not depend on its neighbours."""
    shown: list[str] = []

    class Names(Filter):
        @inline
        def on_response(self, exchange: Exchange) -> Headers:
            return Headers(((b"x-by", self.name.encode()),))

        @inline
        def on_end(self, exchange: Exchange, outcome: Outcome) -> None:
            assert exchange.response is not None
            shown.append(exchange.response.headers.get("x-by"))

    for now in (True, False):
        way = passage(await made(Names, "a"), await made(Names, "b"))
        await way.request(REQUEST)
        head = way.response_now(WHOLE, "") if now else await way.response(WHOLE, "")
        assert head.headers.get("x-by") == "a"
        way.end_now(Outcome(model="m"))
    assert shown == ["", "b"] * 2


async def test_chunks_are_changed_dropped_and_added(made: Make) -> None:
    @chunk_filter
    def shout(exchange: Exchange, chunk: bytes) -> bytes:
        return b"!" if exchange.last else chunk.upper().replace(b"B", b"")

    assert await through(passage(await made(shout)), b"a", b"b", b"c") == [b"A", b"", b"C", b"!"]


class Redacts(Filter):
    """Replaces words, drops pings, and says goodbye."""

    @inline
    def on_event(self, exchange: Exchange, event: Event) -> Event | list[Event] | None:
        if exchange.last and not event.whole:
            return [Event(data=b"bye")]
        if event.name == "ping":
            return []
        if b"secret" in event.data:
            return Event(data=event.data.replace(b"secret", b"***"), name=event.name, id=event.id, whole=event.whole)
        return [Event(data=b"1"), event] if event.data == b"two" else event


STREAMED = (
    b": hi\r\n\r\ndata: {}\r\n\r\nevent: ping\ndata: x\n\n"
    b": c\nid: 7\ndata: a secret\ndata: b\n\ndata:two\n\ndata: [DONE]\n\n"
)
FILTERED = (
    b": hi\r\n\r\ndata: {}\r\n\r\n"
    b": c\nid: 7\ndata: a ***\ndata: b\n\ndata: 1\n\ndata:two\n\ndata: [DONE]\n\ndata: bye\n\n"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_events_are_changed_dropped_and_added_whatever_the_pieces(made: Make, size: int) -> None:
    way = passage(await made(Redacts))
    chunks = [STREAMED[start : start + size] for start in range(0, len(STREAMED), size)]
    assert b"".join(await through(way, *chunks)) == FILTERED


class SeesEvents(Filter):
    """Changes nothing."""

    @inline
    def on_event(self, exchange: Exchange, event: Event) -> Event:
        return event


class SeesChunks(Filter):
    """Changes nothing."""

    @inline
    def on_chunk(self, exchange: Exchange, chunk: bytes) -> bytes:
        return chunk


@given(
    stream=st.lists(st.sampled_from([b"data: x", b"event: e", b"\n", b"\r", b"\r\n", b": c", b"\xef\xbb\xbf"])),
    cuts=st.lists(st.integers(0, 99)),
)
@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_what_nobody_changes_is_the_same_bytes(stream: list[bytes], cuts: list[int]) -> None:
    body = b"".join(stream)
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    chunks = [body[one:other] for one, other in pairwise(places)]
    instances = []
    for cls in (SeesEvents, SeesChunks, SeesEvents, SeesEvents):
        instance = Instance(cls.__name__, plugin(cls))
        await instance.open()
        instances.append(instance)
    for head in (STREAM, WHOLE):
        assert b"".join(await through(passage(*instances), *chunks, head=head)) == body


async def test_filters_on_events_follow_one_another_in_reverse(made: Make) -> None:
    class Adds(Filter):
        async def on_event(self, exchange: Exchange, event: Event) -> Event:
            if not event.data:
                return event
            return Event(data=event.data + self.name.encode())

    way = passage(await made(Adds, "a"), await made(Adds, "b"), await made(SeesChunks), await made(Adds, "c"))
    assert b"".join(await through(way, b"data: 0\n\n")) == b"data: 0cba\n\n"


async def test_a_body_that_is_no_stream_is_one_event_when_it_is_whole(made: Make) -> None:
    way = passage(await made(Redacts))
    assert await through(way, b'{"a": "sec', b'ret"}', head=WHOLE) == [b"", b"", b'{"a": "***"}']
    assert way.holds


async def test_events_that_passed_the_parser_are_not_held_back(made: Make) -> None:
    way = passage(await made(SeesEvents))
    assert await through(way, b"data: 1\n", b"\n", b"data: 2\n\ndata") == [b"", b"data: 1\n\n", b"data: 2\n\n", b"data"]
    assert not way.holds


# --- bounds ---------------------------------------------------------------------------------------------------------


async def test_a_body_beyond_max_body_is_refused_by_a_guard_and_passed_on_else(made: Make) -> None:
    chunks = [b"x" * 600, b"y" * 600, b"z"]
    with pytest.raises(Reject) as refused:
        await through(passage(await made(SeesEvents)), *chunks, head=WHOLE)
    assert refused.value.code == "filter_unavailable"
    lenient = await made(SeesEvents, on_error="skip")
    assert await through(passage(lenient), *chunks, head=WHOLE) == [b"", b"".join(chunks[:2]), b"z", b""]
    assert lenient.failed == 1


async def test_an_endless_event_is_refused_by_a_guard_and_passed_on_else(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "EVENT_BYTES", 100)
    chunks = [b"data: 1\n\ndata: ", b"x" * 200, b"y\n\n"]
    with pytest.raises(Reject):
        await through(passage(await made(SeesEvents)), *chunks)
    lenient = await made(SeesEvents, on_error="skip")
    assert b"".join(await through(passage(lenient), *chunks)) == b"".join(chunks)


async def test_an_answer_that_cannot_be_read_is_refused_by_a_guard_and_passed_on_else(made: Make) -> None:
    for cls in (SeesEvents, SeesChunks):
        with pytest.raises(Reject):
            await through(passage(await made(cls)), b"gz", encoding="gzip")
        lenient = await made(cls, on_error="skip")
        assert await through(passage(lenient), b"gz", encoding="gzip") == [b"gz", b""]
        assert lenient.failed == 1


# --- at once --------------------------------------------------------------------------------------------------------


class Notes(Filter):
    """Changes request and head, and takes note of the end, waiting for nothing."""

    ended: ClassVar[list[tuple[str, int]]] = []

    @inline
    def on_request(self, exchange: Exchange) -> Request:
        return msgspec.structs.replace(exchange.request, body=exchange.request.body + self.name.encode())

    @inline
    def on_response(self, exchange: Exchange) -> Response:
        assert exchange.response is not None
        raw = (*exchange.response.headers.raw, (b"x-by", self.name.encode()))
        return Response(status=exchange.response.status + 1, headers=Headers(raw))

    @inline
    def on_end(self, exchange: Exchange, outcome: Outcome) -> None:
        assert exchange.response is not None
        self.ended.append((self.name, exchange.response.status))


async def test_where_nothing_waits_plain_calls_do_the_same(made: Make) -> None:
    Notes.ended.clear()
    instances = await made(Notes, "a"), await made(Notes, "b")
    awaited, plain = passage(*instances), passage(*instances)
    assert plain.inline
    assert (
        plain.request_now(REQUEST)
        == await awaited.request(REQUEST)
        == msgspec.structs.replace(REQUEST, body=REQUEST.body + b"ab")
    )
    heads = plain.response_now(STREAM, ""), await awaited.response(STREAM, "")
    assert [(head.status, head.streamed, head.headers.get_all("x-by")) for head in heads] == [
        (202, True, ["b", "a"])
    ] * 2
    assert plain.has_end
    plain.end_now(Outcome(model="m"))
    await awaited.end(Outcome(model="m"))
    assert Notes.ended == [("b", 201), ("a", 202)] * 2


async def test_an_answer_that_a_filter_gives_at_once_passes_those_before_it_as_well(made: Make) -> None:
    class Says(Filter):
        @inline
        def on_request(self, exchange: Exchange) -> Response:
            return Response(body=b"cached")

    way = passage(await made(Notes, "a"), await made(Says, "cache"), await made(Notes, "b"))
    answer = way.request_now(REQUEST)
    assert isinstance(answer, Response)
    assert (answer.status, answer.body, answer.headers.get("x-by")) == (201, b"cached", "a")
    assert way.answered_by == "cache"


async def test_refusals_and_failures_at_once_are_the_same(made: Make) -> None:
    with pytest.raises(Reject) as refused:
        passage(await made(SplitsHeaders)).request_now(REQUEST)
    assert (refused.value.status, refused.value.code) == (503, "filter_unavailable")
    assert passage(await made(SplitsHeaders, on_error="skip")).request_now(REQUEST) is REQUEST


BAD_PAIR = (b"x", b"1\r\nevil: 1")


async def test_what_a_filter_puts_in_the_place_of_the_head_is_no_better_for_that(made: Make) -> None:
    class Replaces(Filter):
        @inline
        def on_request(self, exchange: Exchange) -> Request:
            exchange.request = msgspec.structs.replace(exchange.request, headers=Headers((BAD_PAIR,)))
            return exchange.request

        @inline
        def on_response(self, exchange: Exchange) -> Response:
            exchange.response = Response(headers=Headers((BAD_PAIR,)))
            return exchange.response

    lenient = await made(Replaces, on_error="skip")
    way = passage(lenient)
    assert way.request_now(REQUEST) is REQUEST
    assert way.response_now(WHOLE, "") is WHOLE
    assert lenient.failed == 2


# --- failures -------------------------------------------------------------------------------------------------------


class Raises(Filter):
    def on_request(self, exchange: Exchange) -> Any:
        raise KeyError("secret-of-the-house")


class RaisesOdd(Filter):
    @inline
    def on_request(self, exchange: Exchange) -> Any:
        raise BaseException("odd")


class Exits(Filter):
    async def on_request(self, exchange: Exchange) -> Any:
        sys.exit(3)


class ExitsInline(Filter):
    @inline
    def on_request(self, exchange: Exchange) -> Any:
        sys.exit(3)


class ExitsInThread(Filter):
    def on_request(self, exchange: Exchange) -> Any:
        sys.exit(3)


class Cancels(Filter):
    async def on_request(self, exchange: Exchange) -> Any:
        raise asyncio.CancelledError


class Recurses(Filter):
    @inline
    def on_request(self, exchange: Exchange) -> Any:
        return self.on_request(exchange)


class Hangs(Filter):
    async def on_request(self, exchange: Exchange) -> Any:
        await asyncio.Event().wait()


class Stubborn(Filter):
    async def on_request(self, exchange: Exchange) -> Any:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue


class HangsInThread(Filter):
    release = threading.Event()

    def on_request(self, exchange: Exchange) -> Any:
        self.release.wait(PATIENCE_S)

    async def close(self) -> None:
        self.release.set()


class SaysText(Filter):
    @inline
    def on_request(self, exchange: Exchange) -> Any:
        return "ok"


class SaysTextAsBody(Filter):
    @inline
    def on_request(self, exchange: Exchange) -> Any:
        body: Any = "text"
        return Request(method="POST", path="/v1/x", body=body)


class ForgotAwait(Filter):
    async def later(self) -> None: ...

    @inline
    def on_request(self, exchange: Exchange) -> Any:
        return self.later()


class SplitsHeaders(Filter):
    @inline
    def on_request(self, exchange: Exchange) -> Any:
        return Request(method="POST", path="/v1/x", headers=Headers(((b"x", b"1\r\nevil: 1"),)))


class SplitsPath(Filter):
    @inline
    def on_request(self, exchange: Exchange) -> Any:
        return Request(method="POST", path="/v1/x HTTP/1.1\r\nevil: 1")


class SplitsMethod(Filter):
    @inline
    def on_request(self, exchange: Exchange) -> Any:
        return msgspec.structs.replace(exchange.request, method="POST /v1/y HTTP/1.1\r\nevil: 1\r\n\r\nGET")


class MethodAsBytes(Filter):
    @inline
    def on_request(self, exchange: Exchange) -> Any:
        method: Any = b"POST"
        return msgspec.structs.replace(exchange.request, method=method)


class SaysStatus(Filter):
    @inline
    def on_request(self, exchange: Exchange) -> Any:
        return Response(status=99)


class Huge(Filter):
    @inline
    def on_request(self, exchange: Exchange) -> Any:
        return Response(body=bytes(65 * 2**20))


class Mutates(Filter):
    @inline
    def on_request(self, exchange: Exchange) -> Any:
        exchange.request.model = "another"  # type: ignore[misc] # that it cannot is what is tested


BAD = [
    *(Raises, RaisesOdd, Exits, ExitsInline, ExitsInThread, Cancels, Recurses, Hangs, Stubborn, HangsInThread),
    *(SaysText, SaysTextAsBody, ForgotAwait, SplitsHeaders, SplitsPath, SplitsMethod, MethodAsBytes, SaysStatus),
    *(Huge, Mutates),
]


@pytest.mark.parametrize("cls", BAD)
async def test_a_filter_that_breaks_does_as_its_on_error_says(
    made: Make, cls: type[Filter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "TIDY_S", 0.02)
    deadline_s = 0.05 if cls in (Hangs, Stubborn, HangsInThread) else PATIENCE_S
    guard = await made(cls, deadline_s=deadline_s)
    with pytest.raises(Reject) as refused:
        await passage(guard).request(REQUEST)
    what = "did not answer in time" if deadline_s < 1 else "failed"
    assert (refused.value.status, refused.value.code) == (503, "filter_unavailable")
    assert str(refused.value) == f'the filter plugin "guard" {what}'
    assert guard.failed == 1
    assert guard.last_error
    lenient = await made(cls, "lenient", deadline_s=deadline_s, on_error="skip")
    assert await passage(lenient).request(REQUEST) is REQUEST
    assert lenient.failed == 1
    assert not lenient.problem


async def test_the_last_error_has_the_authors_line(made: Make) -> None:
    guard = await made(Raises, on_error="skip")
    await passage(guard).request(REQUEST)
    assert f'{__file__}", line ' in guard.last_error
    assert "KeyError: 'secret-of-the-house'" in guard.last_error


@pytest.mark.parametrize("name", ["on_response", "on_chunk", "on_event"])
async def test_other_hooks_fail_in_the_same_way(made: Make, name: str) -> None:
    def fails(self: Filter, *_: Any) -> Any:
        return 5

    cls: type[Filter] = type("Fails", (Filter,), {name: fails})
    with pytest.raises(Reject):
        await through(passage(await made(cls)), b"data: 1\n\n")
    lenient = await made(cls, on_error="skip")
    assert b"".join(await through(passage(lenient), b"data: 1\n\n")) == b"data: 1\n\n"


async def test_an_on_end_that_fails_harms_nobody_and_the_others_are_told(made: Make) -> None:
    class Refuses(Filter):
        def on_end(self, exchange: Exchange, outcome: Outcome) -> None:
            raise Reject(403, "too late")

    Tells.told.clear()
    bad = await made(Refuses)
    way = passage(await made(Tells, "a"), bad)
    await way.request(REQUEST)
    await way.end(Outcome(model="m"))
    assert Tells.told == ["a request", "a end"]
    assert bad.failed == 1


async def test_one_that_fails_too_often_in_a_row_is_left_out(made: Make) -> None:
    class Sometimes(Filter):
        fails = True

        @inline
        def on_request(self, exchange: Exchange) -> None:
            if type(self).fails:
                raise ValueError("again")

    instance = await made(Sometimes, on_error="disable", disable_after=3)
    chain = Chain([instance])

    async def passes() -> bool:
        way = chain.passage("chat", MOST)
        return way is not None and await way.request(REQUEST) is REQUEST

    assert [await passes() for _ in range(2)] == [True, True]
    Sometimes.fails = False
    assert await passes()  # well again: it is counted anew
    Sometimes.fails = True
    assert all([await passes() for _ in range(7)])
    assert instance.out
    assert instance.failed == 5
    assert instance.problem == "left out after 3 failures in a row, the last one: ValueError: again"


async def test_a_filter_that_did_not_open_refuses_or_is_left_out(made: Make) -> None:
    class Closed(OnlyRequest):
        async def open(self) -> None:
            raise OSError("no file")

    with pytest.raises(Reject, match="is not available"):
        await passage(await made(Closed)).request(REQUEST)
    assert Chain([await made(Closed, on_error="skip")]).passage("chat", MOST) is None


async def test_a_rejection_is_no_failure(made: Make) -> None:
    class Refuses(Filter):
        async def on_request(self, exchange: Exchange) -> None:
            raise Reject(429, "slower", retry_after_s=3)

    instance = await made(Refuses, on_error="skip")
    with pytest.raises(Reject, match="slower"):
        await passage(instance).request(REQUEST)
    assert instance.failed == 0


async def test_calls_are_counted_and_timed(made: Make) -> None:
    instance = await made(OnlyRequest)
    for _ in range(3):
        await passage(instance).request(REQUEST)
    assert instance.runs == 3
    assert all(0 < took < PATIENCE_S for took in instance.durations_s)


async def test_a_request_that_is_cancelled_is_cancelled(made: Make) -> None:
    task = asyncio.create_task(passage(await made(Hangs, on_error="skip")).request(REQUEST))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- what needs no task -----------------------------------------------------------------------------------------------


class Asks(Filter):
    @inline
    def on_request(self, exchange: Exchange) -> None: ...


class Sees(Filter):
    @inline
    def on_chunk(self, exchange: Exchange, chunk: bytes) -> None: ...


class AsksSlowly(Filter):
    async def on_request(self, exchange: Exchange) -> None: ...


class SeesHeadsInThreads(Filter):
    def on_response(self, exchange: Exchange) -> None: ...


class SeesSlowly(Filter):
    @inline
    async def on_event(self, exchange: Exchange, event: Event) -> None: ...


class EndsSlowly(Filter):
    async def on_end(self, exchange: Exchange, outcome: Outcome) -> None: ...


@pytest.mark.parametrize(
    ("classes", "answer", "end", "body"),
    [
        ([Asks], True, True, False),
        ([Asks, Sees], True, True, True),
        ([AsksSlowly], True, True, False),
        ([Asks, SeesHeadsInThreads], False, True, False),
        ([Sees, SeesSlowly], False, True, True),
        ([EndsSlowly], True, False, False),
    ],
)
async def test_a_part_of_the_way_needs_no_task_if_none_of_its_hooks_waits(
    made: Make, classes: list[type[Filter]], answer: bool, end: bool, body: bool
) -> None:
    way = passage(*[await made(cls, cls.__name__) for cls in classes])
    assert (way.answer_inline, way.end_inline, way.sees_body) == (answer, end, body)
    assert way.inline is (answer and AsksSlowly not in classes)


async def test_a_guard_that_cannot_run_needs_no_task_to_refuse(made: Make) -> None:
    class Fails(Sees):
        async def open(self) -> None:
            raise OSError("no rules")

    way = passage(await made(Fails))
    assert way.inline
    with pytest.raises(Reject, match="is not available"):
        at_once(way.request(REQUEST))


async def test_who_is_told_of_the_end_is_known_once_the_request_has_passed(made: Make) -> None:
    told: list[bool] = []
    for cls in (EndsSlowly, Asks):
        way = passage(await made(cls, cls.__name__))
        told.append(way.has_end)
        await way.request(REQUEST)
        told.append(way.has_end)
    assert told == [False, True, False, False]
