"""Whoever holds up the loop is named, with the line, while it lasts and afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from typing import Any

import pytest

from plugin_sdk import inline
from sidecar.mechanism.calls import PluginCallError, Threads, bind
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


@inline
def spins() -> None:
    while True:
        pass


async def sleeps() -> None:
    time.sleep(60)  # noqa: ASYNC251 - that is what is tested


async def catches_all() -> None:
    while True:
        with contextlib.suppress(Exception):
            time.sleep(60)  # noqa: ASYNC251 - that is what is tested


@pytest.mark.parametrize("method", [spins, sleeps, catches_all])
async def test_a_plugin_that_does_not_stop_blocking_is_stopped(method: Any, caplog: pytest.LogCaptureFixture) -> None:
    marker = Marker("it")
    watchdog = Watchdog(lambda: (marker,))
    watchdog.start()
    began = time.monotonic()
    with pytest.raises(
        PluginCallError, match="BlockedError came out of it: it blocked the event loop for more than 1 s"
    ):
        await bind(method, PATIENCE_S, Threads("it"), marker)()
    assert time.monotonic() - began < PATIENCE_S
    watchdog.close()
    assert marker.blocked == 1
    assert any("and was stopped" in message for message in caplog.messages)
    await asyncio.sleep(0)  # nothing is raised in what comes after it


def test_the_signals_handler_is_given_back() -> None:
    before = signal.getsignal(signal.SIGURG)
    watchdog = Watchdog(lambda: ())
    watchdog.start()
    signal.raise_signal(signal.SIGURG)  # nobody is stuck, so nothing is raised
    watchdog.close()
    assert signal.getsignal(signal.SIGURG) == before


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
