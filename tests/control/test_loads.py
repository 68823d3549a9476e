"""Servers are looked at while they load, and a look that hangs or fails harms nobody."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from sidecar.control.clock import Clock
from sidecar.control.fleet import Fleet
from sidecar.control.live import LiveServer
from sidecar.control.loads import LoadWatch
from sidecar.control.machine import Running
from sidecar.core.lifecycle import Cause
from sidecar.core.manifest import Variant
from sidecar.core.plan import Start
from sidecar.mechanism.loading import Reading


class Process:
    """One that says what it is told to, when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer: asyncio.Future[Reading | None] = asyncio.get_running_loop().create_future()

    async def reading(self) -> Reading | None:
        self.asked += 1
        return await asyncio.shield(self.answer)


class World:
    def __init__(self) -> None:
        self.fleet = Fleet(Clock())
        self.observed = 0
        self.watch = LoadWatch(self.fleet, self._observe, period_s=0.01)

    async def _observe(self) -> None:
        self.observed += 1

    def load(self, model: str) -> tuple[LiveServer, Process]:
        start = Start(model=model, variant="v", devices=("cpu",), reserved_mb={"cpu": 1})
        server = LiveServer(f"{model}-1", start, Variant(name="v"), self.fleet.clock)
        process = Process()
        server.process = cast(Running, process)
        self.fleet.add(server, "it fits")
        return server, process


@pytest.fixture
async def world() -> World:
    return World()


async def test_nothing_is_looked_at_while_nothing_loads(world: World) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.03):
            await world.watch.due()
    server, _ = world.load("m")
    await world.watch.due()
    world.fleet.move(server, Cause.BECAME_READY)
    await world.watch.look()
    assert world.observed == 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.03):
            await world.watch.due()


async def test_a_look_that_hangs_delays_no_other_and_is_not_made_twice(world: World) -> None:
    hangs, hung = world.load("hangs")
    fine, quick = world.load("fine")
    quick.answer.set_result(Reading(read=7))
    for _ in range(3):
        await world.watch.look()
    assert (fine.reading, hangs.reading) == (Reading(read=7), None)
    assert (quick.asked, hung.asked, world.observed) == (3, 1, 3)
    hung.answer.set_result(Reading(read=8))
    await world.watch.look()
    assert hangs.reading == Reading(read=8)


async def test_a_look_that_fails_is_counted_and_logged_and_tried_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    server, process = world.load("m")
    process.answer.set_exception(OSError("no /proc"))
    await world.watch.look()
    await world.watch.look()
    assert (server.reading, process.asked, world.watch.failed) == (None, 2, 2)
    assert "m-1: what it has read cannot be told" in caplog.text
