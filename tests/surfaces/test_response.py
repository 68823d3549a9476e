"""An answer of the sidecar's own, comments while one is waited for, and how answers end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from plugin_sdk import End, Headers, Interface
from plugin_sdk import Response as Head
from plugin_sdk.messages import RawHeaders
from sidecar.control.clock import Clock
from sidecar.mechanism.instance import Instance
from sidecar.mechanism.modes import Mode
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.response import Response, framed_as, unframed
from tests.support import plugin
from tests.surfaces.test_wire import Way

JSON: RawHeaders = ((b"content-type", b"application/json"),)
COMMENT = b": loading qwen (1 s)\n\n"
EXITED = ApiError(503, "exited", "exited with code 7")


class Client(Way):
    """Who gets the answer."""

    def __init__(self, *, http11: bool = True) -> None:
        super().__init__(http11=http11)
        self.response = Response(self.wire, Clock())

    @property
    def head(self) -> bytes:
        return self.sent.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        """Without the framing of chunks, of which there may be no end."""
        raw, body = self.sent.partition(b"\r\n\r\n")[2], b""
        if b"transfer-encoding: chunked" not in self.head.lower():
            return raw
        while raw:
            size, _, raw = raw.partition(b"\r\n")
            body, raw = body + raw[: int(size, 16)], raw[int(size, 16) + 2 :]
        return body

    @property
    def error(self) -> dict[str, Any]:
        """The error of the last event, which is all that the client may go by."""
        assert self.line.closed
        assert not self.sent.endswith(b"0\r\n\r\n")
        last = self.body.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
        error: dict[str, Any] = json.loads(last.lstrip(b"\n").removeprefix(b"data: "))["error"]
        return error


@pytest.fixture
def client() -> Client:
    return Client()


def test_a_refusal_before_anything_was_sent_is_a_plain_answer(client: Client) -> None:
    client.response.refuse(ApiError(429, "queue_full", "full", retry_after_s=3.0))
    assert client.head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert b"\r\nretry-after: 3" in client.head
    assert (client.response.status, client.response.code, client.response.end) == (429, "queue_full", End.REFUSED)
    assert (client.done, client.line.closed) == (1, "")


def test_a_refusal_after_comments_is_an_event_and_a_broken_connection(client: Client) -> None:
    client.response.comment(COMMENT)
    client.response.refuse(EXITED)
    assert client.error == {"message": "exited with code 7", "type": "server_error", "param": None, "code": "exited"}
    assert client.sent.count(b"HTTP/1.1") == 1
    assert (client.response.status, client.response.code, client.response.end) == (503, "exited", End.REFUSED)
    assert client.response.first_byte_at is None


def test_comments_have_the_head_of_a_stream_before_them(client: Client) -> None:
    client.response.comment(COMMENT)
    client.response.comment(COMMENT)
    assert client.head.startswith(b"HTTP/1.1 200 OK\r\n")
    for line in (b"content-type: text/event-stream", b"cache-control: no-cache", b"x-accel-buffering: no"):
        assert line in client.head
    assert client.body == COMMENT + COMMENT
    assert (client.response.status, client.response.first_byte_at) == (0, None)


def test_comments_for_an_old_client_are_not_in_chunks() -> None:
    client = Client(http11=False)
    client.response.comment(COMMENT)
    assert client.sent.endswith(b"connection: close\r\n\r\n" + COMMENT)


def test_a_body_that_is_no_stream_is_broken_off_without_an_event(client: Client) -> None:
    client.response.start(200, b"", JSON, client.response.framed())
    client.wire.send(b'{"a"')
    client.response.status = 200
    client.response.refuse(ApiError(502, "upstream_failed", "it broke off"), End.UPSTREAM_FAILED)
    assert (client.body, client.line.closed) == (b'{"a"', "closed")
    assert (client.response.status, client.response.end) == (200, End.UPSTREAM_FAILED)


def test_a_filters_own_answer_is_sent_whole(client: Client) -> None:
    headers = Headers((*JSON, (b"content-length", b"99"), (b"Transfer-Encoding", b"chunked")))
    client.response.give(Head(status=201, headers=headers, body=b"{}"), "answered_by:it")
    assert client.sent == b"HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    response = client.response
    assert (response.status, response.code, response.end, response.tail.total) == (201, "answered_by:it", End.OK, 2)


def test_a_client_that_leaves_is_told_of_as_such(client: Client) -> None:
    client.response.left()
    assert (client.response.end, client.response.code) == (End.CLIENT_GONE, "client_gone")


def test_a_second_head_is_never_sent(client: Client) -> None:
    client.response.comment(COMMENT)
    client.response.start(201, b"", JSON, client.response.framed())
    assert client.sent.count(b"HTTP/1.1") == 1


def test_the_framing_is_not_for_filters_to_say() -> None:
    said = ((b"X-By", b"it"), (b"Content-Length", b"1"), (b"Transfer-Encoding", b"chunked"), (b"Trailer", b"x"))
    assert unframed(said) == [(b"X-By", b"it")]
    original = [(b"Content-Type", b"a/b"), (b"Content-Length", b"9")]
    came = tuple(original)
    assert framed_as(original, came, said) == [(b"X-By", b"it"), (b"Content-Length", b"9")]
    assert framed_as(original, came, came + said) == [*original, (b"X-By", b"it")]
    assert framed_as(original, came, came[:1]) == original


# --- whose errors they are ------------------------------------------------------------------------------------------


async def mode(cls: type[Interface]) -> tuple[Mode, Instance]:
    """An interface in use, and what is counted of it."""
    instance = Instance(cls.__name__, plugin(cls))
    await instance.open()
    assert isinstance(instance.plugin, Interface)
    return Mode(instance, instance.plugin), instance


async def test_errors_have_the_shape_of_the_interface_that_was_called(client: Client) -> None:
    class Own(Interface):
        provides = "own"

        def error(self, status: int, code: str, message: str, param: str | None = None) -> bytes:
            return f"{status} {code}".encode()

        def error_event(self, error: bytes) -> bytes:
            return b"event: error\ndata: " + error + b"\n\n"

    client.response.interface, instance = await mode(Own)
    client.response.comment(COMMENT)
    client.response.refuse(EXITED)
    assert client.body == COMMENT + b"\n\nevent: error\ndata: 503 exited\n\n"
    assert (instance.runs, instance.failed) == (2, 0)


async def test_an_interface_that_cannot_word_an_error_does_not_hide_it(client: Client) -> None:
    class Mute(Interface):
        provides = "mute"

        def error(self, status: int, code: str, message: str, param: str | None = None) -> bytes:
            raise SystemExit(3)

    client.response.interface, instance = await mode(Mute)
    client.response.refuse(EXITED)
    assert json.loads(client.body)["error"]["code"] == "exited"
    assert (instance.runs, instance.failed) == (0, 1)
