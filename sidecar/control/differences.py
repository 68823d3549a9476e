"""What two declarations say differently, key by key, in the words of the manifests, and whom it concerns.

Values are told as they are written there: secrets stay references, variables stay names. What stands in the `config` of
a plugin is not told at all, only which keys of it differ; nor is a key that somebody has put into `env` as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from sidecar.core.manifest import Declaration, Model, PluginDeclaration, Variant
from sidecar.core.review import FieldChange
from sidecar.mechanism.loader import Loaded
from sidecar.mechanism.plugins import Loaded as Plugin
from sidecar.mechanism.redaction import is_secret
from sidecar.mechanism.versions import Version

MOST_CHARS = 120
_UNTOLD = ("config",)
_MARK = "…"
_REFERENCE = re.compile(r"\{env\.[A-Za-z0-9_.]+\}")


# --- values -------------------------------------------------------------------------------------------------------


def written(value: Any) -> str:
    """A value as TOML has it in one line, not too long."""
    text = _toml(value)
    return text if len(text) <= MOST_CHARS else text[: MOST_CHARS - 1] + _MARK


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str | bool):
        return msgspec.json.encode(value).decode()
    return str(value)


def differing(before: list[Any], after: list[Any]) -> tuple[str, str]:
    """Two lists, without what is the same at both ends."""
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    end = 0
    while end < min(len(before), len(after)) - start and before[-1 - end] == after[-1 - end]:
        end += 1
    head, tail = [_MARK] if start else [], [_MARK] if end else []
    cut = ([*head, *one[start : len(one) - end], *tail] for one in (before, after))
    told, also = (written(one).replace(f'"{_MARK}"', _MARK) for one in cut)
    return told, also


def _field(key: str, before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> FieldChange:
    old, new = before.get(name), after.get(name)
    if isinstance(old, list) and isinstance(new, list):
        told, also = differing(old, new)
    else:
        told, also = ("" if one is None else written(one) for one in (old, new))
    return FieldChange(key=key, before=told, after=also)


def fields(
    before: msgspec.Struct, after: msgspec.Struct, raws: tuple[Mapping[str, Any], Mapping[str, Any]], prefix: str = ""
) -> Iterator[FieldChange]:
    """The keys in which two tables of a kind differ. raws: the same two as they stand in the manifests."""
    for field in msgspec.structs.fields(before):
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old == new or field.encode_name == "variants":
            continue
        if field.encode_name in _UNTOLD:
            keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
            yield from (FieldChange(key=f"{prefix}{field.encode_name}.{key}") for key in keys)
        elif field.encode_name == "env":
            yield from _variables(f"{prefix}env.", *(raw.get("env", {}) for raw in raws))
        else:
            yield _field(prefix + field.encode_name, *raws, field.encode_name)


def _variables(prefix: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[FieldChange]:
    """Each by itself; a secret is told only where it is a reference."""
    for name in {**before, **after}:
        if before.get(name) == after.get(name):
            continue
        change = _field(prefix + name, before, after, name)
        open_ = not is_secret(name) or all(_REFERENCE.fullmatch(one.get(name, "{env._}")) for one in (before, after))
        yield change if open_ else FieldChange(key=change.key)


# --- models -------------------------------------------------------------------------------------------------------


def of_models(before: Model, after: Model, raws: tuple[Mapping[str, Any], Mapping[str, Any]]) -> Iterator[FieldChange]:
    """The keys in which two forms of a model differ, those of its variants among them."""
    yield from fields(before, after, raws)
    old, new = ({one.name: one for one in model.variants} for model in (before, after))
    told = tuple(_variants(raw) for raw in raws)
    for name in old.keys() - new.keys():
        yield FieldChange(key=f"variants.{name}", before=_kind(old[name]))
    for name in new.keys() - old.keys():
        yield FieldChange(key=f"variants.{name}", after=_kind(new[name]))
    for name in (name for name in old if name in new):
        yield from fields(old[name], new[name], (told[0].get(name, {}), told[1].get(name, {})), f"variants.{name}.")
    stay = [[name for name in one if name in other] for one, other in ((old, new), (new, old))]
    if stay[0] != stay[1]:
        yield FieldChange(key="order of variants", before=", ".join(stay[0]), after=", ".join(stay[1]))


def _kind(variant: Variant) -> str:
    if variant.external:
        return f"url = {written(variant.url)}"
    return ", ".join(f"{amount} MB on {name}" for name, amount in variant.needs())


def _variants(raw: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The tables of a model's variants, by the names that they have in the declaration (rules.complete)."""
    tables = [one for one in raw.get("variants", []) if isinstance(one, dict)]
    default = "default" if len(tables) == 1 else ""
    return {one.get("name") or default or f"variant-{index}": one for index, one in enumerate(tables)}


def raw_of(loaded: Loaded, section: str, name: str = "") -> Mapping[str, Any]:
    """What stands in the manifests."""
    entry = loaded.tables.get((section, name) if name else (section,))
    return entry.raw if entry is not None and isinstance(entry.raw, dict) else {}


# --- whom it concerns ---------------------------------------------------------------------------------------------


def using_plugin(declared: Declaration, name: str, plugins: Iterable[Plugin]) -> set[str]:
    """The models that have a plugin in their chain, as their mode, or as the class of one of their devices."""
    kinds = {(plugin.kind, plugin.provides) for plugin in plugins}
    modes = {provides for kind, provides in kinds if kind == "interface"}
    classes = {provides for kind, provides in kinds if kind == "device"}
    named = {device for device, one in declared.devices.items() if one.match.device_class in classes}
    return {
        model
        for model, one in declared.models.items()
        if name in declared.chain_of(one) or modes & set(one.modes) or _requires(one, classes | named)
    }


def using_device(declared: Declaration, name: str) -> set[str]:
    """The models that require a `[devices.NAME]`."""
    return {model for model, one in declared.models.items() if _requires(one, {name})}


def _requires(model: Model, devices: set[str]) -> bool:
    required = (name for variant in model.variants for name in variant.required_devices)
    return any(name in devices or name.rpartition(":")[0] in devices for name in required)


def using_setting(declared: Declaration, key: str) -> set[str]:
    """The models that a key of `[sidecar]` is about, as far as it is about models."""
    if key == "chain":
        return {name for name, model in declared.models.items() if model.chain is None}
    if key == "headroom_mb":
        return {name for name, model in declared.models.items() if any(not one.external for one in model.variants)}
    return set()


# --- plugins ------------------------------------------------------------------------------------------------------


def of_plugins(
    before: Plugin | None, after: Plugin | None, raws: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> Iterator[FieldChange]:
    """The keys in which two versions of a plugin differ, and its code, if that does."""
    if before is None or after is None:
        return
    yield from fields(before.declaration, after.declaration, raws)
    old, new = (_code(one.code) for one in (before, after))
    units = sorted(name for name in {**old, **new} if old.get(name) != new.get(name))
    yield from (FieldChange(key=f"code of plugins/{name}") for name in units)


def own(plugins: Mapping[str, Plugin], declared: Mapping[str, PluginDeclaration]) -> dict[str, Plugin]:
    """Those that the manifests bring, by declaring them or beside them; not those that are always there."""
    return {name: one for name, one in plugins.items() if name in declared or isinstance(one.code, Version)}


def _code(code: object) -> dict[str, str]:
    """The content of a plugin's unit and of those that it imports, by name."""
    found: dict[str, str] = {}
    todo = [code]
    while todo:
        version = todo.pop()
        if isinstance(version, Version) and version.name not in found:
            found[version.name] = version.digest
            todo += version.imports.values()
    return found


def effect_of_setting(key: str) -> str:
    """What becomes of a change to a key of `[sidecar]` under a running sidecar."""
    if key in ("listen", "state_dir"):
        return "takes effect when the sidecar is started anew"
    return "for servers that start from now on" if key == "ports" else "taken over as it runs"
