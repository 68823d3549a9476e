"""Idle connections: which is used again, for how long they are kept, and what is told when there can be none."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sidecar.mechanism import pool as pools
from sidecar.mechanism.connections import Connection
from sidecar.mechanism.exchanges import UpstreamError
from sidecar.mechanism.origins import Origin
from sidecar.mechanism.pool import Pool
from tests.mechanism.test_connections import LENGTH, Heard, always, ask, kept, request, server
from tests.support import free_port, until


@pytest.fixture
async def pool() -> AsyncIterator[Pool]:
    made = Pool()
    yield made
    made.close()


async def asked(pool: Pool, origin: Origin, connection: Connection) -> None:
    """Use it, so that it is kept."""
    connection.ask(heard := Heard(), request())
    await heard.end()


async def test_the_connection_that_was_used_last_is_used_first(pool: Pool) -> None:
    async with server(always(LENGTH)) as origin:
        made = [await pool.connect(origin) for _ in range(3)]
        for connection in made:
            await asked(pool, origin, connection)
        assert [pool.take(origin) for _ in range(4)] == [*reversed(made), None]


async def test_connections_are_kept_for_their_own_origin_alone(pool: Pool) -> None:
    async with server(always(LENGTH)) as one, server(always(LENGTH)) as other:
        await ask(pool, one)
        assert pool.take(other) is None
        assert pool.take(one) is not None


async def test_idle_connections_are_closed_before_servers_do_it(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "IDLE_S", 0.0)
    monkeypatch.setattr(pools, "SWEEP_S", 0.01)
    async with server(always(LENGTH)) as origin:
        await ask(pool, origin)
        [connection] = kept(pool)
        await until(lambda: not kept(pool), "it has expired")
        assert not connection.usable
        await until(lambda: pool._sweep is None, "nobody looks after what is not there")
        assert pool._idle == {}


async def test_a_connection_that_was_used_a_moment_ago_is_kept(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "SWEEP_S", 0.001)
    async with server(always(LENGTH)) as origin:
        await ask(pool, origin)
        await asyncio.sleep(0.02)
        assert len(kept(pool)) == 1


async def test_no_more_are_kept_than_some(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "IDLE_MOST", 2)
    async with server(always(LENGTH)) as origin:
        made = [await pool.connect(origin) for _ in range(3)]
        for connection in made:
            await asked(pool, origin, connection)
        assert [connection.usable for connection in made] == [True, True, False]


async def test_one_that_the_server_closes_while_it_is_idle_is_forgotten(pool: Pool) -> None:
    async with server(always(LENGTH, close=True)) as origin:
        await ask(pool, origin)
        await until(lambda: not kept(pool), "it is forgotten")
        assert pool.take(origin) is None


async def test_one_that_is_about_to_close_is_not_handed_out(pool: Pool) -> None:
    async with server(always(LENGTH)) as origin:
        await ask(pool, origin)
        [connection] = kept(pool)
        assert connection._transport is not None
        connection._transport.abort()  # its end is told a moment later
        assert pool.take(origin) is None


async def test_a_pool_that_is_closed_closes_what_is_idle() -> None:
    pool = Pool()
    async with server(always(LENGTH)) as origin:
        await ask(pool, origin)
        [connection] = kept(pool)
        pool.close()
        assert not connection.usable
        assert pool.take(origin) is None


async def test_a_server_on_a_unix_socket_is_reached(pool: Pool, tmp_path: Path) -> None:
    listener = await asyncio.start_unix_server(always(LENGTH), tmp_path / "s")
    assert (await ask(pool, Origin.of(f"unix:{tmp_path}/s"))).body == b"ok"
    pool.close()
    listener.close()


async def test_the_proxy_of_the_environment_is_not_used(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    async with server(always(LENGTH)) as origin:
        assert (await ask(pool, origin)).body == b"ok"


# --- no connection --------------------------------------------------------------------------------------------------


async def refusal(pool: Pool, base_url: str) -> UpstreamError:
    with pytest.raises(UpstreamError) as told:
        await pool.connect(Origin.of(base_url))
    assert not told.value.processed
    assert not told.value.reused
    assert str(told.value).startswith(f"no connection to {base_url}")
    return told.value


async def test_a_refused_connection_means_that_nothing_was_processed(pool: Pool) -> None:
    await refusal(pool, f"http://127.0.0.1:{free_port()}")


async def test_a_host_that_cannot_be_found_means_that_nothing_was_processed(pool: Pool) -> None:
    await refusal(pool, "http://no-such-host.invalid:80")


async def test_a_host_that_is_none_means_that_nothing_was_processed(pool: Pool) -> None:
    await refusal(pool, f"http://{'x' * 70}.invalid:80")


async def test_a_socket_that_is_not_there_means_that_nothing_was_processed(pool: Pool, tmp_path: Path) -> None:
    await refusal(pool, f"unix:{tmp_path}/none")


async def test_a_server_that_does_not_speak_tls_means_that_nothing_was_processed(pool: Pool) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(LENGTH)

    async with server(plain) as origin:
        await refusal(pool, f"https://127.0.0.1:{origin.port}")


async def test_a_connection_that_is_never_taken_means_that_nothing_was_processed(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "CONNECT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        filling = [socket.socket() for _ in range(3)]
        for one in filling:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        told = await refusal(pool, f"http://127.0.0.1:{full.getsockname()[1]}")
        for one in filling:
            one.close()
    assert "within 0.1 s" in str(told)
