"""Waits until a started server serves: the interface's own probe, on a port that is proven to be the server's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from plugin_sdk import NotReady
from sidecar.mechanism.procfs import listeners
from sidecar.mechanism.runner import ServerProcess

PROBE_DEADLINE_S = 5.0
_PAUSE_S = 0.02
_PAUSE_MOST_S = 0.5


class NeverReadyError(Exception):
    """The server did not get ready. reason: one word for a condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """What to wait for. ready: raises NotReady or OSError with the reason while it is not yet so."""

    port: int
    ready: Callable[[], Awaitable[bool]]
    timeout_s: float
    foreign_listener: bool = False


async def until_ready(process: ServerProcess, wait: Wait) -> None:
    """Return once the server is ready. Raises NeverReadyError if it exits, is late, or a stranger has its port."""
    last = "nothing listens on its port"
    pause_s = _PAUSE_S
    try:
        async with asyncio.timeout(wait.timeout_s):
            while not process.exited.done():
                why_not = await _attempt(process, wait)
                if why_not is None:
                    return
                last = why_not
                await asyncio.wait([process.exited], timeout=pause_s)
                pause_s = min(pause_s * 1.3, _PAUSE_MOST_S)
    except TimeoutError:
        message = f"not ready within load_timeout ({wait.timeout_s:g} s): {last}"
        raise NeverReadyError("LoadTimeout", message) from None
    raise NeverReadyError("Exited", f"the server {process.exited.result()} before it was ready")


async def _attempt(process: ServerProcess, wait: Wait) -> str | None:
    """None if ready, else why not. Raises NeverReadyError when it never will be."""
    if not await asyncio.to_thread(listeners, wait.port):
        return "nothing listens on its port"
    if not wait.foreign_listener and not await asyncio.to_thread(process.owns_port, wait.port):
        if process.exited.done():
            return "it has exited"
        raise NeverReadyError("PortTaken", f"another program listens on port {wait.port}, which was the server's")
    try:
        async with asyncio.timeout(PROBE_DEADLINE_S):
            return None if await wait.ready() else "the interface's probe says not yet"
    except TimeoutError:
        return f"the health check did not answer within {PROBE_DEADLINE_S:g} s"
    except (NotReady, OSError) as error:
        return str(error) or type(error).__name__
    except asyncio.CancelledError:
        raise
    except Exception as error:  # noqa: BLE001 - an interface plugin may raise anything; it is why the model is not ready
        return f"the interface's probe failed: {type(error).__name__}: {error}"
