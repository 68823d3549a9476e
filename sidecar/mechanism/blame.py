"""What the author of a plugin that has failed needs to know: the error with its place, and what to do about it."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from typing import Any

from sidecar.mechanism.bounded import PluginCallError
from sidecar.mechanism.watchdog import BlockedError

TRACEBACK_CHARACTERS = 4_000


def shown(error: Exception) -> str:
    """The error as its author wants to see it: the end of the traceback, which has the line to blame."""
    text = "".join(traceback.format_exception(error))
    return text if len(text) <= TRACEBACK_CHARACTERS else "..." + text[-TRACEBACK_CHARACTERS:]


def advice(method: Callable[..., Any] | None, error: Exception, deadline_s: float) -> str:
    """Where the method is that has failed, since a wrong result has no traceback; and what helps, where we know."""
    return "; ".join(part for part in (_place(method), _remedy(error, deadline_s)) if part)


def _place(method: Callable[..., Any] | None) -> str:
    function = inspect.unwrap(getattr(method, "__func__", method)) if method is not None else None
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""


def _remedy(error: Exception, deadline_s: float) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return (
            f"it did not end within {deadline_s:g} s: give what it waits for a shorter time limit, or the plugin a "
            "longer deadline"
        )
    if isinstance(error, PluginCallError):
        if isinstance(error.__cause__, BlockedError):
            return "make it a plain `def` without @inline, or call asyncio.to_thread, so that it runs in a thread"
        return "raise nothing but errors: Reject to refuse a request, any other Exception if something is wrong"
    return ""
