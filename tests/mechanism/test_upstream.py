"""Probes, and which headers pass."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import uvloop

from sidecar.mechanism.upstream import Client, ProbeUpstream, end_to_end
from tests.servers import HTTP_SERVER
from tests.support import PATIENCE_S, free_port, no_garbage, serving


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    made = Client()
    yield made
    await made.close()


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


def test_probes_leave_nothing_to_the_garbage_collector() -> None:
    """There are some each second, for as long as the program runs, and on its loop: asyncio's own leaves a little."""

    async def scenario() -> None:
        client = Client()
        nowhere = client.probe(f"http://127.0.0.1:{free_port()}")
        with serving(HTTP_SERVER) as server:
            probe = client.probe(server.url)

            async def some() -> None:
                await probe.get("/health")
                await probe.get_at_most("/health", 1000)
                for failing in (nowhere.get("/health"), probe.get_at_most("/health", 1)):
                    with contextlib.suppress(OSError):
                        await failing
                for _ in range(10):
                    await asyncio.sleep(0)  # turns of the loop, in which connections are closed

            await some()
            with no_garbage():
                for _ in range(3):
                    await some()
        await client.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


async def test_the_test_server_counts_who_leaves(client: Client) -> None:
    with serving(HTTP_SERVER, "--hang-head") as server:
        with socket.create_connection(("127.0.0.1", server.port)) as leaving:
            leaving.sendall(b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            await counted(client, server.url, "active")
        stats = await counted(client, server.url, "aborted")
    assert (stats["requests"], stats["aborted"], stats["active"]) == (1, 1, 0)
