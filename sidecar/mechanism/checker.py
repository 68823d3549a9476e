"""Reads plain data into structs; reports every fault, not only the first: unknown keys, missing ones, wrong types."""

from __future__ import annotations

import functools
import re
from typing import Any, Protocol, TypeVar, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo

from plugin_sdk.config import Config, convert
from sidecar.core.manifest import Table
from sidecar.core.names import did_you_mean, near
from sidecar.mechanism.places import Path, Unshown

S = TypeVar("S", bound=msgspec.Struct)


class Report(Protocol):
    """Takes a fault. meant: a key that was probably meant, of which it need not be said as well that it is missing."""

    def __call__(self, path: Path, message: str, meant: Path | None = None) -> None: ...


_FAULTY = object()
_NEVER = object()

_AT = re.compile(r" - at `\$(.*)`$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")


def read(raw: Any, kind: type[S], path: Path, report: Report, *, unshown: bool = False) -> S | None:
    """`raw` as a `kind`; every fault is reported as (path, message).

    unshown: the keys of tables without fixed keys may be secrets, as they always may be in a plugin's Config.

    What is faulty gets its default, or an empty value, so that rules can look at the rest and find what else is wrong.
    None if `raw` is no table at all.
    """
    if not isinstance(raw, dict):
        report(path, f"expected a table, got {_type_name(raw)}")
        return None
    sound = True
    unshown = unshown or issubclass(kind, Config)

    def tell(path: Path, message: str, meant: Path | None = None) -> None:
        nonlocal sound
        sound = False
        report(path, message, meant)

    fields = _fields(kind)
    misspelt = set()
    for key in raw.keys() - fields.keys():
        meant = next(((*path, name) for name in near(key, fields, most=1)), None)
        tell((*path, key), f'unknown key "{key}"{did_you_mean(key, fields)}', meant)
        misspelt.add(meant)
    values: dict[str, Any] = {}
    for key, field in fields.items():
        if key in raw:
            value = _value(raw[key], field.type, (*path, key), tell, unshown)
        elif field.required:
            if (*path, key) not in misspelt:
                tell((*path, key), f"is missing: expected {_type_wanted(field.type)}")
            value = _FAULTY
        else:
            continue
        if value is not _FAULTY or field.required:
            values[field.name] = _empty(field.type) if value is _FAULTY else value
    return _build(kind, values, path, report if sound else None)


def _fields(kind: type[msgspec.Struct]) -> dict[str, FieldInfo]:
    """By key. Of the manifests' own tables once and for all: to find them compiles each annotation anew."""
    return _fields_of_table(kind) if issubclass(kind, Table) else _looked_up(kind)


@functools.cache
def _fields_of_table(kind: type[Table]) -> dict[str, FieldInfo]:
    return _looked_up(kind)  # not those of plugins, whose classes have to go when they are loaded anew


def _looked_up(kind: type[msgspec.Struct]) -> dict[str, FieldInfo]:
    return {field.encode_name: field for field in msgspec.structs.fields(kind)}


def _build(kind: type[S], values: dict[str, Any], path: Path, report: Report | None) -> S | None:
    """The struct. report: None if some values are stand-ins, about which its own checks need not speak."""
    try:
        return kind(**values)
    except Exception as error:  # noqa: BLE001 - the struct's own __post_init__, which may be a plugin author's
        if report is not None:
            report(path, str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")
        return None


def _value(raw: Any, kind: Any, path: Path, report: Report, unshown: bool) -> Any:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        value = read(raw, kind, path, report, unshown=unshown)
        return _FAULTY if value is None else value
    if get_origin(kind) is tuple and isinstance(item := get_args(kind)[0], type) and issubclass(item, msgspec.Struct):
        return _tables(raw, item, path, report, unshown)
    if get_origin(kind) is dict and isinstance(raw, dict):
        inner, named = get_args(kind)[1], Unshown if unshown else str
        values = {key: _value(value, inner, (*path, named(key)), report, unshown) for key, value in raw.items()}
        return _FAULTY if _FAULTY in values.values() else values
    try:
        return convert(raw, kind)
    except NotImplementedError as error:  # a type that no TOML can be read into
        report(path, str(error))
        return _FAULTY
    except msgspec.ValidationError as error:
        message, inner = _explain(str(error))
        choices = [f'"{one}"' for one in get_args(kind) if isinstance(one, str)]
        report((*path, *inner), f"{message}; expected {' or '.join(choices)}" if choices else message)
        return _FAULTY


def _empty(kind: Any) -> Any:
    """A value of the type that says nothing, in place of one that is faulty."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = {field.name: _empty(field.type) for field in _fields(kind).values() if field.required}
        return _build(kind, fields, (), None)
    candidates: tuple[Any, ...] = ("", (), {}, 0, False)
    for candidate in candidates:
        try:
            return convert(candidate, kind)
        except (msgspec.ValidationError, NotImplementedError):
            continue
    return None


def _type_wanted(kind: Any) -> str:
    """What should stand there, in msgspec's own words for a value that never fits: `int | table`."""
    if get_origin(kind) is tuple and get_args(kind)[0] is not str:
        return "an array of tables"
    try:
        convert(_NEVER, kind)
    except (msgspec.ValidationError, NotImplementedError) as error:
        return _explain(str(error))[0].removeprefix("expected ").partition(",")[0]
    return "a value"


def _tables(raw: Any, kind: type[msgspec.Struct], path: Path, report: Report, unshown: bool) -> Any:
    if not isinstance(raw, list):
        report(path, f"expected an array of tables ([[...{path[-1]}]]), got {_type_name(raw)}")
        return _FAULTY
    values = [read(item, kind, (*path, index), report, unshown=unshown) for index, item in enumerate(raw)]
    return tuple(value for value in values if value is not None)


def _explain(text: str) -> tuple[str, Path]:
    """msgspec's message without its markup, and the path inside the value at which it occurred."""
    match = _AT.search(text)
    inner: Path = ()
    if match:
        steps = _STEP.findall(match.group(1))
        inner = tuple(int(index) if index else key for key, index in steps if index != "..." and key != "...")
        text = text[: match.start()]
    plain = text.replace("`", "").replace("Expected", "expected", 1).replace(" | null", "").replace("object", "table")
    return plain[:1].lower() + plain[1:], inner


def _type_name(value: Any) -> str:
    names = {dict: "a table", list: "an array", str: "text", bool: "a boolean", int: "an integer", float: "a float"}
    return names.get(type(value), type(value).__name__)
