"""Typed settings: what a plugin's `config = { ... }` table may hold, and how text becomes a value.

A plugin names its settings as a `Config` struct; unknown keys and wrong types are errors at load. `Duration`,
`ByteSize` and `Secret` are the three types that TOML has no literal for. `convert` is the one place that reads them.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, cast, dataclass_transform, get_args, get_origin

import msgspec

T = TypeVar("T")

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DURATION_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_SIZE_SCHEMA = r"^\s*\d+(\.\d+)?\s*([KMGTkmgt][iI]?)?[Bb]?\s*$"  # _SIZE in the dialect of JSON Schema
_SIZE_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class _ConfigMeta(msgspec.StructMeta):
    """Tells type checkers that a Config is frozen without every subclass having to say so."""


class Config(msgspec.Struct, metaclass=_ConfigMeta, frozen=True, forbid_unknown_fields=True):
    """Base of a plugin's settings. Fields without a default are required; unknown keys are refused."""


class Duration(float):
    """Seconds, written in a manifest as `"250ms"`, `"30s"`, `"1h30m"`, `"2d"`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read a duration. Raises ValueError if `text` is not a sum of number-unit pairs."""
        matches = list(_DURATION.finditer(text))
        if not matches or "".join(m.group(0) for m in matches) != text:
            raise ValueError(f'expected a duration such as "30s", "10m" or "1h30m", got {text!r}')
        return cls(sum(float(m.group(1)) * _DURATION_S[m.group(2)] for m in matches))


class ByteSize(int):
    """Bytes, written in a manifest as `"64MB"` (10^6) or `"64MiB"` (2^20)."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> ByteSize:
        """Read a size. Raises ValueError if `text` is not a number with an optional unit."""
        match = _SIZE.fullmatch(text.strip())
        if match is None:
            raise ValueError(f'expected a size such as "64MB" or "1GiB", got {text!r}')
        unit = (match.group(2) or "").upper()
        base = 1024 if unit.endswith("I") else 1000
        try:
            return cls(float(match.group(1)) * base ** _SIZE_POWER[unit.rstrip("I")])
        except OverflowError:
            raise ValueError(f'expected a size such as "64MB" or "1GiB", got {text!r}') from None


class Secret:
    """A value that must not be shown: `{ env = "NAME" }` or `{ file = "/run/secrets/name" }` in a manifest.

    `reveal()` gives the text; `repr` and `str` never do.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    @classmethod
    def resolve(cls, source: Any) -> Secret:
        """Read the secret that `source` names. Raises ValueError with the remedy if it is not there."""
        if not isinstance(source, dict) or len(source) != 1 or next(iter(source)) not in ("env", "file"):
            raise ValueError('expected { env = "NAME" } or { file = "PATH" }: a secret never stands in a manifest')
        kind, where = next(iter(source.items()))
        if not isinstance(where, str) or not where:
            raise ValueError(f"expected {kind} to be a non-empty string")
        try:
            return cls(_from_env(where) if kind == "env" else _from_file(where))
        except ValueError as error:
            if not _may_be_absent.get():
                raise
            return AbsentSecret(f"{kind} {where}", str(error))


class AbsentSecret(Secret):
    """A secret that this machine does not have, and need not. problem: why. What it reveals nobody can guess."""

    __slots__ = ("problem",)

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(f"{_NOBODY_KNOWS} {source}")
        self.problem = problem


_may_be_absent: ContextVar[bool] = ContextVar("secrets_may_be_absent", default=False)
_NOBODY_KNOWS = secrets.token_hex(32)


@contextmanager
def secrets_may_be_absent() -> Iterator[None]:
    """Inside, manifests may be for another machine: secrets that this one does not have are read as `AbsentSecret`."""
    token = _may_be_absent.set(True)
    try:
        yield
    finally:
        _may_be_absent.reset(token)


def convert(value: Any, kind: type[T]) -> T:
    """Turn plain TOML data into `kind`. Raises msgspec.ValidationError, whose text holds the path as `$.a.b`."""
    return msgspec.convert(value, kind, strict=True, dec_hook=_decode)


def schema(settings: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a plugin's settings, or of another table, as they are written in a manifest.

    Raises TypeError for a type that no manifest can hold.
    """
    return msgspec.json.schema(_as_written(settings, {}), schema_hook=_describe)


def _as_written(kind: Any, done: dict[type, Any]) -> Any:
    """The type with all defaults in it as a manifest would have them; msgspec cannot write those of our own types."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if kind not in done:
            done[kind] = dict[str, Any]  # what a table that has itself in it is told to be, further down
            fields = [_field(field, done) for field in msgspec.structs.fields(kind)]
            done[kind] = msgspec.defstruct(
                kind.__name__,
                fields,
                namespace={"__doc__": kind.__doc__},
                rename={field.name: field.encode_name for field in msgspec.structs.fields(kind)},
                forbid_unknown_fields=True,
                kw_only=True,
            )
        return done[kind]
    if kind is Decimal:
        return float | str  # TOML has no literal for them; a float is taken as it is written
    inner = tuple(_as_written(one, done) for one in get_args(kind))
    if not inner or inner == get_args(kind):
        return kind
    origin = get_origin(kind)
    return Union[inner] if origin in (UnionType, Union) else cast(Any, origin)[inner]  # noqa: UP007 - made at run time


def _field(field: msgspec.structs.FieldInfo, done: dict[type, Any]) -> tuple[str, Any, Any]:
    default = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    if default is not msgspec.NODEFAULT:
        default = msgspec.to_builtins(default, enc_hook=_write, str_keys=True)
    if isinstance(default, dict) and default:  # not shown: a table within tells its own defaults
        return field.name, _as_written(field.type, done), msgspec.field(default_factory=lambda: default)
    default = tuple(default) if isinstance(default, list) else default
    return field.name, _as_written(field.type, done), msgspec.field(default=default)


def _write(value: Any) -> Any:
    if isinstance(value, Duration):
        return f"{value:f}".rstrip("0").rstrip(".") + "s"
    if isinstance(value, ByteSize):
        return f"{int(value)}B"
    return str(value)  # a Secret, which does not tell


def _describe(kind: type) -> dict[str, Any]:
    if issubclass(kind, Duration):
        return {"type": "string", "pattern": f"^({_DURATION.pattern})+$", "examples": ["30s", "1h30m"]}
    if issubclass(kind, ByteSize):
        return {"type": "string", "pattern": _SIZE_SCHEMA, "examples": ["64MB", "1GiB"]}
    if issubclass(kind, Secret):
        sources = [{"required": [name], "properties": {name: {"type": "string"}}} for name in ("env", "file")]
        either = [source | {"additionalProperties": False} for source in sources]
        return {"type": "object", "oneOf": either, "examples": [{"env": "NAME"}, {"file": "/run/secrets/name"}]}
    raise NotImplementedError(f"{kind} cannot stand in a Config")


def _decode(kind: type, value: Any) -> Any:
    if issubclass(kind, Duration | ByteSize):
        if isinstance(value, kind):
            return value
        if isinstance(value, str):
            return kind.parse(value)
        example = '"10m"' if issubclass(kind, Duration) else '"64MB"'
        raise ValueError(f"expected text with a unit, such as {example}, got {value!r}")
    if issubclass(kind, Secret):
        return value if isinstance(value, Secret) else Secret.resolve(value)
    raise NotImplementedError(f"{kind} cannot stand in a Config")


def _from_env(name: str) -> str:
    if not _VARIABLE.fullmatch(name):  # and not told what stands there instead: it may be the secret itself
        raise ValueError('expected env to name a variable (letters, digits, "_"): a secret never stands in a manifest')
    value = os.environ.get(name)
    if not value:
        raise ValueError(f"environment variable {name} is not set")
    return value


def _from_file(path: str) -> str:
    try:
        value = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError, RuntimeError) as error:  # RuntimeError: "~nobody" has no home
        raise ValueError(f"secret file {path} cannot be read: {error}") from error
    if not value:
        raise ValueError(f"secret file {path} is empty")
    return value
