"""What reaches a server is what the client sent (promise 21), however it was cut on the way."""

from __future__ import annotations

import pytest

from tests.conformance.judge import strict_head
from tests.conformance.upstream import head_of
from tests.conformance.world import AUTHORIZED, OWN, UPSTREAM_KEY, World, answer, body_of, chunked, end_to_end, post

ODD = (
    "X-Odd: one",
    "x-odd: two",
    "X-ODD:three",
    "X-Empty:",
    "X-Spaced: \t padded \t ",
    "Accept: */*",
    "X-Odd: one",
    "X-Bytes: caf\xe9",
    "Cookie: a=1",
    "cookie: b=2",
)
ODD_BODY = b'{ "unknown" : {"model":"x", "n":1.50e2},"model" :"plain" ,\n"s":"\\u00e9\xc3\xa9" }'


def test_a_request_arrives_as_it_was_sent(here: World) -> None:
    client, asked = here.ask(post(ODD_BODY, *ODD, path="/v1/chat/completions?a=1&b=%20%2F&a=1"))
    assert asked.method == b"POST"
    assert asked.target == b"/v1/chat/completions?a=1&b=%20%2F&a=1"
    assert bytes(asked.body) == ODD_BODY
    assert strict_head(head_of(asked.raw)) == ""
    asked.send(answer())
    assert client.answer().status == 200


def test_headers_keep_their_order_their_case_and_their_duplicates(here: World) -> None:
    _, asked = here.ask(post(None, *ODD))
    expected = tuple(
        (name.encode(), value.strip().encode("latin-1")) for name, _, value in (one.partition(":") for one in ODD)
    )
    assert end_to_end(asked.headers) == expected


def test_a_request_has_one_host_the_servers_own(here: World) -> None:
    _, asked = here.ask(post())
    assert asked.values(b"host") == [f"127.0.0.1:{here.upstream.port}".encode()]


def test_only_the_models_name_is_replaced(here: World) -> None:
    body = b'{"a":{"model":"also-keyed"} , "model"\t:\n"also-keyed", "z":[1.0,"also-keyed"]  }'
    _, asked = here.ask(post(body, AUTHORIZED))
    assert bytes(asked.body) == body.replace(b'\n"also-keyed"', b'\n"org/inner"')
    assert asked.values(b"content-length") == [str(len(asked.body)).encode()]


@pytest.mark.parametrize("written", [b'"k\\u0065yed"', b'"keyed"'])
@pytest.mark.parametrize("key", [b'"model"', b'"m\\u006fdel"'])
def test_the_models_name_is_found_however_it_is_escaped(here: World, key: bytes, written: bytes) -> None:
    _, asked = here.ask(post(b"{" + key + b":" + written + b',"n":1}', AUTHORIZED))
    assert bytes(asked.body) == b"{" + key + b':"org/inner","n":1}'


@pytest.mark.parametrize("how", ["connection", "named"])
def test_hop_by_hop_headers_end_here(here: World, how: str) -> None:
    """RFC 9110, 7.6.1: the ones that always are, and those that Connection names."""
    lines = {
        "connection": (
            "Keep-Alive: timeout=5",
            "Proxy-Connection: keep-alive",
            "Proxy-Authorization: Basic eA==",
            "TE: trailers",
        ),
        "named": ("Connection: keep-alive, X-Mine", "X-Mine: secret", "connection:x-other", "X-Other: 2", "x-MINE: 3"),
    }[how]
    _, asked = here.ask(post(None, "X-Kept: 1", *lines, "X-Kept: 2"))
    assert end_to_end(asked.headers) == ((b"X-Kept", b"1"), (b"X-Kept", b"2"))
    gone = {b"keep-alive", b"proxy-connection", b"proxy-authorization", b"te", b"x-mine", b"x-other"}
    assert not gone & {name.lower() for name, _ in asked.headers}
    assert all(value.lower() == b"keep-alive" for value in asked.values(b"connection"))


def test_connection_cannot_name_away_what_must_stay(here: World) -> None:
    """Or a client could have the framing, or the upstream's own key, removed behind the sidecar's back."""
    lines = ("Connection: content-length, host, authorization, content-type", "Content-Type: application/json")
    _, asked = here.ask(post(body_of("keyed"), AUTHORIZED, *lines))
    assert bytes(asked.body) == body_of("org/inner")
    assert asked.values(b"host") == [f"127.0.0.1:{here.upstream.port}".encode()]
    assert asked.values(b"authorization") == [f"Bearer {UPSTREAM_KEY}".encode()]


@pytest.mark.parametrize("line", ["Authorization: Bearer sk-clients", "x-api-key: sk-clients", "X-API-Key: sk-clients"])
def test_a_clients_key_never_reaches_a_server(here: World, line: str) -> None:
    _, asked = here.ask(post(None, line, "authorization: Basic sk-clients"))
    assert b"sk-clients" not in asked.raw


def test_the_servers_own_key_is_put_in(here: World) -> None:
    _, asked = here.ask(post(body_of("keyed"), AUTHORIZED, "x-api-key: sk-clients"))
    assert asked.values(b"authorization") == [f"Bearer {UPSTREAM_KEY}".encode()]
    assert b"sk-clients" not in asked.raw
    assert AUTHORIZED.encode() not in asked.raw


@pytest.mark.parametrize(
    "chunks", [(body_of(),), tuple(bytes([byte]) for byte in body_of()), (body_of()[:5], body_of()[5:])]
)
def test_a_chunked_request_arrives_whole(here: World, chunks: tuple[bytes, ...]) -> None:
    client, asked = here.ask(post(chunked(*chunks), "Transfer-Encoding: chunked", length=False))
    assert bytes(asked.body) == body_of()
    assert strict_head(head_of(asked.raw)) == ""
    asked.send(answer())
    assert client.answer().status == 200


def test_chunk_extensions_and_trailers_of_a_request_do_no_harm(here: World) -> None:
    body = b'5;a=b;c="d e"\r\n{"mod\r\n00c;x\r\nel":"plain"}\r\n000;last\r\nX-Trailer: 1\r\n\r\n'
    client, asked = here.ask(post(body, "Transfer-Encoding: chunked", length=False))
    assert bytes(asked.body) == body_of()
    assert end_to_end(asked.headers) == ()  # RFC 9110, 6.5.1: a trailer is not made a header
    asked.send(answer())
    assert client.answer().status == 200
    client.send(post())  # the connection is still in step
    assert bytes(here.upstream.take().body) == body_of()


def test_an_encoded_body_is_not_touched(here: World) -> None:
    """The encoding of an answer passes, too: nobody decodes it on the way."""
    zipped = bytes(range(256))
    client, asked = here.ask(post(None, "Accept-Encoding: gzip, br;q=0.5"))
    assert asked.values(b"accept-encoding") == [b"gzip, br;q=0.5"]
    asked.send(answer(zipped, "Content-Encoding: gzip"))
    got = client.answer()
    assert got.body == zipped
    assert got.values(b"content-encoding") == [b"gzip"]


def test_an_empty_line_before_a_request_is_skipped(here: World) -> None:
    """RFC 9112, 2.2: some clients send one after a body."""
    _, asked = here.ask(b"\r\n" + post())
    assert bytes(asked.body) == body_of()


# --- Expect (RFC 9110, 10.1.1) ----------------------------------------------------------------------------------


def test_a_client_that_expects_100_gets_it_before_it_sends_its_body(here: World) -> None:
    client = here.connect()
    client.send(post(b"", "Expect: 100-continue", f"Content-Length: {len(body_of())}", length=False))
    assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(body_of())
    asked = here.upstream.take()
    assert asked.values(b"expect") == []
    asked.send(answer())
    interim, got = client.interim()
    assert ([one.status for one in interim], got.status) == ([100], 200)


def test_a_client_that_does_not_wait_for_100_is_served(here: World) -> None:
    client, asked = here.ask(post(None, "Expect: 100-continue"))
    asked.send(answer())
    _, got = client.interim()
    assert got.body == b'{"ok":1}'


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(here: World) -> None:
    client = here.connect()
    client.send(post(b"", "Expect: 100-continue", "Content-Length: 99999999", length=False))
    interim, got = client.interim()
    assert ([one.status for one in interim], got.status) == ([], 413)
    assert client.closed()


def test_an_http_1_0_client_gets_no_100(here: World) -> None:
    client, asked = here.ask(post(None, "Expect: 100-continue", version="1.0"))
    asked.send(answer())
    assert [one.status for one in client.interim()[0]] == []


# --- however it is cut ------------------------------------------------------------------------------------------

CUT = {
    "length": post(None, "X-A: 1"),
    "chunked": post(
        chunked(b'{"model":', b'"plain"}', trailers=b"X-T: 1\r\n"), "Transfer-Encoding: chunked", length=False
    ),
    "renamed": post(b'{"n":{"model":1}, "model":"keyed" }', AUTHORIZED),
    "expecting": post(None, "Expect: 100-continue"),
    "old": post(None, "Connection: keep-alive", version="1.0"),
    "after an empty line": b"\r\n" + post(),
}


@pytest.mark.parametrize("kind", CUT)
def test_a_request_that_is_cut_anywhere_arrives_the_same(here: World, kind: str) -> None:
    client, whole = here.ask(CUT[kind])
    whole.send(answer())
    client.interim()
    expected = (
        whole.method,
        whole.target,
        end_to_end(whole.headers),
        whole.values(b"authorization"),
        bytes(whole.body),
    )
    for asked, got in here.requests_cut_everywhere(CUT[kind]):
        assert (
            asked.method,
            asked.target,
            end_to_end(asked.headers),
            asked.values(b"authorization"),
            bytes(asked.body),
        ) == expected
        assert (got.status, got.body) == (200, b'{"ok":1}')


def test_a_request_that_comes_byte_by_byte_arrives_the_same(here: World) -> None:
    client = here.connect()
    for byte in post(chunked(body_of()), "Transfer-Encoding: chunked", "X-A: 1", length=False):
        client.send(bytes([byte]))
        here.barrier()
    asked = here.upstream.take()
    assert bytes(asked.body) == body_of()
    assert end_to_end(asked.headers, OWN) == ((b"X-A", b"1"),)
