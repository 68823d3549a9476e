"""Waits that the client hears of: comments in its event stream, so that nobody on the way takes silence for the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from sidecar.control.leases import Lease
from sidecar.core.conditions import READY
from sidecar.core.observed import Condition, Status

FIRST_S = 0.5  # a wait that is over by then stays silent, and its answer keeps the server's own head
EVERY_S = 3.0
_MESSAGE_MOST = 300  # characters


async def wait_aloud(
    leasing: Coroutine[Any, Any, Lease],
    tell: Callable[[], Awaitable[None]],
    first_s: float = FIRST_S,
    every_s: float = EVERY_S,
) -> Lease:
    """Wait for a lease, and `tell` of it after `first_s`, then every `every_s`. Raises RefusedError."""
    waiting = asyncio.ensure_future(leasing)
    pause_s = first_s
    try:
        while not (await asyncio.wait((waiting,), timeout=pause_s))[0]:
            await tell()
            pause_s = every_s
        return waiting.result()
    except BaseException:
        waiting.cancel()
        waiting.add_done_callback(_unwanted)
        raise
    finally:
        del waiting  # the traceback of its error leads here: whole requests would be left to the garbage collector


def _unwanted(waiting: asyncio.Future[Lease]) -> None:
    """The lease may have been granted in the very moment in which the client left."""
    if not waiting.cancelled() and waiting.exception() is None:
        waiting.result().release()


async def to_the_end(call: Coroutine[Any, Any, None]) -> None:
    """Do all of it, even if whoever waits is told to leave meanwhile: that counts when it is done."""
    doing = asyncio.ensure_future(call)
    leaving: asyncio.CancelledError | None = None
    try:
        while not doing.done():
            try:
                await asyncio.wait((doing,))
            except asyncio.CancelledError as error:
                leaving = error
        doing.result()
        if leaving is not None:
            raise leaving
    finally:
        del doing, leaving  # as above


def loading(model: str, conditions: tuple[Condition, ...], waited_s: float) -> bytes:
    """The comment that says why the model is not ready, as one line."""
    reasons = [one.message for one in conditions if one.type == READY and one.status is not Status.TRUE and one.message]
    text = ": ".join(("loading " + model, *reasons[:1]))
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    shown = line if len(line) <= _MESSAGE_MOST else line[:_MESSAGE_MOST] + "..."
    return f": {shown} ({waited_s:.0f} s)\n\n".encode()
