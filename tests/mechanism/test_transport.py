"""httpx over our own connections: what plugins get of its API, and what becomes of requests that go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import httpx
import pytest
import uvloop

from sidecar.mechanism.origins import Origin
from sidecar.mechanism.pool import Pool
from sidecar.mechanism.transport import WAITING_BYTES, PoolTransport
from tests.mechanism.test_connections import CHUNKED, LENGTH, always, kept, server
from tests.support import PATIENCE_S, free_port, no_garbage, until

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    made = Pool()
    yield made
    made.close()


@pytest.fixture
async def client(pool: Pool) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=PoolTransport(pool, 100), timeout=PATIENCE_S) as made:
        yield made


async def request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The next one's head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    if b"transfer-encoding: chunked" not in lower:
        length = int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]) if b"content-length: " in lower else 0
        return head, await reader.readexactly(length)
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return head, body


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the head and the body that it got."""
    while True:
        head, body = await request(reader)
        said = json.dumps([head.decode("latin-1"), body.decode("latin-1")]).encode()
        writer.write(b"HTTP/1.1 201 Made\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads one request, and waits until the client leaves."""
    await request(reader)
    assert not await reader.read()


def url(origin: Origin) -> str:
    return f"http://127.0.0.1:{origin.port}/a%20b?c=d"


# --- what goes well -----------------------------------------------------------------------------------------------


async def test_requests_and_answers_are_as_with_httpx_itself(client: httpx.AsyncClient, pool: Pool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"one", b"", b"two"):
            yield piece

    async with server(echo) as origin, httpx.AsyncClient() as other:
        for http in (client, other):
            posted = await http.post(url(origin), json={"x": 1}, headers={"x-b": "3"})
            assert (posted.status_code, posted.reason_phrase, posted.http_version) == (201, "Made", "HTTP/1.1")
            assert posted.headers.get_list("x-a") == ["1", "2"]
            head, body = posted.json()
            assert head.startswith("POST /a%20b?c=d HTTP/1.1\r\nHost: 127.0.0.1:")
            assert ("x-b: 3" in head, json.loads(body)) == (True, {"x": 1})
            streamed = (await http.post(url(origin), content=pieces())).json()
            assert streamed[1] == "onetwo"
            form = (await http.post(url(origin), files={"f": b"x" * 300_000})).json()
            assert "x" * 300_000 in form[1]
        assert len(kept(pool)) == 3  # bodies in pieces get one that was never used


async def test_a_connection_is_used_again_after_whatever_kind_of_answer(client: httpx.AsyncClient, pool: Pool) -> None:
    answers = iter(
        [LENGTH, CHUNKED + b"2\r\nok\r\n0\r\n\r\n", b"HTTP/1.1 204 None\r\n\r\n", b"HTTP/1.1 103 x\r\n\r\n" + LENGTH]
    )
    accepted = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        while True:
            await request(reader)
            writer.write(next(answers, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"))

    async with server(serve) as origin:
        assert [(await client.get(url(origin))).text for _ in range(4)] == ["ok", "ok", "", "ok"]
        assert (await client.head(url(origin))).headers["content-length"] == "9"
        assert (accepted, len(kept(pool))) == (1, 1)


async def test_pieces_come_as_they_are_sent_and_a_slow_reader_slows_down_the_server(client: httpx.AsyncClient) -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request(reader)
        writer.write(CHUNKED + b"5\r\nfirst\r\n")
        for _ in range(400):
            writer.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
            await writer.drain()
            sent += 65_536
        writer.write(b"0\r\n\r\n")

    async with server(serve) as origin, client.stream("GET", url(origin)) as answer:
        pieces = answer.aiter_raw()
        taken = len(await anext(pieces))
        [exchange] = client._transport._under_way  # type: ignore[attr-defined] # ours
        await until(lambda: exchange._connection._paused, "it reads no further")
        assert exchange._size < 4 * WAITING_BYTES
        assert sent < 400 * 65_536
        async for piece in pieces:
            taken += len(piece)
        assert taken == 5 + 400 * 65_536


async def test_as_many_requests_as_may_are_under_way_and_others_wait_their_turn(pool: Pool) -> None:
    now = most = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now, most
        while True:
            await request(reader)
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.001)
            now -= 1
            writer.write(LENGTH)

    async with server(serve) as origin, httpx.AsyncClient(transport=PoolTransport(pool, 20)) as client:
        found = await asyncio.gather(*(client.get(url(origin)) for _ in range(100)))
        assert [one.text for one in found] == ["ok"] * 100
        assert most == len(kept(pool)) == 20


async def test_one_that_was_closed_in_the_moment_it_is_used_again_is_replaced(
    client: httpx.AsyncClient, pool: Pool
) -> None:
    async with server(always(LENGTH)) as origin:
        await client.get(url(origin))
        [connection] = kept(pool)
        connection._transport.close()  # type: ignore[union-attr] # connected
        assert (await client.post(url(origin), content=b"x")).text == "ok"


# --- what goes wrong ----------------------------------------------------------------------------------------------


async def test_a_server_that_is_not_there_or_breaks_off_is_an_error_of_httpx(client: httpx.AsyncClient) -> None:
    with pytest.raises(httpx.ConnectError) as refused:
        await client.get(f"http://127.0.0.1:{free_port()}/")
    assert refused.value.request.url.path == "/"

    async def halves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(CHUNKED + b"4\r\nhalf\r\n5\r\n")

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)

    async with server(halves) as half, server(nothing) as none:
        with pytest.raises(httpx.RemoteProtocolError, match="broke off"):
            await client.get(url(none))
        async with client.stream("GET", url(half)) as answer:
            pieces = answer.aiter_raw()
            assert await anext(pieces) == b"half"
            with pytest.raises(httpx.RemoteProtocolError, match="broke off"):
                await anext(pieces)
    assert not client._transport._under_way  # type: ignore[attr-defined] # ours


async def test_each_wait_has_its_timeout(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(CHUNKED + b"4\r\nhalf\r\n")
        assert not await reader.read()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 100_000

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async def never(origin: Origin) -> None:
        await asyncio.Event().wait()

    async with (
        httpx.AsyncClient(transport=PoolTransport(pool, 1), timeout=0.05) as client,
        server(silent) as mute,
        server(stalls) as half,
        server(deaf) as ears,
    ):
        with pytest.raises(httpx.ReadTimeout):
            await client.get(url(mute))
        with pytest.raises(httpx.ReadTimeout):
            await client.get(url(half))
        with pytest.raises(httpx.WriteTimeout):
            await client.post(url(ears), content=endless())
        async with client.stream("GET", url(half)):
            with pytest.raises(httpx.PoolTimeout):
                await client.get(url(half))
        monkeypatch.setattr(pool, "connect", never)
        with pytest.raises(httpx.ConnectTimeout):
            await client.get(url(mute))
    assert not kept(pool)


async def test_who_leaves_closes_the_connection_at_once(client: httpx.AsyncClient, pool: Pool) -> None:
    came, left = 0, 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came, left
        head, _ = await request(reader)
        came += 1
        if head.startswith(b"POST"):
            writer.write(CHUNKED + b"4\r\nhalf\r\n")
        await reader.read()
        left += 1

    async with server(serve) as origin:
        asking = asyncio.create_task(client.get(url(origin)))
        await until(lambda: came == 1, "it is asked")
        asking.cancel()
        await until(lambda: left == 1, "it is told")
        async with client.stream("POST", url(origin)):
            pass
        await until(lambda: left == 2, "it is told")
    assert not kept(pool)
    assert not client._transport._under_way  # type: ignore[attr-defined] # ours


async def test_an_answer_before_the_body_is_sent_ends_the_sending(client: httpx.AsyncClient, pool: Pool) -> None:
    answered = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"x"
        await answered.wait()
        while True:
            yield b"y" * 10_000
            await asyncio.sleep(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"x")
        writer.write(LENGTH)
        await writer.drain()
        answered.set()
        await reader.read()

    async with server(serve) as origin:
        assert (await client.post(url(origin), content=body())).text == "ok"
    assert not kept(pool)


@pytest.mark.parametrize(
    "headers", [{"a": "b\r\nc: d"}, {"a b": "c"}, {"a": "b\0"}, {"a\n": "b"}, {"a": "\n"}], ids=str
)
async def test_what_would_be_another_request_than_it_seems_is_not_sent(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        await client.get("http://127.0.0.1:9/", headers=headers)


async def test_whoever_is_under_way_when_the_client_is_closed_is_told(client: httpx.AsyncClient) -> None:
    async with server(silent) as origin:
        asking = asyncio.create_task(client.get(url(origin)))
        await until(lambda: client._transport._under_way, "it is asked")  # type: ignore[attr-defined] # ours
        await client.aclose()
        with pytest.raises(httpx.RemoteProtocolError, match="was closed"):
            await asking


def test_requests_that_fail_leave_nothing_to_the_garbage_collector() -> None:
    """Bodies would be left with them. On the program's own loop, and without httpx's client: both leave a little."""

    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.close()

    async def scenario() -> None:
        pool = Pool()
        transport = PoolTransport(pool, 100)

        async def some(origin: Origin) -> None:
            asked = httpx.Request("POST", url(origin), content=b"x")
            with contextlib.suppress(httpx.RemoteProtocolError):
                await transport.handle_async_request(asked)
            for _ in range(10):
                await asyncio.sleep(0)  # turns of the loop, in which the connection is closed

        async with server(rude) as origin:
            await some(origin)
            with no_garbage():
                await some(origin)
        pool.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
