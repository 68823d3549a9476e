"""What is read of devices is never older than what has happened since, and nobody is kept waiting for it for ever."""

from __future__ import annotations

import asyncio

from plugin_sdk import Device, DeviceStatus
from sidecar.control.clock import Clock
from sidecar.control.watch import DeviceWatch
from sidecar.mechanism.devices import Prober
from sidecar.mechanism.machine import Families
from tests.support import PATIENCE_S


class Prompt(Device):
    """Answers at once."""

    provides = "prompt"

    async def probe(self) -> list[DeviceStatus]:
        return [DeviceStatus(total_mb=100, free_mb=50)]


class NoMachine:
    """Nothing of it is asked for here."""

    async def families(self, leaders: set[int]) -> Families:
        raise NotImplementedError


async def test_a_reading_that_may_have_begun_before_the_change_is_followed_by_another_that_wakes() -> None:
    now = 1.0
    late = asyncio.Event()
    devices = DeviceWatch(Clock(monotonic=lambda: now), NoMachine(), late)  # type: ignore[arg-type] # no processes here
    await devices.use({"prompt": Prober(Prompt(), PATIENCE_S)})
    assert [device.stale for device in await devices.read(changed_at=now, fresh_s=1.0)] == [True]
    now = 2.0
    async with asyncio.timeout(PATIENCE_S):
        await late.wait()
    assert [device.stale for device in await devices.read(changed_at=1.0, fresh_s=1.0)] == [False]
