"""Whoever holds up the loop is named, with the line, while it lasts and afterwards."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from plugin_sdk import inline
from sidecar.mechanism.calls import Threads, bind
from sidecar.mechanism.watchdog import BLOCKED_S, Marker, Watchdog
from tests.support import PATIENCE_S


def block() -> None:
    time.sleep(4 * BLOCKED_S)


async def block_in_async() -> None:
    await asyncio.sleep(0)
    block()


async def pause() -> None:
    await asyncio.sleep(2 * BLOCKED_S)


@pytest.mark.parametrize("kind", ["inline", "async"])
async def test_a_plugin_that_blocks_the_loop_is_named(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    quiet, loud = Marker("quiet"), Marker("loud")
    watchdog = Watchdog(lambda: (quiet, loud))
    watchdog.start()

    @inline
    def now() -> None:
        block()

    method = {"inline": now, "async": block_in_async}[kind]
    with caplog.at_level(logging.WARNING, "sidecar.mechanism.watchdog"):
        await bind(method, PATIENCE_S, Threads("loud"), loud)()
    watchdog.close()
    assert (quiet.blocked, loud.blocked) == (0, 1)
    assert loud.longest_s > BLOCKED_S
    during, after = caplog.messages
    assert during.startswith(f"plugin loud is blocking the event loop at {__file__}:")
    assert during.endswith("(block)")
    assert after.startswith("plugin loud blocked the event loop for ")


async def test_waiting_is_not_blocking(caplog: pytest.LogCaptureFixture) -> None:
    marker, threads = Marker("it"), Threads("it")
    watchdog = Watchdog(lambda: (marker,))
    watchdog.start()
    await bind(pause, PATIENCE_S, threads, marker)()
    await bind(block, PATIENCE_S, threads, marker)()
    watchdog.close()
    threads.close()
    assert marker.blocked == 0
    assert not caplog.messages
