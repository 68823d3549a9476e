"""Coroutines of plugins: their deadline holds whether they listen or not, and our own cancellation always passes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import Any

import pytest

from sidecar.mechanism import bounded
from sidecar.mechanism.bounded import Bounded, PluginCallError
from sidecar.mechanism.watchdog import Marker
from tests.support import PATIENCE_S


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "TIDY_S", 0.02)


async def run(call: Any, deadline_s: float = PATIENCE_S) -> Any:
    return await Bounded(call, deadline_s, Marker("it"))


async def stubborn(heard: list[str]) -> None:
    """Goes on, whatever it is told."""
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            heard.append("cancelled")


async def test_a_result_comes_with_and_without_a_pause() -> None:
    async def at_once() -> int:
        return 1

    async def later() -> int:
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        return 2

    assert (await run(at_once()), await run(later())) == (1, 2)


async def test_without_a_pause_no_timer_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "_Patience", None)

    async def at_once() -> int:
        return 1

    assert await run(at_once()) == 1


async def test_an_awaitable_that_is_no_coroutine_is_awaited_too() -> None:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, 3)
    assert await run(future) == 3


async def test_a_late_one_is_cancelled_and_may_tidy_up() -> None:
    tidied = asyncio.Event()

    async def late() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            tidied.set()

    with pytest.raises(TimeoutError):
        await run(late(), 0.01)
    assert tidied.is_set()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_one_that_does_not_listen_is_let_go() -> None:
    heard: list[str] = []
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(run(stubborn(heard), 0.01), PATIENCE_S)
    assert heard == ["cancelled"]
    await asyncio.sleep(0.05)  # nothing of ours arrives any more
    gc.collect()


async def test_a_caller_that_is_cancelled_does_not_wait_for_one_that_does_not_listen() -> None:
    heard: list[str] = []
    task = asyncio.create_task(run(stubborn(heard)))
    await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait((task,), timeout=PATIENCE_S)
    assert done
    assert task.cancelled()
    assert heard == ["cancelled"]


async def test_a_result_after_the_caller_was_cancelled_is_none() -> None:
    async def swallows() -> int:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return 1

    task = asyncio.create_task(run(swallows()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_result_past_the_deadline_is_too_late() -> None:
    async def swallows() -> int:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return 1

    with pytest.raises(TimeoutError):
        await run(swallows(), 0.01)


async def test_timeouts_of_the_coroutines_own_are_its_own() -> None:
    async def tries_twice() -> str:
        for _ in range(2):
            try:
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(60)
            except TimeoutError:
                await asyncio.sleep(0.03)  # longer than it would be given if it had been asked to end
        return "well"

    assert await run(tries_twice()) == "well"


async def test_the_deadline_holds_after_a_timeout_of_the_coroutines_own() -> None:
    async def tries_for_ever() -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(run(tries_for_ever(), 0.1), PATIENCE_S)


class Odd(BaseException):
    """Not for plugins to raise."""


@pytest.mark.parametrize("error", [SystemExit, asyncio.CancelledError, Odd, KeyboardInterrupt])
@pytest.mark.parametrize("pauses", [0, 1])
async def test_what_would_end_us_becomes_an_error(error: type[BaseException], pauses: int) -> None:
    async def call() -> None:
        for _ in range(pauses):
            await asyncio.sleep(0)
        raise error

    with pytest.raises(PluginCallError, match=error.__name__):
        await run(call())


async def test_what_it_raises_is_raised() -> None:
    async def call() -> None:
        await asyncio.sleep(0)
        raise LookupError("x")

    with pytest.raises(LookupError, match="x"):
        await run(call())


async def test_tasks_and_groups_in_it_work_as_ever() -> None:
    async def call() -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asyncio.sleep(0.001, number)) for number in range(3)]
        return [task.result() for task in tasks]

    assert await run(call()) == [0, 1, 2]
