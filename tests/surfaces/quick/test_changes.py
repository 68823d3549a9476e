"""What changes between requests whose head comes again, or while one is answered."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from plugin_sdk import Outcome
from tests.servers import http_server
from tests.support import until
from tests.surfaces.quick.harness import USAGE, WAS_QUICK, WATCHED, WHOLE, M
from tests.surfaces.quick.plugins import LOG
from tests.surfaces.world import OK, World, answers, ask, inside, message, running, status


@pytest.mark.parametrize("early", [True, False])
def test_a_request_in_flight_ends_on_the_generation_that_it_began_with(here: World, early: bool) -> None:
    here.run(_over_a_reload(here, early))


async def _over_a_reload(w: World, early: bool) -> None:
    may = asyncio.Event()

    async def does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        if not early:
            writer.write(WHOLE[:-5])
        await may.wait()
        writer.write(WHOLE if early else WHOLE[-5:])

    reader, writer = await w.connect()
    request = ask(WATCHED, b"Authorization: Bearer key")
    w.server.does = answers(OK)
    writer.write(request)
    await message(reader)
    w.server.does = does
    w.server.seen.clear()
    LOG.clear()
    writer.write(request)
    await w.asked()
    before = w.generation
    assert before.leases == 1
    assert await w.controller.reload()
    assert w.generation is not before
    assert (before.leases, w.generation.leases) == (1, 0)
    may.set()
    assert (await message(reader))[1] == USAGE
    await until(lambda: before.leases == 0, "it is left")
    assert w.generation.leases == 0
    assert [entry[:2] for entry in LOG if len(entry) == 5][-1] == ("outer", "on_end")
    assert len(WAS_QUICK) == 1
    for _ in range(3):
        writer.write(request)
        await message(reader)
    assert (before.leases, w.generation.leases) == (0, 0)
    assert WAS_QUICK[-1]._course.generation is w.generation


def test_who_may_read_an_answer_is_said_anew_after_a_reload(tmp_path: Path) -> None:
    origin = b"Origin: https://app.example"
    with running(tmp_path) as w:

        async def scenario() -> None:
            reader, writer = await w.connect()
            path = tmp_path / "manifests" / "sidecar.toml"
            without = path.read_text()
            for text, allowed in (
                (without, False),
                (without.replace("[sidecar]", '[sidecar]\ncors_origins = ["https://app.example"]'), True),
                (without, False),
            ):
                path.write_text(text)
                await w.controller.reload()
                for _ in range(3):
                    writer.write(ask(M, origin))
                    head, _ = await message(reader)
                    assert (b"access-control-allow-origin" in head) == allowed
            assert len(WAS_QUICK) >= 3

        w.run(scenario())


def test_a_server_of_ours_that_is_stopped_or_drained_is_asked_no_more(tmp_path: Path) -> None:
    server = f"""
[models.ours]
mode = "chat"
[[models.ours.variants]]
required_devices = ["cpu"]
memory_mb = 1
command = ["{sys.executable}", "{Path(http_server.__file__)}", "--port", "{{port}}"]
"""
    with running(tmp_path, more=server) as w:

        async def scenario() -> None:
            reader, writer = await w.connect()

            async def asked() -> Outcome:
                writer.write(ask(b'{"model": "ours"}'))
                await message(reader)
                return await w.outcome()

            assert (await asked()).cold
            for _ in range(3):
                outcome = await asked()
                assert (outcome.cold, outcome.status) == (False, 200)
            server = w.controller.fleet.server_of("ours")
            assert server is not None
            assert not server.in_flight
            await w.controller.stop("ours", force=False)
            outcome = await asked()
            assert (outcome.cold, outcome.status) == (True, 200)
            await w.controller.drain("ours")
            outcome = await asked()
            assert (outcome.status, outcome.code) == (503, "drained")
            assert len(WAS_QUICK) == 5

        w.run(scenario())


@inside
async def test_a_model_that_an_operator_takes_out_of_service_is_refused_until_it_is_back(w: World) -> None:
    reader, writer = await w.connect()

    async def asked() -> int:
        writer.write(ask())
        return status((await message(reader))[0])

    assert [await asked(), await asked()] == [200, 200]
    assert await w.controller.drain("m")
    assert [await asked(), await asked()] == [503, 503]
    assert w.controller.undrain("m")
    assert await asked() == 200
    assert len(w.server.seen) == 3
    assert len(WAS_QUICK) == 4
