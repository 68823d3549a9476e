"""What a plugin raises that is not for it to raise ends neither the task that called it nor the program."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from plugin_sdk import Device, inline
from sidecar.mechanism.calls import PluginCallError, Threads, bind
from sidecar.mechanism.devices import Prober


async def cancels() -> None:
    raise asyncio.CancelledError


async def exits() -> None:
    sys.exit(3)


@inline
def exits_inline() -> None:
    sys.exit(3)


@pytest.mark.parametrize("method", [cancels, exits, exits_inline])
async def test_it_becomes_an_error_of_the_plugin(method: Any) -> None:
    threads = Threads("t")
    with pytest.raises(PluginCallError):
        await bind(method, 1.0, threads)()
    threads.close()


async def test_our_own_cancellation_passes() -> None:
    threads = Threads("t")

    async def waits() -> None:
        await asyncio.sleep(60)

    async def call() -> None:
        await bind(waits, 60.0, threads)()

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    threads.close()


async def test_a_probe_that_cancels_itself_is_a_problem_of_its_device() -> None:
    class Selfish(Device):
        provides = "selfish"

        async def probe(self) -> Any:
            raise asyncio.CancelledError

    prober = Prober(Selfish(name="selfish"))
    assert await prober.probe() == ()
    assert "PluginCallError" in prober.problem
    prober.close()
