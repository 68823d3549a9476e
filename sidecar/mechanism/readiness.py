"""Waits until a started server serves: the interface's own probe, on a port that is proven to be the server's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from plugin_sdk import NotReady
from sidecar.mechanism.procfs import listeners
from sidecar.mechanism.runner import ServerProcess

_PAUSE_S = 0.02
_PAUSE_MOST_S = 0.5
_FROZEN_S = 0.5  # a timer that is so late tells of a loop that did not run, as after SIGSTOP


class NeverReadyError(Exception):
    """The server did not get ready. reason: one word for a condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """What to wait for. ready: raises NotReady or OSError with the reason while it is not so, in its own time."""

    port: int
    ready: Callable[[], Awaitable[bool]]
    timeout_s: float
    foreign_listener: bool = False


class _Tries:
    """How it went so far."""

    def __init__(self) -> None:
        self.last = "nothing listens on its port"
        self.pause_s = _PAUSE_S


async def until_ready(process: ServerProcess, wait: Wait) -> None:
    """Return once the server is ready. Raises NeverReadyError if it exits, is late, or a stranger has its port."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait.timeout_s
    tries = _Tries()
    while not process.exited.done():
        try:
            async with asyncio.timeout_at(deadline):
                if await _ready(process, wait, tries):
                    return
        except TimeoutError:
            frozen_s = loop.time() - deadline  # we were stopped, and it may have got ready without our seeing it
            if frozen_s < _FROZEN_S:
                message = f"not ready within load_timeout ({wait.timeout_s:g} s): {tries.last}"
                raise NeverReadyError("LoadTimeout", message) from None
            deadline = loop.time() + frozen_s
    raise NeverReadyError("Exited", f"the server {process.exited.result()} before it was ready")


async def _ready(process: ServerProcess, wait: Wait, tries: _Tries) -> bool:
    """Try until the server is ready (True), or has exited (False)."""
    while not process.exited.done():
        why_not = await _attempt(process, wait)
        if why_not is None:
            return True
        tries.last = why_not
        await asyncio.wait([process.exited], timeout=tries.pause_s)
        tries.pause_s = min(tries.pause_s * 1.3, _PAUSE_MOST_S)
    return False


async def _attempt(process: ServerProcess, wait: Wait) -> str | None:
    """None if ready, else why not. Raises NeverReadyError when it never will be."""
    if not await asyncio.to_thread(listeners, wait.port):
        return "nothing listens on its port"
    if not wait.foreign_listener and not await asyncio.to_thread(process.owns_port, wait.port):
        if process.exited.done():
            return "it has exited"
        raise NeverReadyError("PortTaken", f"another program listens on port {wait.port}, which was the server's")
    try:
        return None if await wait.ready() else "the interface's probe says not yet"
    except (NotReady, OSError) as error:
        return str(error) or type(error).__name__
    except asyncio.CancelledError:
        raise
    except Exception as error:  # noqa: BLE001 - an interface plugin may raise anything; it is why the model is not ready
        return f"the interface's probe failed: {type(error).__name__}: {error}"
