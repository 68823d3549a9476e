"""What reaches a client is what the server sent (promise 21), however it was cut on the way."""

from __future__ import annotations

import pytest

from tests.conformance.world import HOP_BY_HOP, World, answer, chunked, end_to_end, post

FRAMING = HOP_BY_HOP | {b"content-length"}
TEXT = b'{"ok": "caf\xc3\xa9"}'
CHUNKED = "Transfer-Encoding: chunked"
EVENTS = "Content-Type: text/event-stream"
STREAM = chunked(b'data: {"n":1}\n\n', b'data: {"n":2}\n', b"\ndata: [DONE]\n\n")


def test_an_answer_arrives_as_it_was_sent(here: World) -> None:
    lines = ("X-Odd: one", "x-odd: two", "X-ODD:three", "X-Empty:", "Set-Cookie: a=1", "Set-Cookie: b=2", "Date: then")
    client, asked = here.ask(post())
    asked.send(answer(TEXT, *lines, status="203 Quite So"))
    assert client.until(b"\r\n").startswith(b"HTTP/1.1 203 Quite So\r\n")
    got = client.answer()
    assert got.body == TEXT
    expected = tuple(
        (name.encode(), value.strip().encode()) for name, _, value in (one.partition(":") for one in lines)
    )
    assert end_to_end(got.headers, FRAMING) == expected


@pytest.mark.parametrize(
    "status", ["200", "200 ", "299 Odd But Fine", "404 Not Found", "429 Slow Down", "500 No", "599 \xe9"]
)
def test_any_status_passes(here: World, status: str) -> None:
    client, asked = here.ask(post())
    asked.send(answer(TEXT, status=status))
    got = client.answer()
    assert (got.status, got.body) == (int(status[:3]), TEXT)


def test_hop_by_hop_headers_of_an_answer_end_here(here: World) -> None:
    """RFC 9110, 7.6.1: the ones that always are, and those that Connection names."""
    client, asked = here.ask(post())
    lines = ("Connection: keep-alive, X-Mine", "Keep-Alive: timeout=5", "X-Mine: 1", "X-Kept: 1", "connection: X-Other")
    asked.send(answer(TEXT, *lines, "x-other: 2", "Proxy-Connection: x", "Proxy-Authenticate: Basic"))
    got = client.answer()
    assert end_to_end(got.headers, frozenset((b"connection", b"content-length"))) == ((b"X-Kept", b"1"),)
    assert all(value.lower() in (b"keep-alive", b"close") for value in got.values(b"connection"))


def test_a_chunked_answer_arrives_whole_with_its_trailers(here: World) -> None:
    client, asked = here.ask(post())
    asked.send(answer(chunked(b"one", b"two", trailers=b"X-Sum: 6\r\nx-sum: 7\r\n"), CHUNKED, length=False))
    got = client.answer()
    assert got.body == b"onetwo"
    assert got.trailers == ((b"X-Sum", b"6"), (b"x-sum", b"7"))


def test_each_event_arrives_before_the_next_is_sent(here: World) -> None:
    client, asked = here.ask(post())
    asked.send(answer(b"", CHUNKED, EVENTS, length=False))
    client.until(b"\r\n\r\n")
    for number in range(5):
        event = b"data: %d\n\n" % number
        asked.send(b"%x\r\n%b\r\n" % (len(event), event))
        client.until(event)
    asked.send(b"0\r\n\r\n")
    assert client.answer().body == b"".join(b"data: %d\n\n" % number for number in range(5))


def test_the_parts_of_an_event_arrive_before_its_end(here: World) -> None:
    """Bytes are passed on as they come; nobody waits for an event, or a chunk, to be complete."""
    client, asked = here.ask(post())
    asked.send(answer(b"20\r\ndata: half", CHUNKED, EVENTS, length=False))
    client.until(b"data: half")
    asked.send(b" of it".ljust(20) + b"\n\n\r\n0\r\n\r\n")
    assert client.answer().body == (b"data: half" + b" of it".ljust(20) + b"\n\n")


def test_an_answer_may_come_before_the_request_has_ended(here: World) -> None:
    client = here.connect()
    client.send(post(b'{"model":"plain", "text":"', "Content-Length: 999", length=False))
    client.send(b"x" * 971 + b'"}')
    asked = here.upstream.take()
    asked.send(answer())
    assert client.answer().status == 200


# --- answers without a body (RFC 9112, 6.3) ---------------------------------------------------------------------


@pytest.mark.parametrize("lines", [(), ("X-A: 1",), ("Content-Length: 10",), (CHUNKED,)])
@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_a_status_without_a_body_ends_with_its_head(here: World, status: str, lines: tuple[str, ...]) -> None:
    """Whatever the head says of a length. The connections stay in step."""
    client, asked = here.ask(post())
    asked.send(answer(b"", *lines, status=status, length=False))
    got = client.answer()
    assert (got.status, got.body) == (int(status[:3]), b"")
    client.send(post())
    here.upstream.take().send(answer(TEXT))
    assert client.answer().body == TEXT


def test_an_empty_body_is_a_body(here: World) -> None:
    client, asked = here.ask(post())
    asked.send(answer(b""))
    got = client.answer()
    assert (got.body, got.values(b"content-length")) == (b"", [b"0"])


def test_head_of_the_models_list_has_no_body(here: World) -> None:
    client = here.connect()
    client.send(b"HEAD /v1/models HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer sk-test-e2e\r\n\r\n" * 2)
    for _ in range(2):
        got = client.answer(b"HEAD")
        assert (got.status, got.body) == (200, b"")


@pytest.mark.parametrize(("path", "status"), [("/v1/chat/completions", 405), ("/v1/nowhere", 404), ("/nowhere", 404)])
def test_an_error_for_head_has_no_body(here: World, path: str, status: int) -> None:
    client = here.connect()
    client.send(f"HEAD {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n".encode())
    assert client.answer(b"HEAD").status == status
    assert client.closed()


def test_head_is_passed_on_and_answered_without_a_body(here: World) -> None:
    """Whatever its answer says of a length. The connections stay in step."""
    client = here.connect()
    for lines in (("Content-Length: 10",), (CHUNKED,), ()):
        client.send(b"HEAD /upstream/plain/some/path HTTP/1.1\r\nHost: here\r\n\r\n")
        asked = here.upstream.take()
        assert (asked.method, asked.target) == (b"HEAD", b"/some/path")
        asked.send(answer(b"", *lines, length=False))
        if not lines:
            asked.close()
        got = client.answer(b"HEAD")
        assert (got.status, got.body) == (200, b"")
        client.send(post())
        here.upstream.take().send(answer(TEXT))
        assert client.answer().body == TEXT


@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS", "PATCH", "PROPFIND"])
def test_any_method_is_passed_on(here: World, method: str) -> None:
    client, asked = here.ask(f"{method} /upstream/plain/some/path?q=1 HTTP/1.1\r\nHost: here\r\n\r\n".encode())
    assert (asked.method, asked.target, bytes(asked.body)) == (method.encode(), b"/some/path?q=1", b"")
    asked.send(answer(TEXT))
    assert client.answer(method.encode()).body == TEXT


# --- interim answers (RFC 9110, 15.2) ---------------------------------------------------------------------------


def test_early_hints_are_passed_on(here: World) -> None:
    client, asked = here.ask(post())
    asked.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\nX: 1\r\n\r\n")
    client.until(b"\r\n\r\n")  # at once, not with the answer
    asked.send(answer(TEXT))
    interim, got = client.interim()
    assert [(one.status, end_to_end(one.headers, HOP_BY_HOP)) for one in interim] == [(103, ((b"Link", b"</a>"),))]
    assert (got.status, got.body) == (200, TEXT)


def test_early_hints_are_kept_from_an_http_1_0_client(here: World) -> None:
    client, asked = here.ask(post(version="1.0"))
    asked.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + answer(TEXT))
    interim, got = client.interim()
    assert ([one.status for one in interim], got.body) == ([], TEXT)


def test_any_number_of_interim_answers_may_come_first(here: World) -> None:
    client, asked = here.ask(post())
    asked.send(b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 102 Processing\r\n\r\n" * 20 + answer(TEXT))
    _, got = client.interim()
    assert (got.status, got.body) == (200, TEXT)
    client.send(post())
    here.upstream.take().send(answer())
    assert client.answer().status == 200


# --- however it is cut ------------------------------------------------------------------------------------------

CUT = {
    "length": answer(TEXT, "X-A: 1"),
    "chunked": answer(chunked(b"one", b"two", trailers=b"X-T: 1\r\n"), CHUNKED, length=False),
    "chunk extensions": answer(b"3;a=b\r\none\r\n0;c\r\n\r\n", CHUNKED, length=False),
    "events": answer(STREAM, CHUNKED, EVENTS, length=False),
    "until close": answer(TEXT, "X-A: 1", length=False),
    "nothing": answer(b"", status="204 No Content", length=False),
    "interim": b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" + answer(TEXT),
}


@pytest.mark.parametrize("kind", CUT)
def test_an_answer_that_is_cut_anywhere_arrives_the_same(here: World, kind: str) -> None:
    close = kind == "until close"
    client, asked = here.ask(post())
    asked.send(CUT[kind])
    if close:
        asked.close()
    whole = client.answer()
    assert whole.body in (TEXT, b"onetwo", b"one", b"", b'data: {"n":1}\n\ndata: {"n":2}\n\ndata: [DONE]\n\n')
    for cut in here.answers_cut_everywhere(CUT[kind], close=close):
        assert cut.answer() == whole


def test_an_answer_that_comes_byte_by_byte_arrives_the_same(here: World) -> None:
    client, asked = here.ask(post())
    for byte in answer(STREAM, CHUNKED, EVENTS, length=False):
        asked.send(bytes([byte]))
        here.barrier()
    assert client.answer().body == b'data: {"n":1}\n\ndata: {"n":2}\n\ndata: [DONE]\n\n'
