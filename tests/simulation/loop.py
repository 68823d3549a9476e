"""An event loop whose clock jumps to the next timer, instead of waiting for it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any

_MOST_TURNS = 100_000  # at one instant: whoever needs more turns in circles

Owner = Callable[["asyncio.Task[Any]"], None]

OWNER: contextvars.ContextVar[Owner | None] = contextvars.ContextVar("OWNER", default=None)


class DeadlockError(Exception):
    """Everybody waits, and there is no timer that could end it."""


class SpinError(Exception):
    """The loop turns and turns, and time does not go on."""


class _Jump:
    """Stands where a loop has its selector: nothing ever comes in, so waiting is moving the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._turns = 0

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise DeadlockError(f"at {self._loop.now:.3f} s everybody waits for somebody else")
        if timeout > 0:
            self._loop.now += timeout
            self._turns = 0
        else:
            self._turns += 1
            if self._turns > _MOST_TURNS:
                raise SpinError(f"at {self._loop.now:.3f} s the loop turned {_MOST_TURNS} times at one instant")
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """now: seconds since the simulation began. A task made in the context of an OWNER is reported to it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._selector = _Jump(self)
        self._clock_resolution = 1e-6
        self.set_task_factory(_owned)  # type: ignore[arg-type] # typeshed has it without the context of Python 3.11

    def time(self) -> float:
        return self.now

    def _process_events(self, events: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps who would have to be woken."""


def _owned(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], context: contextvars.Context | None = None
) -> asyncio.Task[Any]:
    task = asyncio.Task(coroutine, loop=loop, context=context)
    owner = context.get(OWNER) if context is not None else OWNER.get()
    if owner is not None:
        owner(task)
    return task
