"""What plugins share: a client, numbers, and resources that outlive a reload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from sidecar.mechanism import services
from sidecar.mechanism.services import BUCKETS, Host
from sidecar.mechanism.transport import PoolTransport
from tests.servers import HTTP_SERVER
from tests.support import serving, until


class Pool:
    """A resource that tells what becomes of it."""

    def __init__(self) -> None:
        self.made = 0
        self.closed: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken = False

    async def make(self) -> int:
        self.made += 1
        number = self.made
        await self.gate.wait()
        if self.broken:
            raise OSError("no database")
        return number

    async def close(self, number: int) -> None:
        self.closed.append(number)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    made = Host()
    yield made
    await made.close()


@pytest.fixture
async def pool() -> Pool:
    return Pool()


# --- keep ---------------------------------------------------------------------------------------------------------


async def test_what_is_kept_is_made_once_and_closed_with_the_last_that_asked(host: Host, pool: Pool) -> None:
    old, new = host.of("door"), host.of("door")
    assert await old.keep("door:pool", pool.make, pool.close) == 1
    assert await new.keep("door:pool", pool.make, pool.close) == 1
    await old.close()
    assert pool.closed == []
    assert host.kept() == ("door:pool",)
    await new.close()
    assert pool.closed == [1]
    assert host.kept() == ()


async def test_it_is_made_once_also_when_many_ask_at_the_same_time(host: Host, pool: Pool) -> None:
    pool.gate.clear()
    users = [host.of("door") for _ in range(20)]
    asking = [asyncio.create_task(user.keep("door:pool", pool.make, pool.close)) for user in users]
    await until(lambda: pool.made == 1, "it is being made")
    pool.gate.set()
    assert set(await asyncio.gather(*asking)) == {1}
    assert pool.made == 1


async def test_keys_and_plugins_are_kept_apart(host: Host, pool: Pool) -> None:
    user = host.of("door")
    assert [await user.keep(key, pool.make, pool.close) for key in ("door:a", "door:b", "gate:a")] == [1, 2, 3]
    await user.close()
    assert sorted(pool.closed) == [1, 2, 3]


async def test_one_that_cannot_be_made_is_not_kept_and_tried_again(host: Host, pool: Pool) -> None:
    pool.broken = True
    user = host.of("door")
    with pytest.raises(OSError, match="no database"):
        await user.keep("door:pool", pool.make, pool.close)
    pool.broken = False
    assert await user.keep("door:pool", pool.make, pool.close) == 2
    await user.close()
    assert pool.closed == [2]


async def test_everybody_who_waits_for_one_that_cannot_be_made_is_told(host: Host, pool: Pool) -> None:
    pool.gate.clear()
    pool.broken = True
    asking = [asyncio.create_task(host.of("door").keep("door:pool", pool.make, pool.close)) for _ in range(3)]
    await until(lambda: pool.made == 1, "it is being made")
    pool.gate.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert [str(error) for error in found] == ["no database"] * 3


async def test_one_who_waits_no_longer_does_not_spoil_it_for_others(host: Host, pool: Pool) -> None:
    pool.gate.clear()
    first = asyncio.create_task(host.of("door").keep("door:pool", pool.make, pool.close))
    other = host.of("door")
    second = asyncio.create_task(other.keep("door:pool", pool.make, pool.close))
    await until(lambda: pool.made == 1, "it is being made")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    pool.gate.set()
    assert await second == 1
    assert first.cancelled()


async def test_one_that_nobody_waits_for_any_more_is_not_made_to_an_end(host: Host, pool: Pool) -> None:
    pool.gate.clear()
    user = host.of("door")
    asking = asyncio.create_task(user.keep("door:pool", pool.make, pool.close))
    await until(lambda: pool.made == 1, "it is being made")
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await user.close()
    assert host.kept() == ()
    assert pool.closed == []
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("keep")]


@pytest.mark.parametrize("error", [OSError("stuck"), SystemExit(3)])
async def test_one_that_does_not_close_is_told_and_counted(
    host: Host, pool: Pool, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def close(_: int) -> None:
        raise error

    user = host.of("door")
    await user.keep("door:pool", pool.make, close)
    await user.keep("door:other", pool.make, pool.close)
    await user.close()
    assert host.close_failures == 1
    assert pool.closed == [2]
    assert "what the plugin kept as door:pool did not close" in caplog.text


async def test_one_that_hangs_when_it_is_closed_is_given_up(
    host: Host, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "CLOSE_S", 0.02)

    async def close(_: int) -> None:
        await asyncio.Event().wait()

    user = host.of("door")
    await user.keep("door:pool", pool.make, close)
    await user.close()
    assert host.close_failures == 1


async def test_while_one_is_closed_a_new_one_is_made_for_who_asks_now(host: Host, pool: Pool) -> None:
    closing, go_on = asyncio.Event(), asyncio.Event()

    async def close(number: int) -> None:
        closing.set()
        await go_on.wait()
        await pool.close(number)

    old, new = host.of("door"), host.of("door")
    await old.keep("door:pool", pool.make, close)
    ending = asyncio.create_task(old.close())
    await closing.wait()
    assert await new.keep("door:pool", pool.make, pool.close) == 2
    go_on.set()
    await ending
    assert pool.closed == [1]
    assert host.kept() == ("door:pool",)
    await new.close()


# --- the client, the state directory ------------------------------------------------------------------------------


async def test_the_client_is_one_for_all_and_speaks_http(host: Host) -> None:
    with serving(HTTP_SERVER) as server:
        one, other = host.of("a").http, host.of("b").http
        assert one is other
        assert (await one.get(f"{server.url}/health")).status_code == 200


async def test_plain_requests_have_our_own_connections_unless_a_proxy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    near, far = httpx.URL("http://x/"), httpx.URL("https://x/")
    hosts = [Host(), Host()]
    assert isinstance(hosts[0].http._transport_for_url(near), PoolTransport)
    assert isinstance(hosts[0].http._transport_for_url(far), httpx.AsyncHTTPTransport)
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    proxied = hosts[1].http._transport_for_url(near)
    assert isinstance(proxied, httpx.AsyncHTTPTransport)
    assert proxied is not hosts[1].http._transport
    for host in hosts:
        await host.close()


async def test_the_client_takes_no_cookies_from_one_request_to_another(host: Host) -> None:
    heard: list[list[bytes]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heard.append([line for line in head.split(b"\r\n") if line.lower().startswith(b"cookie:")])
        writer.write(b"HTTP/1.1 200 OK\r\nset-cookie: user=ann\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    client = host.of("a").http
    await client.get(url)
    client.cookies.set("plugin", "a")
    await client.get(url)
    await client.get(url, headers={"cookie": "own=1"})
    server.close()
    await server.wait_closed()
    assert heard == [[], [], [b"cookie: own=1"]]


async def test_no_plugin_can_close_the_client_of_the_others(host: Host) -> None:
    client = host.of("a").http
    with pytest.raises(RuntimeError, match="shared by all plugins"):
        await client.aclose()
    with pytest.raises(RuntimeError, match="without `async with`"):
        async with client:
            pass
    assert not client.is_closed


async def test_the_client_is_closed_at_the_end() -> None:
    host = Host()
    client = host.of("a").http
    assert isinstance(client, httpx.AsyncClient)
    await host.close()
    assert client.is_closed


async def test_the_state_directory_is_the_sidecars(host: Host, tmp_path: Path) -> None:
    assert Host(state=tmp_path).of("a").state_dir == tmp_path
    with pytest.raises(RuntimeError, match="keeps nothing on disk"):
        _ = host.of("a").state_dir


# --- numbers ------------------------------------------------------------------------------------------------------


async def test_numbers_of_a_plugin_outlive_its_instances(host: Host) -> None:
    host.of("door").metrics.count("asked")
    host.of("door").metrics.count("asked", 2)
    host.of("door").metrics.count("asked", labels={"who": "ali"})
    host.of("gate").metrics.count("asked")
    found = {(one.name, *one.labels.values()): one.value for one in host.numbers("door").counters()}
    assert found == {("asked",): 3, ("asked", "ali"): 1}


async def test_distributions_have_buckets(host: Host) -> None:
    numbers = host.numbers("door")
    for value in (0.0005, 0.001, 0.002, 1000.0):
        numbers.observe("took_s", value)
    [found] = numbers.distributions()
    assert (found.count, found.sum) == (4, 1000.0035)
    assert found.buckets == [2, 1, *[0] * (len(BUCKETS) - 2), 1]


async def test_a_counter_does_not_fall(host: Host) -> None:
    with pytest.raises(ValueError, match="only rises"):
        host.of("door").metrics.count("asked", -1)


async def test_labels_that_never_repeat_are_dropped_and_counted(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "MOST_SERIES", 3)
    numbers = host.numbers("door")
    for number in range(5):
        numbers.count("asked", labels={"id": str(number)})
        numbers.observe("took_s", 1.0)
    assert (len(numbers.counters()), len(numbers.distributions()), numbers.dropped) == (2, 1, 3)


async def test_numbers_from_many_threads_are_all_counted(host: Host) -> None:
    numbers = host.numbers("door")

    def count() -> None:
        for _ in range(2000):
            numbers.count("asked")

    await asyncio.gather(*(asyncio.to_thread(count) for _ in range(8)))
    assert numbers.counters()[0].value == 16000
