"""Calls into plugins: on the loop, or in threads of the plugin's own, always with a deadline.

A plugin that hangs costs its own threads and nothing else: they are few and daemons, and its further calls time out.
"""

from __future__ import annotations

import asyncio
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

T = TypeVar("T")

Job = tuple["Future[Any]", Callable[[], Any]]


class Threads:
    """A few daemon threads, started when first needed. Daemons, because a hung one must not keep the program alive."""

    def __init__(self, name: str, most: int = THREADS_PER_PLUGIN) -> None:
        self._name = name
        self._most = most
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._started = 0
        self._idle = threading.Semaphore(0)

    def submit(self, function: Callable[[], Any]) -> Future[Any]:
        """Run `function` in one of the threads; a job whose future was cancelled meanwhile is skipped."""
        future: Future[Any] = Future()
        self._jobs.put((future, function))
        if not self._idle.acquire(blocking=False) and self._started < self._most:
            self._started += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()
        return future

    def close(self) -> None:
        """Let the threads end after what they are doing."""
        for _ in range(self._started):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            _run(*job)
            self._idle.release()


def _run(future: Future[Any], function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001 - handed to whoever awaits the call; sys.exit() must not end the thread
        future.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
    else:
        future.set_result(result)


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
