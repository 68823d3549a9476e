"""Plugins of one function: a decorator makes the class that the manifest names.

The function may be plain (it runs in threads of the plugin's own), `async def`, or have `@inline` below the decorator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from plugin_sdk.kinds import Auth, Device, Filter, Plugin, Route, Stats

P = TypeVar("P", bound=Plugin[Any])

Function = Callable[..., Any]


def device(provides: str, *, visibility_env: str = "") -> Callable[[Function], type[Device]]:
    """A device class of a function that returns a DeviceStatus or a list of them."""
    return lambda function: _made(Device, "probe", function, provides=provides, visibility_env=visibility_env)


def auth(function: Function) -> type[Auth]:
    """An auth plugin of a function that takes a Request and returns a Principal."""
    return _made(Auth, "authenticate", function)


def route(function: Function) -> type[Route]:
    """A route plugin of a function that takes a Request and the targets, and returns one of them."""
    return _made(Route, "resolve", function)


def stats(function: Function) -> type[Stats]:
    """A stats plugin of a function that takes an Outcome."""
    return _made(Stats, "record", function)


def on_request(function: Function) -> type[Filter]:
    """A filter of a function that takes an Exchange before anything is sent (see Filter.on_request)."""
    return _made(Filter, "on_request", function)


def on_response(function: Function) -> type[Filter]:
    """A filter of a function that takes an Exchange when the head of the answer has come."""
    return _made(Filter, "on_response", function)


def on_chunk(function: Function) -> type[Filter]:
    """A filter of a function that takes an Exchange and a piece of the body."""
    return _made(Filter, "on_chunk", function)


def on_event(function: Function) -> type[Filter]:
    """A filter of a function that takes an Exchange and an Event."""
    return _made(Filter, "on_event", function)


def on_end(function: Function) -> type[Filter]:
    """A filter of a function that takes an Exchange and its Outcome."""
    return _made(Filter, "on_end", function)


def _made(base: type[P], method: str, function: Function, **attributes: Any) -> type[P]:
    """A class whose `method` is the function."""
    body = {
        **attributes,
        method: staticmethod(function),
        "__doc__": function.__doc__,
        "__module__": function.__module__,
        "__qualname__": function.__qualname__,
    }
    made: type[P] = type(function.__name__, (base,), body)
    return made
