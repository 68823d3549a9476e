"""Whoever holds up the loop is named, with the line, while it lasts and afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from typing import Any

import pytest

from plugin_sdk import inline
from sidecar.mechanism import watchdog as watchdog_module
from sidecar.mechanism.calls import PluginCallError, Threads, bind
from sidecar.mechanism.watchdog import BLOCKED_S, BlockedError, Marker, Watchdog
from tests.support import PATIENCE_S, until


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog_module, "STUCK_S", 0.3)


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


async def catches_even_that() -> None:
    while True:
        try:
            while True:
                try:
                    time.sleep(0.01)  # noqa: ASYNC251 - that is what is tested
                    raise OSError("no database")
                except:  # noqa: E722, S110 - as people write
                    pass
        except ValueError:
            pass


async def test_a_plugin_that_catches_even_that_is_told_until_it_stops(caplog: pytest.LogCaptureFixture) -> None:
    marker = Marker("it")
    watchdog = Watchdog(lambda: (marker,))
    watchdog.start()
    with pytest.raises(PluginCallError, match="BlockedError"):
        await bind(catches_even_that, PATIENCE_S, Threads("it"), marker)()
    watchdog.close()
    told = [message for message in caplog.messages if message.endswith("was told to stop")]
    stopped = [message for message in caplog.messages if message.endswith("was stopped")]
    assert (len(told), len(stopped)) == (2, 1)
    assert caplog.messages[-1] == stopped[0]
    assert sys.gettrace() is None


async def own_task(how_long_s: float) -> None:
    await asyncio.sleep(0)
    end = time.monotonic() + how_long_s
    while time.monotonic() < end:
        pass


@pytest.mark.parametrize("how_long_s", [8 * BLOCKED_S, 3 * PATIENCE_S], ids=["a while", "for ever"])
async def test_a_task_of_a_plugins_own_that_blocks_the_loop_is_named_by_its_file(
    caplog: pytest.LogCaptureFixture, how_long_s: float
) -> None:
    quiet, loud = Marker("quiet", "/nowhere"), Marker("loud", __file__)
    watchdog = Watchdog(lambda: (quiet, loud))
    watchdog.start()
    [result] = await asyncio.gather(asyncio.create_task(own_task(how_long_s)), return_exceptions=True)
    await until(lambda: loud.blocked, "it is counted")
    watchdog.close()
    assert isinstance(result, BlockedError) == (how_long_s > PATIENCE_S)
    assert caplog.messages[0].startswith(f"plugin loud is blocking the event loop at {__file__}:")
    assert (loud.blocked, quiet.blocked) == (1, 0)


async def test_the_signals_handler_is_given_back() -> None:
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
