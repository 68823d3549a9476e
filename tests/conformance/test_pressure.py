"""Clients that leave, or read slowly, or send too much (promise 22)."""

from __future__ import annotations

import contextlib
import json
import select
import time
from collections.abc import Iterator

import pytest

from tests.conformance.conftest import Worlds
from tests.conformance.upstream import Exchange
from tests.conformance.world import (
    MAX_BODY,
    Client,
    World,
    answer,
    body_of,
    chunked,
    post,
)

CHUNKED = "Transfer-Encoding: chunked"
EVENTS = "Content-Type: text/event-stream"
PROMPT_S = 0.05
TRIES = 3  # the machine may be busy at one time; what is always late is late
MB = 1 << 20

IN_TIME = 'header_timeout = "200ms"\nbody_timeout = "200ms"\nmax_connections = 6'


@pytest.fixture(scope="module")
def limited_worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    made = Worlds(tmp_path_factory, IN_TIME)
    yield made
    made.close()


@pytest.fixture
def limited_world(limited_worlds: Worlds) -> Iterator[World]:
    """A sidecar with little patience and room."""
    current = limited_worlds.current()
    yield current
    if not current.hangs:
        current.reset()


# --- clients that leave -----------------------------------------------------------------------------------------


def _leave_s(here: World, sent: bytes, body: bytes, reset: bool) -> float:
    """How long after its client an upstream is let go of. sent: what came back before."""
    client, asked = here.ask(post(body))
    if sent:
        asked.send(sent)
        client.until(sent[-4:])
    here.barrier()
    left = time.monotonic()
    client.close(reset=reset)
    return asked.wait_gone() - left


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    ("sent", "rest"),
    [
        (b"", ',"stream":true'),
        (b"", ""),
        (answer(b"4\r\nhalf", CHUNKED, EVENTS, length=False), ',"stream":true'),
        (answer(b"half", "Content-Length: 8", length=False), ""),
        (answer(b"half", length=False), ""),
    ],
    ids=["before a stream", "before an answer", "in a stream", "in an answer", "in an answer until close"],
)
def test_a_client_that_leaves_is_cancelled_upstream_at_once(here: World, sent: bytes, rest: str, reset: bool) -> None:
    took: list[float] = []
    while not took or (took[-1] > PROMPT_S and len(took) < TRIES):
        took.append(_leave_s(here, sent, body_of(rest=rest), reset))
    assert took[-1] <= PROMPT_S, took


def test_a_client_that_leaves_with_requests_behind_is_cancelled_upstream(here: World) -> None:
    client, asked = here.ask(post() + post())
    client.close()
    asked.wait_gone()
    assert len(here.quiet()) == 1


@pytest.mark.parametrize("length", [True, False])
def test_a_request_that_its_client_does_not_finish_is_never_a_whole_one(here: World, length: bool) -> None:
    client = here.connect()
    whole = post(body_of(rest=',"text":"' + "x" * 5000 + '"'))
    if not length:
        whole = post(chunked(body_of(rest=',"text":"' + "x" * 5000 + '"')), CHUNKED, length=False)
    client.send(whole[:-3])
    here.barrier()
    client.close()
    assert not any(asked.whole for asked in here.quiet())


# --- clients that read slowly -----------------------------------------------------------------------------------


def _pour(asked: Exchange, most: int) -> int:
    """Send until nobody takes any more for a while, or enough is sent; how much that was."""
    block, sent = b"x" * 65536, 0
    sock = asked.connection.socket
    while sent < most and select.select([], [sock], [], 0.3)[1]:
        with contextlib.suppress(BlockingIOError):
            sock.settimeout(0)
            sent += sock.send(block)
    sock.settimeout(5)
    return sent


def test_a_client_that_does_not_read_stops_its_server_and_nobody_else(here: World) -> None:
    """What is under way fits into the kernel's buffers; none of it is lost."""
    stalled = here.connect(receive_buffer=65536)
    stalled.send(post())
    asked = here.upstream.take()
    asked.send(answer(b"", f"Content-Length: {256 * MB}", length=False))
    sent = _pour(asked, 256 * MB)
    assert sent < 64 * MB, "its server is read although nobody takes it"
    other, second = here.ask(post())
    second.send(answer(b"served"))
    assert other.answer().body == b"served"
    _, _, body = stalled.until(b"\r\n\r\n").partition(b"\r\n\r\n")
    got = len(body)
    while got < sent:
        stalled.received = b""
        got += len(stalled.receive())
    assert got == sent
    stalled.close()
    asked.wait_gone()


def test_a_client_that_leaves_while_its_server_is_stopped_is_cancelled_upstream(here: World) -> None:
    stalled = here.connect(receive_buffer=65536)
    stalled.send(post())
    asked = here.upstream.take()
    asked.send(answer(b"", f"Content-Length: {256 * MB}", length=False))
    _pour(asked, 256 * MB)
    stalled.close()
    asked.wait_gone()


# --- too much (RFC 9110, 15.5.14) -------------------------------------------------------------------------------


def _too_large(client: Client) -> None:
    got = client.answer()
    assert (got.status, json.loads(got.body)["error"]["code"]) == (413, "body_too_large")
    assert [value.lower() for value in got.values(b"connection")] == [b"close"]
    client.rest()


def test_a_body_that_says_it_is_too_large_is_refused_unread(here: World) -> None:
    client = here.connect()
    client.send(post(b"", f"Content-Length: {MAX_BODY + 1}", length=False))
    _too_large(client)
    assert here.quiet() == []


def test_chunks_that_become_too_large_are_refused(here: World) -> None:
    client = here.connect()
    client.send(post(b"", CHUNKED, length=False))
    for _ in range(MAX_BODY // 4096 + 1):
        client.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
    _too_large(client)
    assert not any(asked.whole for asked in here.quiet())


def test_chunks_that_say_they_are_too_large_are_refused(here: World) -> None:
    client = here.connect()
    client.send(post(b'7fffffff\r\n{"model":"plain"', CHUNKED, length=False))
    for _ in range(MAX_BODY // 4096 + 1):
        client.send(b"x" * 4096)
    _too_large(client)
    assert not any(asked.whole for asked in here.quiet())


def test_a_body_just_within_the_limit_passes(here: World) -> None:
    body = body_of(rest=',"text":"' + "x" * (60_000) + '"')
    client, asked = here.ask(post(chunked(body[:30_000], body[30_000:]), CHUNKED, length=False))
    assert bytes(asked.body) == body
    asked.send(answer())
    assert client.answer().status == 200


# --- too slow, too many: [sidecar] header_timeout, body_timeout, max_connections --------------------------------


@pytest.mark.parametrize("sent", [b"P", post()[:30], post() + post()[:30]])
def test_a_head_that_does_not_come_in_time_is_given_up(limited_world: World, sent: bytes) -> None:
    limited_world.upstream.answer = answer()
    client = limited_world.connect()
    client.send(sent)
    client.rest()
    answered = sent.startswith(post())
    if answered:
        assert client.answer().status == 200
    if client.received:
        assert client.answer().status == 408


def test_a_head_that_comes_drop_by_drop_is_given_up(limited_world: World) -> None:
    """Each byte is in time, the whole is not."""
    client = limited_world.connect()
    began = time.monotonic()
    while not select.select([client.socket], [], [], 0.05)[0]:
        client.send(b"x" if client.received else b"P")
        assert time.monotonic() - began < 4, "it may go on for ever"
    client.rest()


def test_a_body_that_does_not_come_in_time_is_given_up(limited_world: World) -> None:
    client = limited_world.connect()
    client.send(post()[:-3])
    client.rest()
    assert client.answer().status == 408
    assert not any(asked.whole for asked in limited_world.quiet())


def test_more_connections_than_are_allowed_are_refused(limited_world: World) -> None:
    limited_world.upstream.answer = answer()
    clients = [limited_world.connect() for _ in range(8)]
    for client in clients:
        client.send(post())
    got = [client.answer() for client in clients]
    refused = [one for one in got if one.status == 503]
    assert len(refused) >= 1
    assert all(one.status in (200, 503) for one in got)
    assert {json.loads(one.body)["error"]["code"] for one in refused} == {"too_many_connections"}
    assert all(one.values(b"retry-after") for one in refused)
    for client in clients:
        client.close()
    limited_world.barrier()
    late, asked = limited_world.connect(), post()
    late.send(asked)
    assert late.answer().status == 200
