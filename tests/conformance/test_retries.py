"""A request is asked again only when nothing of it can have been processed (promise 24)."""

from __future__ import annotations

import json

import pytest

from tests.conformance.world import Client, World, answer, body_of, post


def kept(here: World) -> Client:
    """A client, after a request whose connection to the upstream is kept."""
    client, asked = here.ask(post())
    asked.send(answer(b"first"))
    assert client.answer().body == b"first"
    return client


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_closes_as_it_is_used_again_is_replaced(here: World, reset: bool) -> None:
    """The sidecar writes before it can know: what it is sent, and the closing, wait for it at the same time."""
    client = kept(here)
    (first,) = here.upstream.settle()
    with here.frozen():
        client.send(post(body_of(rest=',"again":1')))
        first.connection.close(reset=reset)
    asked = here.upstream.take("the request, on a connection of its own")
    assert bytes(asked.body) == body_of(rest=',"again":1')
    asked.send(answer(b"second"))
    assert client.answer().body == b"second"
    assert len(here.quiet()) == 2


def test_many_connections_that_close_as_they_are_used_again_are_replaced(here: World) -> None:
    clients = [here.connect() for _ in range(64)]
    for client in clients:
        client.send(post())
    exchanges = [here.upstream.take() for _ in clients]
    for exchange in exchanges:
        exchange.send(answer(b"first"))
    assert {client.answer().body for client in clients} == {b"first"}
    with here.frozen():
        for client, exchange in zip(clients, exchanges, strict=True):
            client.send(post())
            exchange.close()
    for _ in clients:
        here.upstream.take().send(answer(b"second"))
    assert {client.answer().body for client in clients} == {b"second"}


def test_a_connection_that_was_closed_while_idle_is_not_used_again(here: World) -> None:
    client = kept(here)
    (first,) = here.upstream.settle()
    first.close()
    here.barrier()
    client.send(post())
    here.upstream.take().send(answer(b"second"))
    assert client.answer().body == b"second"


def test_a_request_that_a_kept_connection_swallows_is_asked_once_more_at_most(here: World) -> None:
    """From here it looks like the race. What is on a fresh connection, and fails, is not asked again."""
    client = kept(here)
    client.send(post())
    here.upstream.take().close()
    here.barrier()
    again = here.quiet()[2:]
    for asked in again:
        asked.close()
    got = client.answer()
    assert (got.status, json.loads(got.body)["error"]["code"]) == (502, "upstream_failed")
    assert len(here.quiet()) <= 3


@pytest.mark.parametrize("sent", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_nothing_is_asked_again_once_a_byte_came_back(here: World, sent: bytes) -> None:
    client = kept(here)
    client.send(post())
    asked = here.upstream.take()
    asked.send(sent)
    here.barrier()
    asked.reset()
    _, got = client.interim()
    assert (got.status, json.loads(got.body)["error"]["code"]) == (502, "upstream_failed")
    assert len(here.quiet()) == 2


def test_nothing_is_asked_again_on_a_fresh_connection(here: World) -> None:
    client, asked = here.ask(post())
    asked.reset()
    assert client.answer().status == 502
    assert len(here.quiet()) == 1


def test_nothing_is_asked_again_when_the_answer_breaks_off(here: World) -> None:
    client = kept(here)
    client.send(post())
    asked = here.upstream.take()
    asked.send(answer(b"half", "Content-Length: 8", length=False))
    client.until(b"half")
    asked.reset()
    client.broken()
    assert len(here.quiet()) == 2


def test_a_large_body_is_asked_again_whole(here: World) -> None:
    """What was sent on the dead connection is not missing on the fresh one."""
    client = kept(here)
    (first,) = here.upstream.settle()
    body = body_of(rest=',"text":"' + "x" * 50_000 + '"')
    with here.frozen():
        client.send(post(body))
        first.close()
    asked = here.upstream.take()
    assert bytes(asked.body) == body
    asked.send(answer(b"second"))
    assert client.answer().body == b"second"


def test_a_server_that_cannot_be_reached_is_passed_over(here: World) -> None:
    """The first of two servers refuses connections, which is not known before one is tried."""
    here.spare.answer = here.upstream.answer = answer()
    client = here.connect()
    client.send(post(body_of("pair")))
    assert client.answer().status == 200
    here.upstream.reset()
    here.spare.reset()
    here.spare.refuse()
    for _ in range(3):
        client.send(post(body_of("pair")))
        asked = here.upstream.take("the request at the second server")
        assert bytes(asked.body) == body_of("pair")
        asked.send(answer(b"second"))
        assert client.answer().body == b"second"
