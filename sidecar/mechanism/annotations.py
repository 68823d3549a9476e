"""Whether a plugin's methods say of themselves what they are called with, and what is made of their results.

For `sidecar plugin check` alone: an annotation changes nothing at run time.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Union, get_args, get_origin

from plugin_sdk import Plugin
from sidecar.mechanism.fulfil import PluginFault, kind_of, methods_of

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def doubts_of(cls: type[Plugin[Any]]) -> Iterator[PluginFault]:
    """What is annotated otherwise than the kind has it, with the lines."""
    kind = kind_of(cls)
    for name in methods_of(cls):
        written = inspect.getattr_static(cls, name)
        function = inspect.unwrap(getattr(written, "__func__", written))
        if not inspect.isfunction(function):
            continue  # a builtin or the like, which says nothing
        taken = [one.name for one in inspect.signature(function).parameters.values() if one.kind in _BY_POSITION]
        taken = taken if isinstance(written, staticmethod) else taken[1:]
        for doubt in _differences(taken, _hints(function), _hints(getattr(kind, name))):
            code = function.__code__
            yield PluginFault(f"{cls.__name__}.{name} {doubt}", file=code.co_filename, line=code.co_firstlineno)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations, as far as they can be read: names that only type checkers know cannot."""
    try:
        return typing.get_type_hints(function)
    except Exception:  # noqa: BLE001 - they are an author's expressions, which may do anything; then nothing is said
        return {}


def _differences(taken: list[str], said: dict[str, Any], meant: dict[str, Any]) -> Iterator[str]:
    given = [name for name in meant if name != "return"]
    for name, wanted in zip(taken, given, strict=False):
        if name in said and not _classes(meant[wanted]) <= _classes(said[name]):
            yield f"takes {name}: {_shown(said[name])}, and is given {_shown(meant[wanted])}"
    if "return" in said and not _classes(said["return"]) <= _classes(meant["return"]):
        yield f"returns {_shown(said['return'])}, and should return {_shown(_result(meant['return']))}"


class _Classes:
    """The classes that values of a type are of. any: it may be whatever there is."""

    def __init__(self, found: tuple[type, ...], *, any_: bool = False) -> None:
        self._found = found
        self._any = any_

    def __le__(self, other: _Classes) -> bool:
        """Whether all of them are among the others, as far as that can be told."""
        try:
            return self._any or other._any or all(issubclass(one, other._found) for one in self._found)
        except TypeError:  # a protocol, which only type checkers can compare
            return True


def _classes(hint: Any) -> _Classes:
    found: list[type] = []
    for one in _members(hint):
        kind = get_origin(one) or one
        if not isinstance(kind, type) or kind in (object, Any):
            return _Classes((), any_=True)
        found.append(kind)
    return _Classes(tuple(found))


def _members(hint: Any) -> Iterator[Any]:
    """The types of a union, and those that are awaited."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        for one in get_args(hint):
            yield from _members(one)
    elif origin in (Awaitable, Coroutine):
        yield from _members(get_args(hint)[-1])
    else:
        yield type(None) if hint is None else hint


def _result(hint: Any) -> Any:
    """The type of a result without what is awaited, which says the same."""
    return Union[tuple(_members(hint))]  # noqa: UP007 - made at run time


def _shown(hint: Any) -> str:
    parts = dict.fromkeys(_name(one) for one in _members(hint))
    return " | ".join(parts)


def _name(hint: Any) -> str:
    if hint is type(None):
        return "None"
    inner = ", ".join("..." if one is Ellipsis else _name(one) for one in get_args(hint))
    name = getattr(get_origin(hint) or hint, "__name__", str(hint))
    return f"{name}[{inner}]" if inner else name
