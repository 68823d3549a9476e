"""One hook of one plugin, bound once: how to run it, how long it may take, and what its failure means."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Any, Generic, TypeVar

from plugin_sdk import Plugin, Reject
from sidecar.mechanism import results
from sidecar.mechanism.bounded import out_of_place
from sidecar.mechanism.calls import runs_inline
from sidecar.mechanism.fulfil import ON_LOOP
from sidecar.mechanism.instance import Instance
from sidecar.mechanism.watchdog import BLOCKED_S

T = TypeVar("T")

RETRY_S = 5.0


class UnavailableError(Reject):
    """A plugin that cannot do its work, where it may not be skipped."""


class Hook(Generic[T]):
    """Call it for what the plugin returns; None if it returned that, or failed and may be skipped. Raises Reject.

    checked: gives back a good result, and raises TypeError or ValueError for what is none. refuses: there is a request
    that can still be refused. deny: nobody can do without the result, so its failure refuses whatever on_error says.
    before: of the first argument, what the result may be a changed form of; `checked` gets it as well, and need not
    look at what is still the very same.
    """

    __slots__ = ("_before", "_call", "_checked", "_deny", "_marker", "_name", "_refuses", "inline", "instance")

    def __init__(
        self,
        instance: Instance,
        name: str,
        checked: Callable[..., T],
        *,
        refuses: bool = True,
        deny: bool = False,
        before: Callable[[Any], Any] | None = None,
    ) -> None:
        method = getattr(instance.plugin, name)
        self.instance = instance
        self.inline = name in ON_LOOP or runs_inline(method)
        self._marker = instance.marker
        self._name = name
        self._checked = checked
        self._before = before
        self._refuses = refuses
        self._deny = deny or (refuses and instance.on_error == "deny")
        self._call = method if self.inline else instance.bind(name)

    async def __call__(self, *args: Any) -> T | None:
        if self.inline:
            return self.now(*args)
        if self.instance.out:
            self._left_out()
            return None
        began = perf_counter()
        try:
            before = self._before(args[0]) if self._before is not None else None
            returned = await self._call(*args)
            result = None if returned is None else self._good(returned, before)
        except asyncio.CancelledError:
            raise  # it is we who are being cancelled: a plugin's own cancellation is another error
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; taken note of
            self._raised(error)
            return None
        self.instance.ran(perf_counter() - began)
        return result

    def now(self, first: Any, *more: Any) -> T | None:
        """The same at once, for a method that is `inline`.

        It marks and counts by itself, without a call to Marker and Instance: it is run for every stage of a request.
        Most methods take one argument, and calling them without `*` is quicker.
        """
        instance, marker, began = self.instance, self._marker, perf_counter()
        if instance.out:
            self._left_out()
            return None
        result: T | None = None
        try:
            try:
                before_of = self._before
                before = before_of(first) if before_of is not None else None
                marker.entered = began
                returned = self._call(first, *more) if more else self._call(first)
                if returned is not None:
                    result = self._checked(returned) if before_of is None else self._checked(returned, before)
                marker.entered = 0.0
            except Exception as error:  # noqa: BLE001 - as above
                self._ended(began, error)
                return None
        except Exception:
            raise
        except BaseException as error:  # noqa: BLE001 - such as sys.exit(): it is the plugin's failure and no more
            self._ended(began, out_of_place(error))
            return None
        took_s = perf_counter() - began
        if took_s > BLOCKED_S:
            marker.is_over(took_s)
        instance.runs += 1
        instance.busy_s += took_s
        instance.in_row = 0
        instance.durations_s.append(took_s)
        return result

    def _good(self, returned: Any, before: Any) -> T:
        """Raises TypeError and ValueError."""
        return self._checked(returned) if self._before is None else self._checked(returned, before)

    def _ended(self, began: float, error: Exception) -> None:
        """It has raised that. An author's error may have code of its own, so it runs as the plugin's until then."""
        try:
            self._raised(error)
        finally:
            self._marker.leave(began)
            del error  # as below

    def _left_out(self) -> None:
        if self._deny:
            raise unavailable(self.instance, "is not available")

    def _raised(self, error: Exception) -> None:
        if not (self._refuses and isinstance(error, Reject)):
            self.failed(error)
            return
        try:
            refusal = results.reject(error)
        except Exception as fault:  # noqa: BLE001 - a subclass of an author's may do anything
            fault.__cause__ = error  # where it was raised is what its author has to know
            self.failed(fault)
            return
        try:
            raise refusal
        finally:
            del error, refusal  # their traceback holds this frame: every refusal would be left to the garbage collector

    def failed(self, error: Exception) -> None:
        """It has failed, or its result is of no use. Raises Reject if that is the request's end."""
        self.instance.went_wrong(self._name, error)
        if self._deny:
            raise unavailable(self.instance, "did not answer in time" if isinstance(error, TimeoutError) else "failed")


def unavailable(instance: Instance, what: str) -> UnavailableError:
    """A guard that cannot do its work lets nobody pass: clients learn that it failed, the log says how."""
    message = f'the {instance.kind} plugin "{instance.name}" {what}'
    return UnavailableError(503, message, code=f"{instance.kind}_unavailable", retry_after_s=RETRY_S)


def overrides(plugin: Plugin[Any] | None, base: type[Plugin[Any]], name: str) -> bool:
    """Whether the plugin has a method of its own in place of its kind's."""
    return plugin is not None and getattr(type(plugin), name, None) is not getattr(base, name)
