"""One hook of one plugin, bound once: how to run it, how long it may take, and what its failure means."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Any, Generic, TypeVar

from plugin_sdk import Plugin, Reject
from sidecar.mechanism.calls import direct, runs_inline
from sidecar.mechanism.instance import Instance

T = TypeVar("T")

RETRY_S = 5.0


class Hook(Generic[T]):
    """Call it for what the plugin returns; None if it returned that, or failed and may be skipped. Raises Reject.

    checked: gives back a good result, and raises TypeError or ValueError for what is none. refuses: there is a request
    that can still be refused.
    """

    __slots__ = ("_call", "_checked", "_deny", "_inline", "_name", "_refuses", "instance")

    def __init__(self, instance: Instance, name: str, checked: Callable[[Any], T], *, refuses: bool = True) -> None:
        method = getattr(instance.plugin, name)
        self.instance = instance
        self._name = name
        self._checked = checked
        self._refuses = refuses
        self._deny = refuses and instance.on_error == "deny"
        self._inline = runs_inline(method)
        self._call = method if self._inline else instance.bind(name)

    async def __call__(self, *args: Any) -> T | None:
        instance = self.instance
        if instance.out:
            return None
        began = perf_counter()
        try:
            if self._inline:
                returned = direct(self._call, *args, marker=instance.marker)
            else:
                returned = await self._call(*args)
            result = None if returned is None else self._checked(returned)
        except asyncio.CancelledError:
            raise  # it is we who are being cancelled: a plugin's own cancellation is another error
        except Exception as error:
            if self._refuses and isinstance(error, Reject):
                raise
            self.failed(error)
            return None
        instance.ran(perf_counter() - began)
        return result

    def failed(self, error: Exception) -> None:
        """It has failed, or its result is of no use. Raises Reject if that is the request's end."""
        self.instance.went_wrong(self._name, error)
        if self._deny:
            raise unavailable(self.instance, "did not answer in time" if isinstance(error, TimeoutError) else "failed")


def unavailable(instance: Instance, what: str) -> Reject:
    """A guard that cannot do its work lets nobody pass: clients learn that it failed, the log says how."""
    message = f'the {instance.kind} plugin "{instance.name}" {what}'
    return Reject(503, message, code=f"{instance.kind}_unavailable", retry_after_s=RETRY_S)


def overrides(plugin: Plugin[Any] | None, base: type[Plugin[Any]], name: str) -> bool:
    """Whether the plugin has a method of its own in place of its kind's."""
    return plugin is not None and getattr(type(plugin), name, None) is not getattr(base, name)


def expected(kind: str, got: Any) -> TypeError:
    """The error of a result of another kind."""
    if asyncio.iscoroutine(got):
        got.close()  # nobody will await it
    return TypeError(f"expected {kind}, got {type(got).__name__}")
