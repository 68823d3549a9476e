"""Servers that break the rules or die, and what their clients see of it (promises 23 and 24)."""

from __future__ import annotations

import contextlib
import json

import pytest

from tests.conformance.judge import Message
from tests.conformance.world import Client, World, answer, body_of, chunked, post

CHUNKED = "Transfer-Encoding: chunked"
EVENTS = "Content-Type: text/event-stream"
EVENT = b'data: {"n":1}\n\n'
ONE_EVENT = answer(b"%x\r\n%b\r\n" % (len(EVENT), EVENT), CHUNKED, EVENTS, length=False)


def failed(got: Message) -> None:
    """The sidecar's own word that the server failed, in OpenAI's shape."""
    assert got.status == 502
    error = json.loads(got.body)["error"]
    assert error["code"] == "upstream_failed"
    assert set(error) == {"message", "type", "param", "code"}


def still_in_step(here: World, client: Client) -> None:
    """The client's connection is good for another request, whose answer is its own."""
    client.send(post())
    here.upstream.take().send(answer(b"the next one"))
    assert client.answer().body == b"the next one"


NO_HTTP = {
    "garbage": b"\x00\x01\x02 what is this\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "http 2": b"HTTP/2 200 OK\r\ncontent-length: 0\r\n\r\n",
    "no version": b"HTTP/ 200 OK\r\n\r\n",
    "a word for a status": b"HTTP/1.1 OK 200\r\n\r\n",
    "a short status": b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n",
    "a long status": b"HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n",
    "a space in a name": b"HTTP/1.1 200 OK\r\nx y: 1\r\ncontent-length: 2\r\n\r\nok",
    "a space before the colon": b"HTTP/1.1 200 OK\r\ncontent-length : 2\r\n\r\nok",
    "no colon": b"HTTP/1.1 200 OK\r\nnonsense\r\ncontent-length: 2\r\n\r\nok",
    "nul in a value": b"HTTP/1.1 200 OK\r\nx: a\x00b\r\ncontent-length: 2\r\n\r\nok",
    "a bare cr in a value": b"HTTP/1.1 200 OK\r\nx: a\rSet-Cookie: b\r\ncontent-length: 2\r\n\r\nok",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!",
    "a length of words": b"HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\nok",
    "a length below nothing": b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok",
    "a length with a sign": b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok",
    "a length past all numbers": b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\nok",
    "both": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "an unknown coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "two codings": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked twice": b"HTTP/1.1 200 OK\r\n" + b"transfer-encoding: chunked\r\n" * 2 + b"\r\n2\r\nok\r\n0\r\n\r\n",
    "switched protocols": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
}


@pytest.mark.parametrize("kind", NO_HTTP)
def test_an_answer_that_is_no_http_is_told_as_a_failure(here: World, kind: str) -> None:
    client, asked = here.ask(post())
    asked.send(NO_HTTP[kind])
    asked.wait_gone()
    failed(client.answer())
    still_in_step(here, client)
    assert len(here.quiet()) == 2  # something came back, so it was not asked again


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nx: 1\r\n", b"HTTP/1.1 103 Hints\r\n\r\n"])
def test_a_server_that_dies_before_its_answer_is_told_as_a_failure(here: World, sent: bytes, reset: bool) -> None:
    client, asked = here.ask(post())
    if sent:
        asked.send(sent)
        here.barrier()
    asked.reset() if reset else asked.close()
    _, got = client.interim()
    failed(got)
    assert len(here.quiet()) == 1  # it had the whole request, and may have acted on it
    still_in_step(here, client)


def test_a_failure_has_anthropics_shape_where_that_was_called(here: World) -> None:
    client, asked = here.ask(post(path="/v1/messages"))
    asked.close()
    got = client.answer()
    assert (got.status, json.loads(got.body)["type"]) == (502, "error")


@pytest.mark.parametrize("reset", [False, True])
def test_a_body_that_falls_short_has_no_clean_end(here: World, reset: bool) -> None:
    client, asked = here.ask(post())
    asked.send(answer(b"half", "Content-Length: 8", length=False))
    client.until(b"half")
    asked.reset() if reset else asked.close()
    got = client.broken()
    assert got is not None
    assert got.body == b"half"


@pytest.mark.parametrize("reset", [False, True])
def test_chunks_without_their_end_have_no_clean_end(here: World, reset: bool) -> None:
    client, asked = here.ask(post())
    asked.send(answer(b"4\r\nhalf\r\n", CHUNKED, length=False))
    client.until(b"half")
    asked.reset() if reset else asked.close()
    got = client.broken()
    assert got is not None
    assert got.body == b"half"


def test_a_body_until_close_that_is_reset_has_no_clean_end(here: World) -> None:
    client, asked = here.ask(post())
    asked.send(answer(b"half", length=False))
    client.until(b"half")
    asked.reset()
    got = client.broken() if not client.was_reset else None
    assert got is None or got.body == b"half"


BAD_CHUNKS = {
    "no size": b"\r\nxx\r\n",
    "a word": b"zz\r\nxx\r\n",
    "a prefix": b"0x2\r\nxx\r\n",
    "below nothing": b"-2\r\nxx\r\n",
    "a sign": b"+2\r\nxx\r\n",
    "past all numbers": b"fffffffffffffffff\r\nxx\r\n",
    "too long": b"2\r\nxxx\r\n",
    "no line end": b"2\r\nxx2\r\nxx\r\n",
    "a nul": b"2\x00\r\nxx\r\n",
    "words after it": b"2 or 3\r\nxx\r\n",
}


@pytest.mark.parametrize("kind", BAD_CHUNKS)
def test_bad_chunks_have_no_clean_end(here: World, kind: str) -> None:
    client, asked = here.ask(post())
    asked.send(answer(b"4\r\ngood\r\n", CHUNKED, length=False))
    client.until(b"good")
    asked.send(BAD_CHUNKS[kind] + b"0\r\n\r\n")
    asked.wait_gone()
    client.rest()
    client.broken()


# --- streams ----------------------------------------------------------------------------------------------------


def _stream(here: World, path: str) -> tuple[Client, bytes]:
    """A stream whose server dies after an event, and what its client got."""
    client, asked = here.ask(post(body_of(rest=',"stream":true'), path=path))
    asked.send(ONE_EVENT)
    client.until(EVENT)
    asked.close()
    got = client.broken()
    assert got is not None
    return client, got.body


def test_a_stream_that_dies_ends_with_an_error_event_and_without_a_clean_end(here: World) -> None:
    client, body = _stream(here, "/v1/chat/completions")
    assert b"[DONE]" not in body
    assert not client.received.endswith(b"0\r\n\r\n")
    *events, last = body.removesuffix(b"\n\n").split(b"\n\n")
    assert events[0] + b"\n\n" == EVENT
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "upstream_failed"


def test_a_stream_that_dies_ends_in_anthropics_form_where_that_was_called(here: World) -> None:
    _, body = _stream(here, "/v1/messages")
    kind, data = body.removesuffix(b"\n\n").rpartition(b"\n\n")[2].split(b"\n")
    assert kind == b"event: error"
    assert json.loads(data.removeprefix(b"data: "))["type"] == "error"


def test_a_stream_that_dies_within_an_event_closes_that_event_first(here: World) -> None:
    """Or the error would be taken for the rest of it."""
    client, asked = here.ask(post(body_of(rest=',"stream":true')))
    asked.send(answer(b'c\r\ndata: {"n":1\r\n', CHUNKED, EVENTS, length=False))
    client.until(b'data: {"n":1')
    asked.close()
    got = client.broken()
    assert got is not None
    begun, error = got.body.removesuffix(b"\n\n").split(b"\n\n")
    assert begun == b'data: {"n":1'
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "upstream_failed"


def test_a_stream_that_dies_anywhere_has_no_clean_end(here: World) -> None:
    """Cut at every byte: never an end that looks right, never an error within a chunk of the server's."""
    events = EVENT + b"data: [DONE]\n\n"
    whole = answer(chunked(EVENT, b"data: [DONE]\n\n"), CHUNKED, EVENTS, length=False)
    head, last = whole.index(b"\r\n\r\n") + 4, whole.index(b"\r\n0\r\n") + 2
    for cut in range(1, len(whole)):
        client, asked = here.ask(post(body_of(rest=',"stream":true')))
        asked.send(whole[:cut])
        asked.close()
        if cut < head:
            failed(client.answer())
            continue
        got = client.broken()
        assert got is not None, cut
        if cut > last:  # the last chunk has begun: nothing may follow it, and nothing is missing
            assert got.body == events
            continue
        sent, _, error = got.body.rpartition(b'data: {"error"')
        assert b'"upstream_failed"' in error, (cut, got.body)
        assert events.startswith(sent.rstrip(b"\n")), (cut, got.body)  # line ends may fill up a chunk that was begun
        client.close()


# --- too much ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [b"x", b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", b"\r\n\r\n"])
@pytest.mark.parametrize("framing", ["length", "chunked", "nothing"])
def test_bytes_after_an_answer_are_nobodys(here: World, framing: str, extra: bytes) -> None:
    """They must not become the answer to the next request on that connection, whoever makes it."""
    whole = {
        "length": answer(b"mine"),
        "chunked": answer(chunked(b"mine"), CHUNKED, length=False),
        "nothing": answer(b"", status="204 No Content", length=False),
    }[framing]
    client, asked = here.ask(post())
    asked.send(whole + extra)
    if extra.strip():
        asked.wait_gone()
    got = client.whole_or_broken()
    if got is not None and got.whole:
        assert got.body in (b"mine", b"")
        still_in_step(here, client)
    else:  # who sends too much may not be trusted with the rest
        assert got is None or got.body in (b"mine", b"")
        assert framing == "chunked"


def test_an_answer_that_nobody_asked_for_is_nobodys(here: World) -> None:
    client, asked = here.ask(post())
    asked.send(answer(b"mine"))
    assert client.answer().body == b"mine"
    asked.send(answer(b"evil"))  # on the idle connection
    asked.wait_gone()
    still_in_step(here, client)


def test_a_head_without_end_is_refused(here: World) -> None:
    client, asked = here.ask(post())
    with contextlib.suppress(OSError):  # it has stopped listening
        asked.send(b"HTTP/1.1 200 OK\r\n" + b"x-filler: yes\r\n" * 200_000)
    failed(client.answer())
