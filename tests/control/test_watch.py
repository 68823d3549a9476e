"""What is read of devices is never older than what has happened since, and nobody is kept waiting for it for ever."""

from __future__ import annotations

import asyncio
import logging

import pytest

from plugin_sdk import Device, DeviceStatus
from sidecar.control.clock import Clock
from sidecar.control.fleet import Fleet
from sidecar.control.watch import DeviceWatch, ExternalWatch
from sidecar.core.manifest import Model, Variant
from sidecar.mechanism.devices import Prober
from sidecar.mechanism.machine import Families
from sidecar.mechanism.upstream import Client
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


async def test_how_a_server_is_that_somebody_else_runs_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(monotonic=lambda: 1.0)
    client = Client()
    watch = ExternalWatch(Fleet(clock), client)
    model = Model(mode="chat", variants=(Variant(name="far", url="http://far:1"),))
    said: list[bool | Exception] = [True, True, OSError("it answered 500:\n<html>"), False]

    async def ready(upstream: object) -> bool:
        answer = said.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    caplog.set_level(logging.INFO, "sidecar.control.watch")
    while said:
        await watch.probe_all({"qwen": model}, lambda _: ready)
    await client.close()
    assert caplog.messages == [
        "qwen: external server http://far:1 is healthy",
        "qwen: external server http://far:1 is unhealthy: it answered 500: <html>",
        "qwen: external server http://far:1 is unhealthy",
    ]


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
