"""Calls into plugins: three ways to run, one deadline, and a hung one that holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from plugin_sdk import inline
from sidecar.mechanism import calls
from sidecar.mechanism.calls import THREADS_PER_PLUGIN, PluginCallError, Threads, at_once, bind
from tests.support import PATIENCE_S, no_garbage, until


def workers(name: str = "test") -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"{name}-")]


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads("test")
    yield made
    made.close()
    for worker in workers():  # those that a test hangs are released before
        worker.join(PATIENCE_S)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Set at the end, so that threads which hang for a test end with it."""
    event = threading.Event()
    yield event
    event.set()


async def test_an_async_method_runs_on_the_loop(threads: Threads) -> None:
    async def method(a: int, b: int) -> object:
        return threading.current_thread(), a + b

    assert await bind(method, 1, threads)(2, 3) == (threading.main_thread(), 5)


async def test_a_plain_method_runs_in_a_thread_of_its_own(threads: Threads) -> None:
    def method(a: int) -> tuple[str, bool, int]:
        thread = threading.current_thread()
        return thread.name, thread.daemon, a

    assert await bind(method, PATIENCE_S, threads)(7) == ("test-1", True, 7)


async def test_an_inline_method_runs_on_the_loop_at_once(threads: Threads) -> None:
    @inline
    def method() -> threading.Thread:
        return threading.current_thread()

    assert await bind(method, 1, threads)() is threading.main_thread()
    assert not workers()


async def test_inline_on_an_async_method_changes_nothing(threads: Threads) -> None:
    @inline
    async def method() -> int:
        return 3

    assert await bind(method, 1, threads)() == 3


async def test_a_plain_method_that_returns_an_awaitable_is_awaited(threads: Threads) -> None:
    async def answer() -> int:
        return 3

    def method() -> object:  # what a decorator without `async def` makes of an async method
        return answer()

    assert await bind(method, PATIENCE_S, threads)() == 3


@pytest.mark.parametrize("kind", ["async", "threaded", "inline"])
async def test_what_the_method_raises_is_raised(threads: Threads, kind: str) -> None:
    def plain() -> None:
        raise LookupError(kind)

    async def awaited() -> None:
        raise LookupError(kind)

    method = {"async": awaited, "threaded": plain, "inline": inline(plain)}[kind]
    with pytest.raises(LookupError, match=kind):
        await bind(method, PATIENCE_S, threads)()


async def test_exit_in_a_thread_ends_neither_the_thread_nor_the_program(threads: Threads) -> None:
    def method(leave: bool) -> str:
        if leave:
            sys.exit(3)
        return threading.current_thread().name

    call = bind(method, PATIENCE_S, threads)
    with pytest.raises(PluginCallError, match="SystemExit came out of it: 3") as raised:
        await call(True)
    assert isinstance(raised.value.__cause__, SystemExit)  # which knows the line
    assert await call(False) == "test-1"


async def test_a_slow_async_method_is_cancelled_at_its_deadline(threads: Threads) -> None:
    cancelled = asyncio.Event()

    async def method() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(TimeoutError):
        await bind(method, 0.01, threads)()
    assert cancelled.is_set()


async def test_a_hung_thread_times_out_and_the_next_call_has_another(
    threads: Threads, release: threading.Event
) -> None:
    def method(hang: bool) -> str:
        if hang:
            release.wait()
        return threading.current_thread().name

    slow, fast = bind(method, 0.02, threads), bind(method, PATIENCE_S, threads)
    with pytest.raises(TimeoutError):
        await slow(True)
    assert await fast(False) == "test-2"


async def test_a_plugin_that_always_hangs_costs_a_few_threads_and_no_more(
    threads: Threads, release: threading.Event
) -> None:
    call = bind(release.wait, 0.02, threads)
    results = await asyncio.gather(*(call() for _ in range(50)), return_exceptions=True)
    assert all(isinstance(result, TimeoutError) for result in results)
    assert len(workers()) == THREADS_PER_PLUGIN


async def test_calls_that_timed_out_in_the_queue_are_never_made(threads: Threads, release: threading.Event) -> None:
    made: list[int] = []

    def method(number: int) -> None:
        made.append(number)
        release.wait()

    call = bind(method, 0.02, threads)
    await asyncio.gather(*(call(number) for number in range(20)), return_exceptions=True)
    release.set()
    assert await bind(lambda: "well again", PATIENCE_S, threads)() == "well again"
    assert sorted(made) == list(range(THREADS_PER_PLUGIN))


async def test_one_plugins_hang_does_not_touch_another(threads: Threads, release: threading.Event) -> None:
    other = Threads("other")
    hung = [asyncio.ensure_future(bind(release.wait, PATIENCE_S, threads)()) for _ in range(2 * THREADS_PER_PLUGIN)]
    assert await bind(lambda: 5, PATIENCE_S, other)() == 5
    release.set()
    assert await asyncio.gather(*hung) == [True] * len(hung)
    other.close()


async def test_an_idle_thread_is_used_again(threads: Threads) -> None:
    call = bind(lambda: threading.current_thread().name, PATIENCE_S, threads)
    names = set()
    for _ in range(20):
        names.add(await call())
        await asyncio.sleep(0.001)
    assert len(names) <= 2  # a second one is right if a call came before the first thread was idle again


async def test_calls_run_side_by_side(threads: Threads) -> None:
    together = threading.Barrier(THREADS_PER_PLUGIN)
    call = bind(lambda: together.wait(PATIENCE_S), PATIENCE_S, threads)
    assert sorted(await asyncio.gather(*(call() for _ in range(THREADS_PER_PLUGIN)))) == [0, 1, 2, 3]


async def test_a_cancelled_call_lets_the_thread_finish_and_go_on(threads: Threads, release: threading.Event) -> None:
    began = threading.Event()

    def method() -> None:
        began.set()
        release.wait()

    task = asyncio.ensure_future(bind(method, PATIENCE_S, threads)())
    await until(began.is_set, "the call runs")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    assert await bind(lambda: 1, PATIENCE_S, threads)() == 1


async def test_closed_threads_end() -> None:
    threads = Threads("closing")
    await bind(lambda: None, PATIENCE_S, threads)()
    assert workers("closing")
    threads.close()
    await until(lambda: not workers("closing"), "the thread ends")


def test_a_hung_thread_does_not_keep_the_program_alive() -> None:
    program = """
import asyncio, threading
from sidecar.mechanism.calls import Threads, bind
async def main():
    try:
        await bind(threading.Event().wait, 0.05, Threads("hung"))()
    except TimeoutError:
        print("timed out")
asyncio.run(main())
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "timed out\n", "")
    assert time.monotonic() - began < PATIENCE_S


async def test_calls_behind_a_hung_one_keep_nothing_and_are_refused_when_too_many_wait(
    threads: Threads, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "MOST_WAITING", 5)

    class Body:
        """A request's body."""

    def hang(_: object) -> None:
        release.wait()

    bodies: weakref.WeakSet[Body] = weakref.WeakSet()

    async def call(deadline_s: float) -> None:
        body = Body()
        bodies.add(body)
        await bind(hang, deadline_s, threads)(body)

    hung = [asyncio.create_task(call(PATIENCE_S)) for _ in range(THREADS_PER_PLUGIN)]
    await until(lambda: len(workers()) == THREADS_PER_PLUGIN, "all threads are busy")
    late = await asyncio.gather(*(call(0.01) for _ in range(5)), return_exceptions=True)
    assert [type(error) for error in late] == [TimeoutError] * 5
    del late
    await asyncio.sleep(0)
    gc.collect()  # tracebacks
    assert len(bodies) == THREADS_PER_PLUGIN
    waiting = [asyncio.create_task(call(PATIENCE_S)) for _ in range(5)]  # in the place of those
    await asyncio.sleep(0)
    with pytest.raises(PluginCallError, match="5 calls are waiting for its 4 threads already"):
        await call(PATIENCE_S)
    release.set()
    await asyncio.gather(*hung, *waiting)


async def test_calls_in_threads_leave_nothing_behind(threads: Threads) -> None:
    """Neither to the garbage collector, nor in a thread that waits for its next call."""

    class Body:
        """A request's body, or an answer's."""

    bodies: weakref.WeakSet[Body] = weakref.WeakSet()

    def answers(_: Body) -> Body:
        body = Body()
        bodies.add(body)
        return body

    def fails(_: Body) -> Body:
        raise OSError("no space left on device")

    async def call(method: Callable[[Body], Body]) -> None:
        body = Body()
        bodies.add(body)
        with contextlib.suppress(OSError):
            await bind(method, PATIENCE_S, threads)(body)

    for method in (answers, fails):
        await call(method)
        with no_garbage():
            await call(method)
            await until(lambda: not bodies, "they are gone")


# --- without a task -------------------------------------------------------------------------------------------------


def test_a_coroutine_that_waits_for_nothing_needs_no_loop() -> None:
    async def inner(number: int) -> int:
        return number + 1

    async def outer() -> int:
        return await inner(await inner(1))

    assert at_once(outer()) == 3


def test_what_it_raises_is_raised_at_once() -> None:
    async def fails() -> None:
        raise LookupError("nothing there")

    with pytest.raises(LookupError, match="nothing there"):
        at_once(fails())


async def test_a_coroutine_that_does_wait_is_an_error_and_ends_there() -> None:
    ended: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            ended.append("closed")

    with pytest.raises(RuntimeError, match="waits for something where nothing may"):
        at_once(waits())
    assert ended == ["closed"]
