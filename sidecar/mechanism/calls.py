"""Calls into plugins: on the loop, or in threads of the plugin's own, always with a deadline.

A plugin that hangs costs its own threads and nothing else: they are few and daemons, and its further calls time out,
or are refused when too many wait already.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from plugin_sdk.kinds import is_inline
from sidecar.mechanism.bounded import Bounded, PluginCallError, out_of_place
from sidecar.mechanism.watchdog import Marker

__all__ = ["PluginCallError", "Threads", "at_once", "bind", "direct", "runs_inline"]

THREADS_PER_PLUGIN = 4
MOST_WAITING = 1000  # calls for which there is no thread yet

T = TypeVar("T")


class _Job(Future[Any]):
    """A call to come. One that is cancelled lets go of its function at once, and with it of the request."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__()
        self.function = function

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self.function = _nothing
        return cancelled


def _nothing() -> None:
    """What is left of a function that need not be called any more."""


class Threads:
    """A few daemon threads, started when first needed. Daemons, because a hung one must not keep the program alive."""

    def __init__(self, name: str, most: int = THREADS_PER_PLUGIN) -> None:
        self._name = name
        self._most = most
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._started = 0
        self._idle = threading.Semaphore(0)

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Run `function` in one of the threads; a job whose future was cancelled meanwhile is skipped.

        Raises PluginCallError if too many are waiting.
        """
        if self._jobs.qsize() >= MOST_WAITING and self._waiting() >= MOST_WAITING:
            raise PluginCallError(f"{MOST_WAITING} calls are waiting for its {self._most} threads already")
        future = _Job(function)
        self._jobs.put(future)
        if not self._idle.acquire(blocking=False) and self._started < self._most:
            self._started += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()
        return future

    def close(self) -> None:
        """Let the threads end after what they are doing."""
        for _ in range(self._started):
            self._jobs.put(None)

    def _waiting(self) -> int:
        """How many there are once those that were cancelled are thrown away: with hung threads, nobody else does."""
        jobs: list[_Job | None] = []
        with contextlib.suppress(queue.Empty):
            while True:
                jobs.append(self._jobs.get_nowait())
        for job in jobs:
            if job is None or not job.cancelled():
                self._jobs.put(job)
        return self._jobs.qsize()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            _run(job)
            del job  # what came of it is not kept until there is another
            self._idle.release()


def _run(future: _Job) -> None:
    if not future.set_running_or_notify_cancel():
        return
    function, future.function = future.function, _nothing
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001 - handed to whoever awaits the call; sys.exit() must not end the thread
        future.set_exception(error if isinstance(error, Exception) else out_of_place(error))
    else:
        future.set_result(result)
    finally:
        del future, function  # an error's traceback leads here: what they hold would be left to the garbage collector


def direct(method: Callable[..., T], *args: Any, marker: Marker | None = None) -> T:
    """The result of a plain method, called on the loop. It raises nothing worse than an Exception."""
    began = marker.enter() if marker is not None else 0.0
    try:
        return method(*args)
    except Exception:
        raise
    except BaseException as error:
        raise out_of_place(error) from error
    finally:
        if marker is not None:
            marker.leave(began)


def at_once(call: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing, without a task. Raises RuntimeError if it does wait."""
    try:
        call.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    call.close()
    raise RuntimeError(f"{call!r} waits for something where nothing may")


def runs_inline(method: Callable[..., Any]) -> bool:
    """Whether calling the method on the loop, without awaiting anything, is the way to run it."""
    return is_inline(method) and not inspect.iscoroutinefunction(method)


def bind(
    method: Callable[..., Any], deadline_s: float, threads: Threads, marker: Marker | None = None
) -> Callable[..., Awaitable[Any]]:
    """`method` as a coroutine function with a deadline: raises TimeoutError past it, else what the method raises."""
    mark = marker or Marker(getattr(method, "__qualname__", "?"))
    if runs_inline(method):

        async def call_inline(*args: Any) -> Any:
            return direct(method, *args, marker=mark)

        return call_inline
    if inspect.iscoroutinefunction(method):

        async def call_async(*args: Any) -> Any:
            return await Bounded(method(*args), deadline_s, mark)

        return call_async

    async def call_threaded(*args: Any) -> Any:
        async with asyncio.timeout(deadline_s):
            context = contextvars.copy_context()  # or spans of the plugin's would have no parent
            result = await asyncio.wrap_future(threads.submit(functools.partial(context.run, method, *args)))
        return await Bounded(result, deadline_s, mark) if inspect.isawaitable(result) else result

    return call_threaded
