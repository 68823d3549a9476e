"""How answers go: plain, after comments, and broken off."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from plugin_sdk import End, Event, Exchange, Filter, Headers, Interface, Reject, Request, inline
from plugin_sdk import Response as Head
from plugin_sdk.messages import RawHeaders
from sidecar.control.clock import Clock
from sidecar.mechanism.chain import Chain
from sidecar.mechanism.connections import UpstreamError
from sidecar.mechanism.filters import Passage
from sidecar.mechanism.instance import Instance
from sidecar.mechanism.modes import Mode
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.response import ERROR_BYTES, Response
from tests.support import plugin

EVENTS: RawHeaders = ((b"Content-Type", b"text/event-stream; charset=utf-8"), (b"x-served-by", b"it"))
JSON: RawHeaders = ((b"content-type", b"application/json"),)
COMMENT = b": loading qwen (1 s)\n\n"
STREAM = (b"data: 1\n\n", b"data: [DONE]\n\n")


class Client:
    """What arrives at the client (`Downstream`)."""

    def __init__(self) -> None:
        self.heads: list[tuple[int, RawHeaders]] = []
        self.body = b""
        self.sent: list[bytes] = []
        self.ended = ""

    async def start(self, status: int, headers: RawHeaders) -> None:
        self.heads.append((status, headers))

    async def send(self, chunk: bytes) -> None:
        assert self.heads
        assert not self.ended
        self.body += chunk
        self.sent.append(chunk)

    async def end(self) -> None:
        self.ended = "whole"

    async def abort(self) -> None:
        self.ended = "broken"

    @property
    def error(self) -> dict[str, Any]:
        """The error of the last event, which is all that the client may go by."""
        assert self.ended == "broken"
        last = self.body.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
        error: dict[str, Any] = json.loads(last.removeprefix(b"data: "))["error"]
        return error


class Answer:
    """A server's answer (`Exchange`)."""

    def __init__(self, status: int, headers: RawHeaders, *body: bytes, breaks: bool = False) -> None:
        self.status = status
        self.headers = headers
        self.read = 0
        self._body = body
        self._breaks = breaks

    async def chunks(self) -> AsyncIterator[bytes]:
        for chunk in self._body:
            self.read += len(chunk)
            yield chunk
        if self._breaks:
            raise UpstreamError("it broke off", processed=True)

    async def close(self) -> None: ...


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def response(client: Client) -> Response:
    return Response(client, Clock())


async def test_an_answer_without_a_wait_keeps_the_servers_head_and_bytes(client: Client, response: Response) -> None:
    await response.relay(Answer(200, EVENTS, *STREAM))
    assert client.heads == [(200, EVENTS)]
    assert (client.body, client.ended) == (b"".join(STREAM), "whole")
    assert (response.status, response.end, response.tail.streamed) == (200, End.OK, True)


async def test_a_servers_error_without_a_wait_is_passed_on_as_it_is(client: Client, response: Response) -> None:
    await response.relay(Answer(400, JSON, b"{}"))
    assert client.heads == [(400, JSON)]
    assert (client.body, client.ended) == (b"{}", "whole")
    assert (response.status, response.code, response.end, response.tail.streamed) == (400, "", End.OK, False)


async def test_comments_open_a_stream_that_the_servers_continues(client: Client, response: Response) -> None:
    await response.comment(COMMENT)
    await response.comment(COMMENT)
    assert response.first_byte_at is None
    await response.relay(Answer(200, EVENTS, *STREAM))
    ((status, headers),) = client.heads
    assert status == 200
    assert dict(headers) == {
        b"content-type": b"text/event-stream",
        b"cache-control": b"no-cache",
        b"x-accel-buffering": b"no",
    }
    assert (client.body, client.ended) == (COMMENT + COMMENT + b"".join(STREAM), "whole")
    assert (response.status, response.code, response.end) == (200, "", End.OK)
    assert response.tail.read() == b"".join(STREAM)
    assert response.first_byte_at is not None


async def test_a_refusal_after_comments_is_an_event_and_a_broken_connection(client: Client, response: Response) -> None:
    await response.comment(COMMENT)
    await response.refuse(ApiError(503, "exited", "exited with code 7"))
    assert client.error == {"message": "exited with code 7", "type": "server_error", "param": None, "code": "exited"}
    assert len(client.heads) == 1
    assert (response.status, response.code, response.end) == (503, "exited", End.REFUSED)
    assert response.first_byte_at is None


async def test_a_refusal_before_anything_was_sent_is_a_plain_answer(client: Client, response: Response) -> None:
    await response.refuse(ApiError(429, "queue_full", "full", retry_after_s=3.0))
    ((status, headers),) = client.heads
    assert (status, dict(headers)[b"retry-after"], client.ended) == (429, b"3", "whole")
    assert (response.status, response.code, response.end) == (429, "queue_full", End.REFUSED)


@pytest.mark.parametrize("waited", [True, False])
async def test_a_stream_that_breaks_off_ends_in_an_error_event(
    client: Client, response: Response, waited: bool
) -> None:
    if waited:
        await response.comment(COMMENT)
    with pytest.raises(UpstreamError):
        await response.relay(Answer(200, EVENTS, STREAM[0], breaks=True))
    await response.refuse(ApiError(502, "upstream_failed", "it broke off"), End.UPSTREAM_FAILED)
    assert client.error["code"] == "upstream_failed"
    assert (response.status, response.code, response.end) == (200, "upstream_failed", End.UPSTREAM_FAILED)


async def test_a_body_that_is_no_stream_is_broken_off_without_an_event(client: Client, response: Response) -> None:
    with pytest.raises(UpstreamError):
        await response.relay(Answer(200, JSON, b'{"a"', breaks=True))
    await response.refuse(ApiError(502, "upstream_failed", "it broke off"), End.UPSTREAM_FAILED)
    assert (client.body, client.ended) == (b'{"a"', "broken")


async def test_a_servers_error_after_comments_becomes_the_event(client: Client, response: Response) -> None:
    await response.comment(COMMENT)
    told = {"message": "the prompt is too long", "type": "invalid_request_error", "n_ctx": 4096}
    text = json.dumps({"error": told}, indent=1).encode()
    await response.relay(Answer(400, JSON, text[:20], text[20:]))
    assert client.error == told
    assert (response.status, response.code, response.end) == (400, "", End.OK)


async def test_an_endless_error_is_read_up_to_a_bound(client: Client, response: Response) -> None:
    await response.comment(COMMENT)
    endless = Answer(500, JSON, *[b"x" * 1024] * 1000)
    await response.relay(endless)
    assert client.error["message"].startswith("the server answered 500: xxx")
    assert endless.read <= ERROR_BYTES + 1024
    assert len(client.body) < 1024
    assert response.status == 500


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        (JSON, "application/json, not with a plain event stream"),
        ((), "with no content type, not"),
        ((*EVENTS, (b"Content-Encoding", b"gzip")), "gzip text/event-stream"),
    ],
)
async def test_what_cannot_continue_an_event_stream_is_not_put_into_one(
    client: Client, response: Response, headers: RawHeaders, named: str
) -> None:
    await response.comment(COMMENT)
    answer = Answer(200, headers, b'{"choices": []}')
    with pytest.raises(UpstreamError, match=named) as failed:
        await response.relay(answer)
    assert failed.value.processed
    assert answer.read == 0
    await response.refuse(ApiError(502, "upstream_failed", str(failed.value)), End.UPSTREAM_FAILED)
    assert client.body.startswith(COMMENT + b"\n\ndata: ")
    assert (response.status, response.code, response.end) == (502, "upstream_failed", End.UPSTREAM_FAILED)


async def test_an_error_that_breaks_off_is_an_upstreams_failure(client: Client, response: Response) -> None:
    await response.comment(COMMENT)
    with pytest.raises(UpstreamError):
        await response.relay(Answer(500, JSON, b"{", breaks=True))
    await response.refuse(ApiError(502, "upstream_failed", "it broke off"), End.UPSTREAM_FAILED)
    assert (response.status, response.end, client.ended) == (502, End.UPSTREAM_FAILED, "broken")


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


async def filtered(*classes: type[Filter]) -> Passage:
    instances = [Instance(cls.__name__, plugin(cls)) for cls in classes]
    for instance in instances:
        await instance.open()
    way = Chain(instances).passage("chat", 100)
    assert way is not None
    await way.request(Request(method="POST", path="/v1/x"))
    return way


async def mode(cls: type[Interface]) -> tuple[Mode, Instance]:
    """An interface in use, and what is counted of it."""
    instance = Instance(cls.__name__, plugin(cls))
    await instance.open()
    assert isinstance(instance.plugin, Interface)
    return Mode(instance, instance.plugin), instance


LONG: RawHeaders = (*JSON, (b"Content-Length", b"9"))


async def test_a_body_that_filters_see_gets_its_own_length(client: Client, response: Response) -> None:
    await response.relay(Answer(200, LONG, b'{"a":', b'"b"}'), await filtered(Shouts))
    assert client.heads == [(200, (*JSON, (b"content-length", b"9")))]
    assert (client.body, client.ended) == (b'{"A":"B"}', "whole")
    assert response.tail.read() == b'{"a":"b"}'  # what the server said, for its token counts


async def test_a_stream_that_filters_see_starts_at_once_and_has_no_length(client: Client, response: Response) -> None:
    await response.relay(Answer(200, (*EVENTS, (b"content-length", b"9")), b"data: a\n", b"\n"), await filtered(Shouts))
    assert client.heads == [(200, EVENTS)]
    assert (client.body, client.ended) == (b"data: A\n\n", "whole")


async def test_a_refusal_of_a_whole_body_is_a_plain_answer(client: Client, response: Response) -> None:
    with pytest.raises(Reject) as refused:
        await response.relay(Answer(200, LONG, b"2"), await filtered(Stops))
    assert not client.heads
    await response.refuse(ApiError.rejected(refused.value))
    assert (client.heads[0][0], client.ended) == (451, "whole")
    assert (response.status, response.code, response.end) == (451, "forbidden", End.REFUSED)


async def test_a_refusal_within_a_stream_breaks_it_off(client: Client, response: Response) -> None:
    with pytest.raises(Reject) as refused:
        await response.relay(Answer(200, EVENTS, b"data: 1\n\n", b"data: 2\n\n"), await filtered(Stops))
    await response.refuse(ApiError.rejected(refused.value))
    assert client.body.startswith(b"data: 1\n\n\n\ndata: {")
    assert client.error["code"] == "forbidden"
    assert (response.status, response.code, response.end) == (200, "forbidden", End.REFUSED)


async def test_a_filter_cannot_lie_about_a_body_that_it_does_not_change(client: Client, response: Response) -> None:
    answer = Answer(200, LONG, b'{"a":"b"}')
    await response.relay(answer, await filtered(Heads))
    assert client.heads == [(203, ((b"x-by", b"it"), (b"Content-Length", b"9")))]
    assert client.body == b'{"a":"b"}'


async def test_bytes_that_no_filter_sees_are_never_touched(client: Client, response: Response) -> None:
    chunks = [bytes([number]) * 50 for number in range(9)]
    await response.relay(Answer(200, EVENTS, *chunks), await filtered(Heads))
    assert len(client.sent) == len(chunks)
    assert all(one is other for one, other in zip(chunks, client.sent, strict=True))


async def test_after_comments_filters_see_what_follows(client: Client, response: Response) -> None:
    await response.comment(COMMENT)
    await response.relay(Answer(200, EVENTS, b"data: a\n\n"), await filtered(Shouts, Heads))
    assert (len(client.heads), client.body) == (1, COMMENT + b"data: A\n\n")


async def test_a_filters_own_answer_is_sent_whole(client: Client, response: Response) -> None:
    headers = Headers((*JSON, (b"content-length", b"99")))
    await response.give(Head(status=201, headers=headers, body=b"{}"), "answered_by:it")
    assert client.heads == [(201, (*JSON, (b"content-length", b"2")))]
    assert (client.body, client.ended) == (b"{}", "whole")
    assert (response.status, response.code, response.end, response.tail.total) == (201, "answered_by:it", End.OK, 2)


async def test_errors_have_the_shape_of_the_interface_that_was_called(client: Client, response: Response) -> None:
    class Own(Interface):
        provides = "own"

        def error(self, status: int, code: str, message: str, param: str | None = None) -> bytes:
            return f"{status} {code}".encode()

        def error_event(self, error: bytes) -> bytes:
            return b"event: error\ndata: " + error + b"\n\n"

    response.interface, instance = await mode(Own)
    await response.comment(COMMENT)
    await response.refuse(ApiError(503, "exited", "exited with code 7"))
    assert client.body == COMMENT + b"\n\nevent: error\ndata: 503 exited\n\n"
    assert (instance.runs, instance.failed) == (2, 0)


async def test_an_interface_that_cannot_word_an_error_does_not_hide_it(client: Client, response: Response) -> None:
    class Mute(Interface):
        provides = "mute"

        def error(self, status: int, code: str, message: str, param: str | None = None) -> bytes:
            raise SystemExit(3)

    response.interface, instance = await mode(Mute)
    await response.refuse(ApiError(503, "exited", "exited with code 7"))
    assert json.loads(client.body)["error"]["code"] == "exited"
    assert (instance.runs, instance.failed) == (0, 1)
