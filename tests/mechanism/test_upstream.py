"""What passes through, byte for byte, and what is known about a request when it goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import httpx
import pytest
import uvloop

from plugin_sdk.messages import RawHeaders
from sidecar.mechanism import connections
from sidecar.mechanism.connections import UpstreamError
from sidecar.mechanism.upstream import Client, ProbeUpstream, end_to_end
from tests.servers import HTTP_SERVER, RAW_SERVER
from tests.support import PATIENCE_S, free_port, serving, until


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    made = Client()
    yield made
    await made.close()


async def body_of(client: Client, url: str, body: bytes = b"{}", headers: RawHeaders = ()) -> bytes:
    exchange = await client.exchange("POST", url, headers, body)
    try:
        return b"".join([chunk async for chunk in exchange.chunks()])
    finally:
        await exchange.close()


async def look(client: Client, base_url: str, path: str) -> Any:
    return json.loads((await client.probe(base_url).get(path)).body)


async def counted(client: Client, base_url: str, what: str) -> Any:
    """The server's numbers, as soon as one of them is no longer 0."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            stats = await look(client, base_url, "/_stats")
            if stats[what] and not (what == "aborted" and stats["active"]):
                return stats
            await asyncio.sleep(0.01)


# --- headers ------------------------------------------------------------------------------------------------------


def test_what_speaks_of_one_connection_is_not_passed_on() -> None:
    hops = ["Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection"]
    hops += ["TE", "Trailer", "Transfer-Encoding", "Upgrade"]
    headers = tuple((name.encode(), b"x") for name in hops)
    kept = ((b"Content-Type", b"a/b"), (b"X-Custom", b"1"), (b"x-custom", b"2"), (b"Content-Length", b"3"))
    assert end_to_end((*headers[:4], *kept, *headers[4:])) == kept


def test_what_connection_names_is_not_passed_on_either() -> None:
    headers = (
        (b"CONNECTION", b"close, X-Secret ,"),
        (b"connection", b"x-other"),
        (b"X-Secret", b"1"),
        (b"x-OTHER", b"2"),
    )
    assert end_to_end((*headers, (b"X-Kept", b"3"))) == ((b"X-Kept", b"3"),)


def test_order_case_and_duplicates_are_kept() -> None:
    headers = ((b"Set-Cookie", b"a=1"), (b"A", b""), (b"set-cookie", b"b=2"))
    assert end_to_end(headers) == headers
    assert end_to_end(()) == ()


# --- exchanges ----------------------------------------------------------------------------------------------------


async def test_a_request_arrives_as_it_was_sent(client: Client) -> None:
    body = '{"model": "ü", "unknown": [1, 2.50],  "n":1}'.encode() + b"\xff\x00"
    headers = ((b"Content-Type", b"application/json"), (b"X-Twice", b"1"), (b"X-Twice", b"2"), (b"x-utf8", b"\xc3\xbc"))
    with serving(HTTP_SERVER) as server:
        await body_of(client, f"{server.url}/v1/chat/completions?a=%20b&c", body, headers)
        [seen] = await look(client, server.url, "/_seen")
    assert seen["body"].encode("utf-8", "surrogateescape") == body
    assert seen["path"] == "/v1/chat/completions?a=%20b&c"
    arrived = [(name.lower(), value) for name, value in seen["headers"]]
    ours = [(name.lower(), value) for name, value in arrived if name not in ("host", "content-length")]
    assert ours == [("content-type", "application/json"), ("x-twice", "1"), ("x-twice", "2"), ("x-utf8", "Ã¼")]
    assert dict(arrived)["host"] == f"127.0.0.1:{server.port}"
    assert dict(arrived)["content-length"] == str(len(body))


async def test_an_answer_arrives_with_status_headers_and_body(client: Client) -> None:
    with serving(HTTP_SERVER, "--status", "429") as server:
        exchange = await client.exchange("POST", f"{server.url}/v1/x", (), b"{}")
        body = b"".join([chunk async for chunk in exchange.chunks()])
        await exchange.close()
    assert exchange.status == 429
    assert (b"x-served-by", b"word") in [(name.lower(), value) for name, value in exchange.headers]
    assert json.loads(body)["error"]["message"] == "it does not want to"


async def test_a_compressed_body_stays_compressed(client: Client) -> None:
    answer = r"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde"
    with serving(RAW_SERVER, answer) as server:
        assert await body_of(client, server.url) == b"abcde"


async def test_a_redirect_is_the_clients_business(client: Client) -> None:
    answer = r"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    with serving(RAW_SERVER, answer) as server:
        exchange = await client.exchange("POST", server.url, (), b"")
        await exchange.close()
    assert exchange.status == 302


async def test_a_stream_arrives_as_it_is_written(client: Client) -> None:
    with serving(HTTP_SERVER, "--interval", "0.05") as server:
        body = json.dumps({"stream": True}).encode()
        exchange = await client.exchange("POST", f"{server.url}/v1/chat/completions", (), body)
        chunks = [chunk async for chunk in exchange.chunks()]
        await exchange.close()
    assert len(chunks) >= 4
    assert b"".join(chunks).endswith(b"data: [DONE]\n\n")


async def test_leaving_early_cancels_the_request_upstream(client: Client) -> None:
    with serving(HTTP_SERVER, "--interval", "30") as server:
        exchange = await client.exchange("POST", f"{server.url}/v1/x", (), b'{"stream": true}')
        await anext(exchange.chunks())
        await exchange.close()
        stats = await counted(client, server.url, "aborted")
    assert (stats["aborted"], stats["active"]) == (1, 0)


async def test_connections_are_used_again(client: Client) -> None:
    with serving(HTTP_SERVER) as server:
        await body_of(client, f"{server.url}/v1/x")
        before = _descriptors()
        for _ in range(3):
            await body_of(client, f"{server.url}/v1/x")
        assert _descriptors() == before


async def test_a_refused_connection_means_that_nothing_was_processed(client: Client) -> None:
    port = free_port()
    with pytest.raises(UpstreamError) as told:
        await client.exchange("POST", f"http://127.0.0.1:{port}/v1/x", (), b"")
    assert not told.value.processed
    assert str(told.value).startswith(f"no connection to http://127.0.0.1:{port}: ")


async def test_a_host_that_cannot_be_found_means_that_nothing_was_processed(client: Client) -> None:
    with pytest.raises(UpstreamError) as told:
        await client.exchange("POST", "http://no-such-host.invalid/v1/x", (), b"")
    assert not told.value.processed


async def test_a_connection_that_is_never_taken_means_that_nothing_was_processed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "CONNECT_S", 0.1)
    client = Client()
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        filling = [socket.socket() for _ in range(3)]
        for one in filling:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        with pytest.raises(UpstreamError) as told:
            await client.exchange("POST", f"http://127.0.0.1:{full.getsockname()[1]}/", (), b"")
        for one in filling:
            one.close()
    assert not told.value.processed
    assert "within 0.1 s" in str(told.value)
    await client.close()


@pytest.mark.parametrize("answer", ["", "HTTP/1.1 200", "garbage\\r\\n\\r\\n"], ids=["nothing", "half", "garbage"])
async def test_a_break_before_the_head_means_that_it_may_have_been_processed(client: Client, answer: str) -> None:
    with serving(RAW_SERVER, answer) as server, pytest.raises(UpstreamError) as told:
        await client.exchange("POST", f"{server.url}/v1/x", (), b"{}")
    assert told.value.processed
    assert str(told.value).startswith(f"{server.url} broke off: ")


@pytest.mark.parametrize(
    "answer",
    [
        r"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        r"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        r"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
    ],
    ids=["length", "no last chunk", "garbage"],
)
async def test_a_break_in_the_body_is_an_error_and_no_end(client: Client, answer: str) -> None:
    got = b""
    with serving(RAW_SERVER, answer) as server:
        exchange = await client.exchange("POST", server.url, (), b"{}")
        with pytest.raises(UpstreamError) as told:
            async for chunk in exchange.chunks():
                got += chunk
        await exchange.close()
    assert told.value.processed
    assert got in (b"half", b"")


async def test_a_server_that_dies_mid_stream_is_an_error_and_no_end(client: Client) -> None:
    got = b""
    with serving(HTTP_SERVER, "--die-after-chunks", "2", "--interval", "0.02") as server:
        exchange = await client.exchange("POST", f"{server.url}/v1/x", (), b'{"stream": true}')
        with pytest.raises(UpstreamError, match="broke off") as told:
            async for chunk in exchange.chunks():
                got += chunk
        await exchange.close()
    assert told.value.processed
    assert got.count(b"data:") == 2


async def test_the_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    client = Client()
    with serving(HTTP_SERVER) as server:
        assert b"choices" in await body_of(client, f"{server.url}/v1/x")
    await client.close()


# --- probes -------------------------------------------------------------------------------------------------------


async def test_a_probe_gets_and_posts(client: Client) -> None:
    with serving(HTTP_SERVER) as server:
        probe = client.probe(server.url, ((b"authorization", b"Bearer k"),))
        assert (await probe.get("/health")).status == 200
        assert (await probe.get("/nowhere")).status == 404
        assert b"choices" in (await probe.post("/v1/chat/completions", b"{}")).body
        [seen] = await look(client, server.url, "/_seen")
    headers = {name.lower(): value for name, value in seen["headers"]}
    assert headers["authorization"] == "Bearer k"
    assert headers["content-type"] == "application/json"


async def test_a_probe_without_an_answer_is_an_os_error_that_names_the_server(client: Client) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(OSError, match=f"{url} does not answer: "):
        await client.probe(url).get("/health")


async def test_a_probe_has_no_deadline_but_its_callers() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert set(request.extensions["timeout"].values()) == {None}
        return httpx.Response(200)

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), timeout=1.0) as http:
        assert (await ProbeUpstream(http, "http://far:1", ()).get("/health")).status == 200


async def test_the_test_server_counts_who_leaves(client: Client) -> None:
    with serving(HTTP_SERVER, "--hang-head") as server:
        with socket.create_connection(("127.0.0.1", server.port)) as leaving:
            leaving.sendall(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            await counted(client, server.url, "active")
        stats = await counted(client, server.url, "aborted")
    assert (stats["requests"], stats["aborted"], stats["active"]) == (1, 1, 0)


# --- connections ----------------------------------------------------------------------------------------------------


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count is wanted, not paths


async def test_interim_answers_are_passed_over(client: Client) -> None:
    answer = r"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 2\r\n\r\nok"
    with serving(RAW_SERVER, answer) as server:
        exchange = await client.exchange("POST", server.url, (), b"{}")
        assert (exchange.status, exchange.headers[0]) == (200, (b"X-A", b"1"))
        assert b"".join([chunk async for chunk in exchange.chunks()]) == b"ok"
        await exchange.close()


async def test_an_answer_without_a_length_ends_with_its_connection(client: Client) -> None:
    with serving(RAW_SERVER, r"HTTP/1.1 200 OK\r\n\r\nuntil the end") as server:
        exchange = await client.exchange("POST", server.url, (), b"{}")
        assert b"".join([chunk async for chunk in exchange.chunks()]) == b"until the end"
        await exchange.close()


async def test_a_head_has_no_body_whatever_its_length_says(client: Client) -> None:
    with serving(RAW_SERVER, r"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n") as server:
        exchange = await client.exchange("HEAD", server.url, (), b"")
        assert [chunk async for chunk in exchange.chunks()] == []
        await exchange.close()


def test_requests_that_are_cancelled_at_any_moment_leave_no_connection_behind() -> None:
    """Under uvloop, as in the program: a cancellation may come while a connection is being made."""

    async def scenario() -> None:
        client = Client()
        with serving(HTTP_SERVER, "--chunks", "50") as server:
            await body_of(client, f"{server.url}/v1/x")
            random = Random(1)  # noqa: S311 - moments, not secrets
            before = _descriptors()
            for _ in range(60):
                tasks = [asyncio.create_task(body_of(client, f"{server.url}/v1/x")) for _ in range(10)]
                await asyncio.sleep(random.random() * 0.01)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            client._pool.close()
            await until(lambda: _descriptors() <= before, "every connection is closed")
        await client.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


async def test_what_went_wrong_first_is_what_is_told(client: Client) -> None:
    with serving(RAW_SERVER, r"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n") as server:
        exchange = await client.exchange("POST", server.url, (), b"{}")
        with pytest.raises(UpstreamError, match="does not speak HTTP"):
            async for _ in exchange.chunks():
                pass
        await exchange.close()
