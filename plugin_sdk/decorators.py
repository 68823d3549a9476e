"""Plugins of one function: a decorator makes the class that the manifest names.

The function may be plain (it runs in threads of the plugin's own), `async def`, or have `@inline` below the decorator.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

from plugin_sdk.kinds import Auth, Device, Filter, Plugin, Route, Stats
from plugin_sdk.messages import DeviceStatus, Event, Exchange, Headers, Outcome, Principal, Request, Response, Target

T = TypeVar("T")
P = TypeVar("P", bound=Plugin[Any])

Later: TypeAlias = T | Awaitable[T]  # what a plain function returns, or an `async def`


def device(
    provides: str, *, visibility_env: str = ""
) -> Callable[[Callable[[], Later[DeviceStatus | list[DeviceStatus]]]], type[Device]]:
    """A device class of a function that returns a DeviceStatus or a list of them."""
    return lambda function: _made(Device, "probe", function, provides=provides, visibility_env=visibility_env)


def auth(function: Callable[[Request], Later[Principal]]) -> type[Auth]:
    """An auth plugin of a function that takes a Request and returns a Principal."""
    return _made(Auth, "authenticate", function)


def route(function: Callable[[Request, tuple[Target, ...]], Later[Target | None]]) -> type[Route]:
    """A route plugin of a function that takes a Request and the targets, and returns one of them."""
    return _made(Route, "resolve", function)


def stats(function: Callable[[Outcome], Later[None]]) -> type[Stats]:
    """A stats plugin of a function that takes an Outcome."""
    return _made(Stats, "record", function)


def on_request(function: Callable[[Exchange], Later[Request | Response | None]]) -> type[Filter]:
    """A filter of a function that takes an Exchange before anything is sent (see Filter.on_request)."""
    return _made(Filter, "on_request", function)


def on_response(function: Callable[[Exchange], Later[Response | Headers | None]]) -> type[Filter]:
    """A filter of a function that takes an Exchange when the head of the answer has come."""
    return _made(Filter, "on_response", function)


def on_chunk(function: Callable[[Exchange, bytes], Later[bytes | None]]) -> type[Filter]:
    """A filter of a function that takes an Exchange and a piece of the body."""
    return _made(Filter, "on_chunk", function)


def on_event(function: Callable[[Exchange, Event], Later[Event | list[Event] | None]]) -> type[Filter]:
    """A filter of a function that takes an Exchange and an Event."""
    return _made(Filter, "on_event", function)


def on_end(function: Callable[[Exchange, Outcome], Later[None]]) -> type[Filter]:
    """A filter of a function that takes an Exchange and its Outcome."""
    return _made(Filter, "on_end", function)


def _made(base: type[P], method: str, function: Callable[..., Any], **attributes: Any) -> type[P]:
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
