"""How long connections last, on both sides (RFC 9112, 9), and several requests on one of them."""

from __future__ import annotations

import pytest

from tests.conformance.world import AUTHORIZED, World, answer, body_of, chunked, post

TEXT = b'{"n":1}'
CHUNKED = "Transfer-Encoding: chunked"


def test_a_clients_connection_is_kept(here: World) -> None:
    client = here.connect()
    for number in range(3):
        client.send(post())
        here.upstream.take().send(answer(b"%d" % number))
        assert client.answer().body == b"%d" % number


def test_a_servers_connection_is_used_again(here: World) -> None:
    client = here.connect()
    used = set()
    for _ in range(3):
        client.send(post())
        asked = here.upstream.take()
        used.add(asked.connection)
        asked.send(answer())
        client.answer()
    assert len(used) == 1


@pytest.mark.parametrize("line", ["Connection: close", "connection: x, Close"])
def test_a_client_that_asks_for_the_end_gets_it(here: World, line: str) -> None:
    client, asked = here.ask(post(None, line))
    assert b"close" not in [value.lower() for value in asked.values(b"connection")]  # it is not about that connection
    asked.send(answer(TEXT))
    got = client.answer()
    assert got.body == TEXT
    assert [value.lower() for value in got.values(b"connection")] == [b"close"]
    assert client.closed()


def test_what_follows_a_request_to_close_is_not_looked_at(here: World) -> None:
    client = here.connect()
    client.send(post(None, "Connection: close") + post())
    here.upstream.take().send(answer(TEXT))
    assert client.answer().body == TEXT
    assert client.closed()
    assert len(here.quiet()) == 1


def test_a_server_that_closes_does_not_end_the_clients_connection(here: World) -> None:
    client = here.connect()
    for _ in range(2):
        client.send(post())
        asked = here.upstream.take()
        asked.send(answer(TEXT, "Connection: close"))
        asked.close()
        got = client.answer()
        assert got.body == TEXT
        assert b"close" not in [value.lower() for value in got.values(b"connection")]


def test_a_server_that_says_close_is_not_asked_again_on_that_connection(here: World) -> None:
    client, asked = here.ask(post())
    asked.send(answer(TEXT, "Connection: close"))
    client.answer()
    client.send(post())
    again = here.upstream.take()
    assert again.connection is not asked.connection
    again.send(answer())
    assert client.answer().status == 200


def test_a_server_of_http_1_0_is_not_asked_again_on_that_connection(here: World) -> None:
    client, asked = here.ask(post())
    asked.send(answer(TEXT).replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert client.answer().body == TEXT
    client.send(post())
    again = here.upstream.take()
    assert again.connection is not asked.connection
    again.send(answer())
    assert client.answer().status == 200


def test_an_answer_may_end_with_its_connection(here: World) -> None:
    client, asked = here.ask(post())
    asked.send(answer(TEXT, length=False))
    client.until(TEXT)  # passed on as it comes
    asked.send(b"and more")
    asked.close()
    assert client.answer().body == TEXT + b"and more"


# --- HTTP/1.0 clients -------------------------------------------------------------------------------------------


def test_an_http_1_0_client_is_told_the_end_by_the_connections_end(here: World) -> None:
    client, asked = here.ask(post(version="1.0"))
    asked.send(answer(TEXT))
    assert client.answer().body == TEXT
    assert client.closed()


def test_an_http_1_0_client_gets_no_chunks(here: World) -> None:
    client, asked = here.ask(post(version="1.0"))
    asked.send(answer(chunked(b"one", b"two"), CHUNKED, length=False))
    raw = client.rest()
    assert b"chunked" not in raw.lower()
    assert raw.endswith(b"\r\n\r\nonetwo")


def test_an_http_1_0_client_gets_no_chunks_even_if_it_asks_to_be_kept(here: World) -> None:
    client, asked = here.ask(post(None, "Connection: keep-alive", version="1.0"))
    asked.send(answer(chunked(b"one", b"two"), CHUNKED, length=False))
    raw = client.rest()
    assert b"chunked" not in raw.lower()
    assert raw.endswith(b"\r\n\r\nonetwo")


def test_an_http_1_0_client_is_kept_if_it_asks_and_the_length_is_known(here: World) -> None:
    """It may also be closed on (RFC 9112, 9.3), but never kept without being told so."""
    client, asked = here.ask(post(None, "Connection: keep-alive", version="1.0"))
    asked.send(answer(TEXT))
    got = client.answer()
    assert got.body == TEXT
    if [value.lower() for value in got.values(b"connection")] != [b"keep-alive"]:
        assert client.closed()
        return
    client.send(post(version="1.0"))
    here.upstream.take().send(answer(TEXT))
    assert client.answer().body == TEXT
    assert client.closed()


def test_an_http_1_0_stream_that_dies_has_no_clean_end(here: World) -> None:
    client, asked = here.ask(post(version="1.0"))
    asked.send(answer(b"3\r\none\r\n", CHUNKED, length=False))
    client.until(b"one")
    asked.close()
    client.rest()
    assert client.was_reset  # there is nothing else to tell it by


def test_an_http_1_0_client_needs_no_host(here: World) -> None:
    client, asked = here.ask(post(version="1.0").replace(b"Host: here\r\n", b""))
    assert len(asked.values(b"host")) == 1
    asked.send(answer(TEXT))
    assert client.answer().body == TEXT


# --- pipelining (RFC 9112, 9.3.2) -------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_their_order(here: World) -> None:
    client = here.connect()
    client.send(b"".join(post(body_of(rest=f',"n":{number}')) for number in range(10)))
    for number in range(10):
        asked = here.upstream.take()
        assert bytes(asked.body) == body_of(rest=f',"n":{number}')
        asked.send(answer(b"%d" % number))
    assert [client.answer().body for _ in range(10)] == [b"%d" % number for number in range(10)]


def test_pipelined_requests_of_all_kinds_are_answered_in_their_order(here: World) -> None:
    """Inference, the models' list, control API, refusals: by different hands, but on one connection."""
    client = here.connect()
    get = "GET {} HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n"
    healthy = get.format("/-/healthy", "X: 1").encode()
    models = get.format("/v1/models", AUTHORIZED).encode()
    lost = get.format("/nowhere", "X: 1").encode()
    refused = post(body_of("no-such-model"), AUTHORIZED)
    inside = post(chunked(body_of()), CHUNKED, length=False)
    client.send(healthy + post() + models + inside + refused + healthy + lost + inside + healthy)
    for number in range(3):
        here.upstream.take().send(answer(b'{"inference":%d}' % number))
    methods = [b"GET", b"POST", b"GET", b"POST", b"POST", b"GET", b"GET", b"POST", b"GET"]
    got = [client.answer(method) for method in methods]
    assert [one.status for one in got] == [200, 200, 200, 200, 404, 200, 404, 200, 200]
    assert [one.body for one in got if b"inference" in one.body] == [
        b'{"inference":%d}' % number for number in range(3)
    ]
    assert got[0].body == got[5].body == got[8].body
    assert b'"object":"list"' in got[2].body


def test_pipelined_requests_that_are_cut_anywhere_are_answered_in_their_order(here: World) -> None:
    healthy = b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n"
    data = healthy + post() + healthy
    here.upstream.answer = answer(TEXT)
    for cut in range(1, len(data)):
        client = here.connect()
        client.send(data[:cut])
        here.barrier()
        client.send(data[cut:])
        first, second, third = (client.answer(method) for method in (b"GET", b"POST", b"GET"))
        assert (first.status, second.body, third.status) == (200, TEXT, 200)
        client.close()


def test_many_pipelined_requests_are_not_begun_all_at_once(here: World) -> None:
    """Or a client could have any number of requests in flight with one connection."""
    client = here.connect()
    client.send(post() * 50)
    asked = here.upstream.take()
    assert len(here.quiet()) == 1
    asked.send(answer())
    for _ in range(49):
        here.upstream.take().send(answer())
    assert [client.answer().status for _ in range(50)] == [200] * 50
