"""A plugin's coroutine, awaited in the task of whoever calls it, and let go of when it does not end.

`asyncio.timeout` asks a coroutine to end, and waits for ever if it does not listen. Here we drive it step by step, so
that we can stop doing so; and we know when its code runs, which is what the watchdog asks. For a coroutine that never
pauses nothing is scheduled at all: no task, no timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from sidecar.mechanism.watchdog import Marker

TIDY_S = 1.0  # after it was asked to end

T = TypeVar("T")


class PluginCallError(Exception):
    """The plugin raised something that is not for it to raise: SystemExit, or a cancellation that nobody asked for."""


def out_of_place(error: BaseException) -> PluginCallError:
    """What a plugin's error becomes if it would end our own task, or the program."""
    text = f": {error}" if str(error) else ""
    found = PluginCallError(f"{type(error).__name__} came out of it{text}")
    found.__cause__ = error
    return found


class Bounded(Generic[T]):
    """Await it for the coroutine's result. Raises TimeoutError past the deadline, else what the coroutine raises."""

    __slots__ = ("_call", "_deadline_s", "_marker")

    def __init__(self, call: Awaitable[T], deadline_s: float, marker: Marker) -> None:
        self._call = call
        self._deadline_s = deadline_s
        self._marker = marker

    def __await__(self) -> Generator[Any, None, T]:
        call: Any = self._call if inspect.iscoroutine(self._call) else self._call.__await__()
        patience: _Patience | None = None
        thrown: BaseException | None = None
        try:
            while True:
                try:
                    pause = self._step(call, thrown)
                except StopIteration as done:
                    _check(patience)
                    result: T = done.value
                    return result
                patience = patience or _Patience(self._deadline_s)
                thrown = yield from _wait(pause)
                if isinstance(thrown, asyncio.CancelledError) and patience.is_over():
                    _let_go(call)
                    _check(patience)
        except (Exception, GeneratorExit):
            raise
        except BaseException as error:
            _check(patience)
            raise out_of_place(error) from error
        finally:
            if patience is not None:
                patience.end()
            if thrown is not None:
                del thrown  # or its traceback would keep this frame, and with it the request

    def _step(self, call: Any, thrown: BaseException | None) -> Any:
        """Let it run to its next pause."""
        began = self._marker.enter()
        try:
            return call.send(None) if thrown is None else call.throw(thrown)
        finally:
            self._marker.leave(began)


def _wait(pause: Any) -> Generator[Any, None, BaseException | None]:
    """Wait as the coroutine would; what is raised at that is for it to handle."""
    try:
        yield pause
    except GeneratorExit:
        raise
    except BaseException as error:  # noqa: BLE001 - it is the coroutine's, whatever it is
        return error
    return None


def _check(patience: _Patience | None) -> None:
    if patience is not None:
        patience.check()


def _let_go(call: Coroutine[Any, Any, Any]) -> None:
    """Let a coroutine that does not listen run no further. RuntimeError: it does not even listen to that."""
    with contextlib.suppress(Exception):
        call.close()


class _Patience:
    """How long a coroutine may take, and what became of that.

    Timeouts of the coroutine's own cancel our task for a moment, too: only what lasts is somebody else's wish.
    """

    def __init__(self, deadline_s: float) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("plugins are called from tasks")
        self._task = task
        self._before = task.cancelling()
        self._ours = 0
        self._late = False  # it was asked to end, because of its deadline
        self._over = False  # and has not listened
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(deadline_s, self._deadline)
        self._tidying: asyncio.TimerHandle | None = None

    def is_over(self) -> bool:
        """The coroutine is about to be told of a cancellation: whether there is no more point in that."""
        if self._left():
            self._let_tidy()
        return self._over

    def check(self) -> None:
        """Raises CancelledError if the caller was cancelled, and TimeoutError if it took too long."""
        if self._left():
            raise asyncio.CancelledError
        if self._late or self._over:
            raise TimeoutError

    def end(self) -> None:
        """Take back what was asked of our own task."""
        self._ended = True
        self._timer.cancel()
        if self._tidying is not None:
            self._tidying.cancel()
        while self._ours:
            self._ours -= 1
            self._task.uncancel()

    def _left(self) -> bool:
        """Whether somebody else wants our task to end."""
        return self._task.cancelling() > self._before + self._ours

    def _deadline(self) -> None:
        self._late = True
        self._cancel()
        self._let_tidy()

    def _let_tidy(self) -> None:
        if self._tidying is None:
            self._tidying = self._loop.call_later(TIDY_S, self._give_up)

    def _give_up(self) -> None:
        self._tidying = None
        if self._late or self._left():
            self._loop.call_soon(self._give_up_now)  # by then a timeout of its own has taken its wish back

    def _give_up_now(self) -> None:
        if not self._ended and (self._late or self._left()):
            self._over = True
            self._cancel()

    def _cancel(self) -> None:
        self._ours += 1
        self._task.cancel()
