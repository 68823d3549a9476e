"""Whether a class is the plugin that it says it is: what its kind requires, and what its methods take."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, ForwardRef

from plugin_sdk import Auth, Config, Device, Endpoint, Filter, Interface, Plugin, Route, Stats
from plugin_sdk.kinds import given_to
from sidecar.core.names import an, did_you_mean, listed
from sidecar.mechanism.places import Path as Place

KINDS: tuple[type[Plugin[Any]], ...] = (Device, Interface, Auth, Route, Filter, Stats)

# For each kind: the methods that the sidecar calls, with what they take; those that must be there are in _REQUIRED.
_TAKES: dict[str, dict[str, tuple[str, ...]]] = {
    "device": {"probe": ()},
    "interface": {
        "ready": ("upstream",),
        "alive": ("upstream",),
        "validate": ("request",),
        "usage": ("tail", "streamed"),
        "error": ("status", "code", "message", "param"),
        "error_event": ("error",),
    },
    "auth": {"authenticate": ("request",)},
    "route": {"resolve": ("request", "targets"), "models": (), "finished": ("target", "outcome")},
    "filter": {
        "on_request": ("exchange",),
        "on_response": ("exchange",),
        "on_chunk": ("exchange", "chunk"),
        "on_event": ("exchange", "event"),
        "on_end": ("exchange", "outcome"),
    },
    "stats": {
        "record": ("outcome",),
        "record_many": ("outcomes",),
        "loaded": ("servers",),
        "report": ("query",),
    },
}
_LIFE: dict[str, tuple[str, ...]] = {"open": (), "close": ()}
_OWN = ("/-/", "/v1/models/", "/upstream/")  # the control API, the list of models, and what is passed through
_PATH = re.compile(r"/[\x21-\x22\x24\x26-\x3e\x40-\x7e]*")
_REQUIRED = {"device": "probe", "auth": "authenticate", "route": "resolve", "stats": "record"}
ON_LOOP = ("validate", "usage", "error", "error_event", "finished")  # plain, called between two turns of the loop


class PluginFault(Exception):
    """A plugin that cannot be used. key: the part of its table that is to blame. file, line: or else the author's code.

    trace: the traceback, if code of the author's has raised something.
    """

    def __init__(self, message: str, key: Place = (), *, file: str = "", line: int = 0, trace: str = "") -> None:
        super().__init__(message)
        self.key = key
        self.file = file
        self.line = line
        self.trace = trace


def kind_of(cls: type[Plugin[Any]]) -> type[Plugin[Any]]:
    """The kind that a class is of."""
    return next(kind for kind in KINDS if issubclass(cls, kind))


def methods_of(cls: type[Plugin[Any]]) -> list[str]:
    """The methods of its own that the sidecar calls, in the order in which it does."""
    return [name for name in ("open", *_TAKES[cls.kind], "close") if _overrides(cls, name)]


def faults_of(cls: type[Plugin[Any]]) -> Iterator[str]:
    """What the class lacks, and what it has wrong."""
    base = kind_of(cls)
    if sum(issubclass(cls, kind) for kind in KINDS) > 1:
        yield f"{cls.__name__} is of several kinds: make a class for each"
        return
    takes = _TAKES[cls.kind]
    own = [name for name in vars(cls) if not name.startswith("_") and not hasattr(base, name)]
    required = _REQUIRED.get(cls.kind)
    if required is not None and not _overrides(cls, required):
        hint = did_you_mean_instead(required, own)
        yield f"{cls.__name__} does not define {required}, which {an(cls.kind)} plugin must{hint}"
    yield from _settings(cls)
    yield from _constructor(cls)
    if cls.kind == "filter":
        yield from _filter(cls, own)
    if cls.kind in ("device", "interface"):
        yield from _provider(cls)
    for name, arguments in {**takes, **_LIFE}.items():
        if _overrides(cls, name):
            yield from _method(cls, name, arguments)


def did_you_mean_instead(wanted: str, own: list[str]) -> str:
    """A hint at what was probably meant to be the method that is missing."""
    found = [name for name in own if did_you_mean(name, (wanted,))]
    return f'; is "{found[0]}" meant to be it?' if found else ""


def _overrides(cls: type[Plugin[Any]], name: str) -> bool:
    return getattr(cls, name, None) is not getattr(kind_of(cls), name)


def _settings(cls: type[Plugin[Any]]) -> Iterator[str]:
    given = given_to(cls)
    if isinstance(given, ForwardRef):
        name = given.__forward_arg__
        yield f'{cls.__name__} names its settings in quotes, "{name}": write the class {name} above it, and no quotes'
    elif given is not None and not (isinstance(given, type) and issubclass(given, Config)):
        name = getattr(given, "__name__", str(given))
        yield f"the settings of {cls.__name__}, {name}, are no Config: derive the class from plugin_sdk.Config"


def _constructor(cls: type[Plugin[Any]]) -> Iterator[str]:
    if cls.__init__ is Plugin.__init__:
        return
    signature = inspect.signature(cls.__init__)
    try:
        signature.bind("self", "config", name="name", services="services")
    except TypeError:
        how = "let it take *args and **kwargs, and hand them to super().__init__"
        yield f"{cls.__name__}.__init__ takes {signature}, and is called with (config, name=..., services=...): {how}"


def _filter(cls: type[Plugin[Any]], own: list[str]) -> Iterator[str]:
    hooks = _TAKES["filter"]
    misspelt = [name for name in own if name.startswith("on_") and callable(getattr(cls, name))]
    for name in misspelt:
        yield f"{cls.__name__}.{name} is no hook{did_you_mean(name, hooks)}; hooks: {listed(hooks)}"
    overridden = [name for name in hooks if _overrides(cls, name)]
    if not overridden and not misspelt:
        yield f"{cls.__name__} does not define any hook, so it would do nothing; hooks: {listed(hooks)}"
    if {"on_chunk", "on_event"} <= set(overridden):
        yield f"{cls.__name__} defines on_chunk and on_event: a filter sees either bytes or events"


def _provider(cls: type[Plugin[Any]]) -> Iterator[str]:
    provides = getattr(cls, "provides", "")
    if not isinstance(provides, str) or not provides:
        what = "the class of its devices" if cls.kind == "device" else "the mode"
        yield f'{cls.__name__} does not say what it provides: provides = "NAME", {what} in manifests'
    if cls.kind != "interface":
        return
    endpoints = getattr(cls, "endpoints", ())
    if not endpoints:
        yield f"{cls.__name__} does not define endpoints, which an interface plugin must"
    elif not isinstance(endpoints, tuple) or not all(isinstance(one, Endpoint) for one in endpoints):
        yield f"{cls.__name__}.endpoints must be a tuple of Endpoint: (Endpoint(PATH, OPERATION),)"
    else:
        for one in endpoints:
            if why := _no_endpoint(one):
                yield f"{cls.__name__}.endpoints: {one.path!r} {why}"


def _no_endpoint(one: Endpoint) -> str:
    """Why an endpoint cannot be had; "" if it can."""
    if not all(isinstance(text, str) and text for text in (one.path, one.operation, one.method)):
        return "is no endpoint: path, operation and method must be text"
    if not _PATH.fullmatch(one.path):
        return 'is no path that can be asked for: it begins with "/", and has no spaces, %, ? and #'
    if one.method != one.method.upper():
        return f'has the method {one.method!r}: methods are in capitals, as in "POST"'
    if f"{one.path}/".startswith(_OWN):
        return "belongs to the sidecar itself, as do all paths below /-/, /v1/models/ and /upstream/"
    return ""


def _method(cls: type[Plugin[Any]], name: str, arguments: tuple[str, ...]) -> Iterator[str]:
    written = inspect.getattr_static(cls, name)
    function = getattr(cls, name)
    shown = f"{cls.__name__}.{name}"
    if not callable(function):
        yield f"{shown} is no method"
        return
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        yield f"{shown} is a generator: return what it gives instead of yielding"
        return
    if name in _LIFE and not inspect.iscoroutinefunction(function):
        yield f"{shown} must be `async def`"
    if name in ON_LOOP and inspect.iscoroutinefunction(function):
        yield f"{shown} must be a plain `def`: it is called on the event loop and must not wait"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # of a builtin or the like, which does not tell
    given = arguments if isinstance(written, staticmethod | classmethod) else ("self", *arguments)
    try:
        signature.bind(*given)
    except TypeError:
        yield f"{shown} takes {signature}, and is called with ({', '.join(given)})"
