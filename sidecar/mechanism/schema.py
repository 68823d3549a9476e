"""The JSON Schema of the manifests, for editors: made of the types, of what is installed, and of the README's words.

Draft 7, the newest that taplo (and so most editors of TOML) knows whole. It says what the loader says as far as a
schema can: types, keys, names, ranges, what excludes what. What it lets pass may be refused; not the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

import msgspec

from plugin_sdk import Plugin
from plugin_sdk.config import schema as as_schema
from plugin_sdk.kinds import settings_of
from sidecar.core.manifest import DeviceDeclaration, Model, PluginDeclaration, Settings, Variant
from sidecar.core.sourcing import GitDeclaration
from sidecar.mechanism import finding, manual, schema_rules
from sidecar.mechanism.finding import ENTRY, GROUP
from sidecar.mechanism.plugins import BUILTIN, BUILTIN_CHAIN, CHAIN_KINDS, WITH_SETTINGS, Catalog, PluginFault
from sidecar.mechanism.sources import Library

DRAFT = "http://json-schema.org/draft-07/schema#"

Node = dict[str, Any]

_TABLES: dict[str, type[msgspec.Struct]] = {
    "[sidecar]": Settings,
    "[plugins.NAME]": PluginDeclaration,
    "[devices.NAME]": DeviceDeclaration,
    "[models.NAME]": Model,
    "[[models.NAME.variants]]": Variant,
}


class Offer(msgspec.Struct, frozen=True):
    """A plugin class, and an import path that `[plugins.NAME]` may give for it."""

    path: str
    cls: type[Plugin[Any]]


class Names(msgspec.Struct, frozen=True):
    """What manifests may name. chain: plugins that go into chains. devices: `[devices.*]`.

    strict: whether there are no others; else what manifests declare by themselves may be called anything.
    """

    modes: tuple[str, ...]
    classes: tuple[str, ...]
    devices: tuple[str, ...]
    chain: tuple[str, ...]
    strict: bool = False

    @classmethod
    def of(cls, catalog: Catalog, plugins: Iterable[str], devices: Iterable[str], *, strict: bool) -> Names:
        """plugins, devices: those that manifests declare, faulty or not."""
        kinds = {name: plugin.kind for name, plugin in catalog.loaded.items()}
        named = {*kinds, *plugins, *catalog.faults}
        return cls(
            modes=tuple(sorted(catalog.providing("interface"))),
            classes=tuple(sorted(catalog.providing("device"))),
            devices=tuple(sorted(devices)),
            chain=tuple(sorted(name for name in named if kinds.get(name, "auth") in CHAIN_KINDS)),
            strict=strict,
        )


def offers(library: Library, declared: Iterable[str] = ()) -> tuple[list[Offer], list[PluginFault]]:
    """All plugins that a manifest could declare: built in, installed, beside the manifests, and declared already.

    Imports code. What cannot be used is told, and has no settings in the schema.
    """
    points = [f"{ENTRY}:{point.name}" for point in entry_points(group=GROUP)]
    beside = finding.drop_ins(library, set())
    paths = [*BUILTIN.values(), *BUILTIN_CHAIN.values(), *WITH_SETTINGS.values(), *points, *declared]
    found = {one.import_path: one.cls for one in (*finding.entries(library).found, *beside.found)}
    faults: dict[int, PluginFault] = {id(fault): fault for told in beside.faults.values() for fault in told}
    for path in dict.fromkeys(paths):
        try:
            found.setdefault(path, finding.resolve(path, library).cls)
        except Exception as error:  # noqa: BLE001 - looking at an author's class may raise anything; it is told
            fault = finding.fault_in(error, "")
            faults[id(fault)] = fault
    return [Offer(path, cls) for path, cls in sorted(found.items())], list(faults.values())


def manifests(names: Names, offered: Iterable[Offer]) -> tuple[Node, list[PluginFault]]:
    """The schema of a manifest file, and the faults of settings that no schema can tell."""
    definitions = _definitions(names)
    declarations, faults = _settings_of_plugins(list(offered), definitions)
    definitions["PluginDeclaration"]["allOf"] = declarations
    named = {
        "plugins": "PluginDeclaration",
        "devices": "DeviceDeclaration",
        "models": "Model",
    }
    properties: Node = {"sidecar": _referred("Settings", "The program itself.")}
    for section, kind in named.items():
        properties[section] = {"type": "object", "additionalProperties": {"$ref": f"#/definitions/{kind}"}}
    properties["models"]["propertyNames"] = schema_rules.MODEL_NAME
    root = {
        "$schema": DRAFT,
        "title": "Manifest of a sidecar",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "definitions": dict(sorted(definitions.items())),
    }
    return root, faults


def bootstrap() -> Node:
    """The schema of a bootstrap file, which has `[source]` alone."""
    definitions = _of_struct(GitDeclaration, "")
    definitions["SecretPlace"] |= schema_rules.SECRET_PLACE
    return {
        "$schema": DRAFT,
        "title": "Where a sidecar has its manifests from",
        "type": "object",
        "properties": {"source": {"$ref": "#/definitions/GitDeclaration"}},
        "required": ["source"],
        "additionalProperties": False,
        "definitions": dict(sorted(definitions.items())),
    }


def _definitions(names: Names) -> dict[str, Node]:
    """The tables of the manifests, with their words and rules."""
    definitions: dict[str, Node] = {}
    for outermost in (Settings, PluginDeclaration, DeviceDeclaration, Model):
        definitions |= _of_struct(outermost, "")
    words = manual.keys()
    for heading, kind in _TABLES.items():
        table = definitions[kind.__name__]
        for key, meaning in words[heading].items():
            if key in table["properties"]:
                table["properties"][key] = _described(table["properties"][key], meaning)
    for table_name, rules in schema_rules.rules(names).items():
        table = definitions[table_name]
        for key, rule in rules.keys.items():
            table["properties"][key] = schema_rules.merged(table["properties"][key], rule)
        table.update(rules.table)
    return definitions


def _settings_of_plugins(offered: list[Offer], definitions: dict[str, Node]) -> tuple[list[Node], list[PluginFault]]:
    """One condition for each import path, on its `config` and `on_error`; adds the settings to the definitions."""
    conditions: list[Node] = []
    faults: list[PluginFault] = []
    for offer in offered:
        settings = settings_of(offer.cls)
        then: Node = {"properties": dict(schema_rules.ON_ERROR.get(offer.cls.kind, {}))}
        try:
            tables = _of_struct(settings, f"{offer.path}.")
        except (TypeError, NameError, NotImplementedError) as error:  # an author's annotations may be anything
            faults.append(PluginFault(f"{offer.path}: its settings cannot be told: {error}"))
        else:
            definitions |= tables
            words = (offer.cls.__doc__ or "").strip().partition("\n")[0]
            then["properties"]["config"] = _referred(f"{offer.path}.{settings.__name__}", words)
        if finding.needs_settings(offer.cls):
            then["required"] = ["config"]
        only = {"properties": {"import": {"const": offer.path}}, "required": ["import"]}
        conditions.append({"if": only, "then": then})
    known = [offer.path for offer in offered]
    table = definitions["PluginDeclaration"]["properties"]
    table["import"] = schema_rules.merged(table["import"], schema_rules.import_path(known))
    return conditions, faults


def _of_struct(kind: type[msgspec.Struct], prefix: str) -> dict[str, Node]:
    """The definitions of a table and of those within it. prefix: so that each plugin may have its own `Settings`."""
    made = as_schema(kind)
    tables = made.get("$defs") or {kind.__name__: made}
    docs = _docs(kind)
    definitions = {}
    for name, table in tables.items():
        node = _for_toml(table, prefix)
        for key, meaning in _words(docs.get(name, ""), node.get("properties", {})).items():
            node["properties"][key] = _described(node["properties"][key], meaning)
        node.pop("description", None)
        if summary := _summary(docs.get(name, "")):
            node["description"] = summary
        definitions[prefix + name] = node
    return definitions


def _docs(kind: type[msgspec.Struct]) -> dict[str, str]:
    """The docstrings of a struct and of those in its fields, by class name."""
    found: dict[str, str] = {}
    todo: list[Any] = [kind]
    while todo:
        one = todo.pop()
        if isinstance(one, type) and issubclass(one, msgspec.Struct):
            if one.__name__ not in found:
                found[one.__name__] = (vars(one).get("__doc__") or "").strip()
                todo += [field.type for field in msgspec.structs.fields(one)]
        else:
            todo += getattr(one, "__args__", ())
    return found


def _words(doc: str, keys: Iterable[str]) -> dict[str, str]:
    """What a docstring says of single keys: `key: meaning.`, as they are written all through this project."""
    names = "|".join(map(re.escape, keys))
    if not names:
        return {}
    _, *parts = re.split(rf"(?:^|(?<=[.;)])\s+|\n\s*)({names}): ", doc)
    return {key: " ".join(text.split("\n\n")[0].split()) for key, text in zip(parts[::2], parts[1::2], strict=True)}


def _summary(doc: str) -> str:
    return re.split(r"\n\n|(?<=[.])\s+\w+: ", doc)[0].replace("\n", " ")


def _for_toml(node: Any, prefix: str) -> Any:
    """As TOML has it: without null, and with references into `definitions`."""
    if isinstance(node, list):
        return [_for_toml(one, prefix) for one in node]
    if not isinstance(node, dict):
        return node
    made: Node = dict(_entries(node, prefix))
    if "anyOf" in made:
        choices = [one for one in made["anyOf"] if one != {"type": "null"}]
        rest = {key: value for key, value in made.items() if key != "anyOf"}
        return {**choices[0], **rest} if len(choices) == 1 and "$ref" not in choices[0] else {**rest, "anyOf": choices}
    return made


def _entries(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if key == "$ref":
            yield key, f"#/definitions/{prefix}{str(value).rpartition('/')[2]}"
        elif not ((key == "default" and value is None) or (key == "required" and not value)):
            yield key, _for_toml(value, prefix)


def _described(node: Node, words: str) -> Node:
    """Beside `$ref` nothing else counts in draft 7, so that has to stand within."""
    return {"allOf": [node], "description": words} if "$ref" in node else {**node, "description": words}


def _referred(name: str, words: str) -> Node:
    reference = {"$ref": f"#/definitions/{name}"}
    return _described(reference, words) if words else reference
