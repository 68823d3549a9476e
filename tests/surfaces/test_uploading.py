"""Bodies that are passed on while they come: whose fault it is when nothing moves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from plugin_sdk import End
from sidecar.mechanism.connections import Connection
from sidecar.mechanism.origins import Origin
from sidecar.surfaces.dataplane.protocol import EdgeProtocol
from sidecar.surfaces.dataplane.upload import Upload
from sidecar.surfaces.dataplane.uploading import STREAM_BYTES, Uploading
from tests.support import until
from tests.surfaces.world import Streams, World, ask, inside, message, running, status

BODY = b'{"model":"m","text":"%b"}' % (b"x" * 8 * STREAM_BYTES)
PART = 4 * STREAM_BYTES
LONG_S = 1000.0


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("uploading"), settings='body_timeout = "60s"') as made:
        yield made


class Held:
    """Connections to servers are made only once they may be."""

    def __init__(self, w: World, patch: pytest.MonkeyPatch) -> None:
        self.may = asyncio.Event()
        self._connect = w.plane.pool.connect
        patch.setattr(w.plane.pool, "connect", self.connect)

    async def connect(self, origin: Origin) -> Connection:
        await self.may.wait()
        return await self._connect(origin)


async def paused(w: World) -> tuple[Streams, EdgeProtocol]:
    """A client in the middle of an upload that is not read any further."""
    reader, writer = await w.connect()
    writer.write(ask(BODY)[:PART])
    connection = await w.connection()
    await until(lambda: connection.flow.read_paused, "the client has to wait")
    return (reader, writer), connection


@inside
async def test_a_client_that_is_not_read_is_not_slow_but_later_it_may_be(w: World) -> None:
    with pytest.MonkeyPatch.context() as patch:
        held = Held(w, patch)
        (reader, writer), connection = await paused(w)
        w.pass_time(LONG_S)
        assert connection.flow.read_paused
        held.may.set()
        await until(lambda: not connection.flow.read_paused, "it is read again")
        writer.write(ask(BODY)[PART:])
        head, _ = await message(reader)
    assert status(head) == 200
    outcome = await w.outcome()
    assert (outcome.end, outcome.bytes_in, w.server.bodies) == (End.OK, len(BODY), [BODY])


@inside
async def test_a_client_that_does_not_go_on_is_given_up(w: World) -> None:
    reader, writer = await w.connect()
    writer.write(ask(BODY)[:PART])
    connection = await w.connection()
    await until(lambda: bool(w.generation.leases) and not connection.flow.read_paused, "all of it is passed on")
    w.pass_time(LONG_S)
    head, body = await message(reader)
    assert (status(head), json.loads(body)["error"]["code"]) == (408, "bad_request")
    assert (await w.outcome()).end is End.REFUSED
    assert not w.server.seen


@inside
async def test_a_client_that_leaves_while_it_is_not_read_is_noticed(w: World) -> None:
    with pytest.MonkeyPatch.context() as patch:
        held = Held(w, patch)
        (_, writer), connection = await paused(w)
        writer.transport.abort()

        def noticed() -> bool:
            w.pass_time(0)
            return connection.transport.is_closing()

        await until(noticed, "it is seen that it has left")
        assert (await w.outcome()).end is End.CLIENT_GONE
        held.may.set()


def test_a_server_that_has_another_name_for_the_model_may_be_followed_by_one_that_has_not() -> None:
    upload = Upload("", STREAM_BYTES)
    upload.feed(b'{"model":"m"')
    uploading = Uploading(upload, 13, lambda _: None)
    assert uploading.framing("other") == b"content-length: 17\r\n"
    assert uploading.framing(None) == b"content-length: 13\r\n"
    upload.feed(b"}")
    assert upload.take() == b'{"model":"m"}'
