"""An interface plugin in use: its methods, each watched and counted, and what holds where one of them fails."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Protocol

from plugin_sdk import Interface, NotReady, Request, Upstream, Usage
from sidecar.mechanism import results
from sidecar.mechanism.hooks import Hook, overrides
from sidecar.mechanism.instance import Instance


class Health(Protocol):
    """How to find out whether a server can serve. Both raise an Exception with the reason where it cannot."""

    async def ready(self, upstream: Upstream) -> bool:
        """Whether it can."""

    async def alive(self, upstream: Upstream) -> bool:
        """Whether it still can; asked every few seconds."""


class NoHealth:
    """Of a mode without a plugin: nothing is ready (Health)."""

    def __init__(self, mode: str, why: str) -> None:
        self._reason = f"the interface plugin of mode {mode} is not available: {why}"

    async def ready(self, upstream: Upstream) -> bool:
        """Raises OSError."""
        del upstream
        raise OSError(self._reason)

    alive = ready


class Mode:
    """One mode of talking to servers. instance: an interface plugin that is open. validates: it may refuse requests."""

    def __init__(self, instance: Instance, interface: Interface[Any]) -> None:
        self.endpoints = interface.endpoints
        self.events = interface.events
        self.usage_on_request = interface.usage_on_request
        self._instance = instance
        self._deadline_s = instance.deadline_s
        self._ready = instance.bind("ready")
        self._alive = instance.bind("alive")
        self._usage = Hook(instance, "usage", results.usage, refuses=False)
        self._error = Hook(instance, "error", results.line, refuses=False)
        self._error_event = Hook(instance, "error_event", results.body, refuses=False)
        self._validate = None
        if overrides(interface, Interface, "validate"):
            self._validate = Hook(instance, "validate", results.nothing, deny=True)
        self.validates = self._validate is not None

    async def ready(self, upstream: Upstream) -> bool:
        """Whether the server can serve. Raises what the plugin raises, and TimeoutError past its deadline.

        That a server does not answer, or says that it is not ready, is no failure of the plugin's.
        """
        return await self._asked("ready", self._ready, upstream)

    async def alive(self, upstream: Upstream) -> bool:
        """Whether a server that was ready still is. Raises as above."""
        return await self._asked("alive", self._alive, upstream)

    async def _asked(self, what: str, method: Callable[[Upstream], Awaitable[Any]], upstream: Upstream) -> bool:
        began = perf_counter()
        try:
            answer = results.truth(await method(upstream))
        except (NotReady, OSError) as error:
            took_s = perf_counter() - began
            self._instance.ran(took_s)
            if isinstance(error, TimeoutError) and took_s >= self._deadline_s:
                raise TimeoutError(f"the health check did not answer within {self._deadline_s:g} s") from error
            raise
        except Exception as error:
            self._instance.went_wrong(what, error)
            raise
        self._instance.ran(perf_counter() - began)
        return answer

    def validate(self, request: Request) -> None:
        """Raises Reject if the mode cannot serve the request, or cannot say whether it can."""
        if self._validate is not None:
            self._validate.now(request)

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        """The token counts at the end of an answer; None also where they cannot be read. Never raises."""
        return self._usage.now(tail, streamed)

    def error(self, status: int, code: str, message: str, param: str | None) -> bytes | None:
        """The body of an error; None if the plugin has no words for it. Never raises."""
        return _worded(self._error, status, code, message, param)

    def error_event(self, error: bytes) -> bytes | None:
        """The event that ends a stream which breaks off; None as above. Never raises."""
        return _worded(self._error_event, error)


def _worded(hook: Hook[bytes], *args: Any) -> bytes | None:
    failures = hook.instance.failed
    said = hook.now(*args)
    if said is None and hook.instance.failed == failures and not hook.instance.out:
        hook.failed(results.expected("bytes", None))
    return said
