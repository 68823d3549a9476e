"""What `sidecar.mechanism.rules` says of manifests, in the words of JSON Schema; the tests hold the two together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from sidecar.core.names import listed
from sidecar.mechanism.placeholders import AT_LOAD, AT_START
from sidecar.mechanism.plugins import STRATEGIES

Node = dict[str, Any]


class Known(Protocol):
    """The names that there are; see `sidecar.mechanism.schema.Names`."""

    @property
    def modes(self) -> tuple[str, ...]: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def devices(self) -> tuple[str, ...]: ...
    @property
    def chain(self) -> tuple[str, ...]: ...
    @property
    def strict(self) -> bool: ...


class Rules(msgspec.Struct, frozen=True):
    """Of one table: by key, and as a whole."""

    keys: dict[str, Node]
    table: Node = {}


_FULL: Node = {"type": "string", "minLength": 1}
LABELS: Node = {
    "propertyNames": {"pattern": r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"},
    "additionalProperties": {"anyOf": [_FULL, {"type": "array", "minItems": 1, "items": _FULL}]},
}
MODEL_NAME: Node = {"pattern": r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$"}

SECRET_PLACE: Node = {"minProperties": 1, "maxProperties": 1}

ON_ERROR: dict[str, Node] = {
    "auth": {"on_error": {"enum": ["deny"]}},
    "stats": {"on_error": {"enum": ["skip", "disable"]}},
    "device": {"on_error": {"enum": ["skip"]}},
    "interface": {"on_error": {"enum": ["skip"]}},
}

_PORT = r"0*(?:6553[0-5]|655[0-2]\d|65[0-4]\d{2}|6[0-4]\d{3}|[1-5]?\d{1,4})"
_PORTS = r"^\s*\d+\s*-\s*\d+\s*$"
_ORIGIN = r"^(?:\*|[a-z][a-z0-9+.-]*://[^\s/?#@A-Z]+)$"
_UUID = r"^(?:GPU|MIG)-[0-9a-fA-F-]+"
_IMPORT = r"^(?:[^:]+:[^\W\d]\w*|entry:.+)$"
_URL = r"^(?:[Hh][Tt][Tt][Pp][Ss]?://[^\s/?#@]+(?:/[^\s?#]*)?|unix:/[^\n]*|[^\s]*\{[^\s]*)$"
_KNOWN = "|".join(name.replace(".", r"\.") for name in (*AT_LOAD, *AT_START))
_NO_OTHER = rf"^(?![\s\S]*\{{(?!(?:{_KNOWN}|env\.[A-Za-z0-9_.]*)\}})[A-Za-z_][A-Za-z0-9_.]*\}})"
_HAS_PORT = {"type": "string", "pattern": r"\{port\}"}
_NO_TIME = r"^(?:0+(?:\.0+)?(?:ms|s|m|h|d))+$"

_NOT_WITH_URL: Node = {
    "required_devices": {"maxItems": 0},
    "memory_mb": {"enum": [0, {}]},
    "env": {"maxProperties": 0},
    "cwd": {"maxLength": 0},
    "load_timeout": {"pattern": _NO_TIME},
    "exclusive_start": {"const": False},
    "foreign_listener": {"const": False},
}
_TO_START: Node = {
    "required": ["command", "required_devices", "memory_mb"],
    "properties": {
        "command": {"minItems": 1},
        "required_devices": {"minItems": 1},
        "memory_mb": {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "object", "minProperties": 1, "additionalProperties": {"minimum": 1}},
            ]
        },
        "weight": {"const": 1},
        "load_timeout": {"not": {"pattern": _NO_TIME}},
    },
    "anyOf": [  # {port} stands somewhere
        {"properties": {"command": {"contains": _HAS_PORT}}},
        {"required": ["env"], "properties": {"env": {"not": {"additionalProperties": {"not": _HAS_PORT}}}}},
        {"required": ["cwd"], "properties": {"cwd": _HAS_PORT}},
    ],
}
_NO_URL: Node = {"properties": {"url": {"maxLength": 0}}}
_RUNS_ALREADY: Node = {
    "required": ["url"],
    "properties": {"url": {"minLength": 1, "pattern": _URL}, "command": {"maxItems": 0}, **_NOT_WITH_URL},
}


def rules(known: Known) -> dict[str, Rules]:
    """By the name of the table's type."""
    chain = {"items": _open(known.chain, "a plugin", known), "uniqueItems": True}
    mode = {"enum": list(known.modes)}
    filled = {"pattern": _NO_OTHER}
    has_url = {"required": ["url"], "properties": {"url": {"minLength": 1}}}
    return {
        "Settings": Rules(
            keys={
                "listen": {"pattern": rf"^.+:{_PORT}$"},
                "ports": {"pattern": _PORTS},
                "headroom_mb": {"minimum": 0},
                "chain": chain,
                "cors_origins": {"items": {"type": "string", "pattern": _ORIGIN}},
            }
        ),
        "PluginDeclaration": Rules(keys={"disable_after": {"minimum": 1}}),
        "DeviceDeclaration": Rules(keys={"memory_mb": {"minimum": 0}}, table={"required": ["match"]}),
        "DeviceMatch": Rules(keys={"class": {"enum": list(known.classes)}}, table={"minProperties": 1}),
        "Model": Rules(
            keys={
                "mode": {
                    "anyOf": [{"type": "string", **mode}, {"type": "array", "minItems": 1, "items": mode}],
                    "examples": list(known.modes),
                },
                "variants": {"minItems": 1},
                "max_queue": {"minimum": 1},
                "chain": chain,
                "nodes": LABELS,
                "balance": {"enum": ["", *STRATEGIES]},
            }
        ),
        "Variant": Rules(
            keys={
                "required_devices": {"items": _devices(known)},
                "command": {"items": {"type": "string", **filled}},
                "env": {"propertyNames": {"pattern": "^[^=]+$"}, "additionalProperties": {"type": "string", **filled}},
                "cwd": filled,
                "url": filled,
                "weight": {"minimum": 1},
                "nodes": LABELS,
            },
            # By what is there, so that a fault is told at its key; "neither or both" would be told of the whole table.
            table={"if": has_url, "then": _RUNS_ALREADY, "else": {"allOf": [_TO_START, _NO_URL]}},
        ),
    }


def import_path(known: Iterable[str]) -> Node:
    """What `import` may say: these are offered, others of the same form pass."""
    return {"anyOf": [{"enum": list(known)}, {"type": "string", "pattern": _IMPORT}]}


def merged(node: Node, rule: Node) -> Node:
    """A key's own schema with a rule; where both speak of the same, the rule does."""
    replaces = {"anyOf": ("type",)} if "anyOf" in rule else {}
    dropped = {key for keys in replaces.values() for key in keys}
    return {key: value for key, value in node.items() if key not in dropped} | rule


def _devices(known: Known) -> Node:
    names = [*known.classes, *known.devices]
    if not known.strict:
        return {"anyOf": [{"enum": names}, {"type": "string"}]}
    classes = "|".join(map(_escaped, known.classes))
    indexed = {"type": "string", "pattern": rf"^(?:{classes}):\d+$"}
    return {"anyOf": [{"enum": names}, indexed, {"type": "string", "pattern": _UUID}]}


def _open(names: tuple[str, ...], what: str, known: Known) -> Node:
    """Names that are offered; whether there are others, manifests say."""
    if known.strict:
        return {"enum": list(names)}
    return {"anyOf": [{"enum": list(names)}, {"type": "string"}], "description": f"{what}: {listed(names)}, or another"}


def _escaped(name: str) -> str:
    return "".join(f"\\{char}" if char in ".+*?()[]{}|^$\\/-" else char for char in name)
