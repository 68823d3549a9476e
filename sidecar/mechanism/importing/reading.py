"""YAML and JSON as plain values, with the line of each, and without what those languages would lose in silence.

A key that stands twice is an error: in YAML and JSON the last one would win, and nobody would hear of the first.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

Path = tuple[str | int, ...]

MOST_BYTES = 2 * 2**20
MOST_VALUES = 50_000  # with what anchors repeat, so that a small file is not a huge tree (the "billion laughs")
_DEEPEST = 100
_BOOL = "tag:yaml.org,2002:bool"
_COMMENT = re.compile(r'"(?:\\.|[^"\\])*"|(?://|#)[^\n]*')


class InputError(Exception):
    """What is to be imported cannot be: where, and why. Its text never holds a value, which may be a secret."""


class Tree(msgspec.Struct, frozen=True):
    """A document. lines: path to line, from 1; {} where they are not known."""

    file: str
    value: Any
    lines: Mapping[Path, int] = {}


class _Loader(yaml.SafeLoader):
    """YAML's plain values; a date stays the text that it is, as all of the sources take it."""


class _CoreLoader(yaml.SafeLoader):
    """The same with booleans as YAML 1.2 has them, so that `on` stays text: what Go's yaml.v3 reads."""


def _resolvers(without: frozenset[str]) -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    return {
        first: [(tag, pattern) for tag, pattern in known if tag not in without]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_TIME = "tag:yaml.org,2002:timestamp"
_Loader.yaml_implicit_resolvers = _resolvers(frozenset({_TIME}))
_CoreLoader.yaml_implicit_resolvers = _resolvers(frozenset({_TIME, _BOOL}))
_CoreLoader.add_implicit_resolver(_BOOL, re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))


def read(file: str, content: bytes, *, core: bool = False) -> Tree:
    """Read YAML, or JSON, where comments may stand in it (`.json`). Raises InputError with the place.

    core: booleans as YAML 1.2 has them.
    """
    if len(content) > MOST_BYTES:
        raise InputError(f"{file}: is larger than {MOST_BYTES // 2**20} MiB: that is no configuration")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}:{line}: is not UTF-8 text") from None
    try:
        tree = _json(file, text) if file.endswith(".json") else _yaml(file, text, _CoreLoader if core else _Loader)
    except RecursionError:
        raise InputError(f"{file}: is nested too deep") from None
    if not isinstance(tree.value, dict):
        found = "nothing" if tree.value is None else "something else"
        raise InputError(f"{file}: expected a table of settings (`key: value`), found {found}")
    return tree


def _json(file: str, text: str) -> Tree:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
            raise InputError(f'{file}: the key "{twice[0]}" stands twice in one object')
        return dict(pairs)

    def no_number(name: str) -> Any:
        raise InputError(f"{file}: {name} is no number that JSON has")

    plain = _COMMENT.sub(lambda match: match[0] if match[0].startswith('"') else "", text)
    try:
        value = json.loads(plain, object_pairs_hook=once, parse_constant=no_number)
    except json.JSONDecodeError as error:
        raise InputError(f"{file}:{error.lineno}: is not JSON: {error.msg}") from None
    except ValueError:  # a number of thousands of digits
        raise InputError(f"{file}: is not JSON: a number is too long") from None
    return Tree(file, value)


def _yaml(file: str, text: str, loader: type[yaml.SafeLoader]) -> Tree:
    try:
        reader = loader(text)
        try:
            node = reader.get_single_node()
            return _Builder(file, reader).tree(node)
        finally:
            reader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}:{mark.line + 1}" if mark else file
        raise InputError(f"{place}: is not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{file}: is not YAML: {str(error).splitlines()[0]}") from None


class _Builder:
    """Plain values from YAML's nodes, with the line of each."""

    def __init__(self, file: str, reader: yaml.SafeLoader) -> None:
        self._file = file
        self._reader = reader
        self._lines: dict[Path, int] = {}

    def tree(self, node: yaml.Node | None) -> Tree:
        value = self._value(node, ()) if node is not None else None
        return Tree(self._file, value, self._lines)

    def _value(self, node: yaml.Node, path: Path) -> Any:
        line = node.start_mark.line + 1
        self._lines.setdefault(path, line)
        if len(self._lines) > MOST_VALUES or len(path) > _DEEPEST:
            raise InputError(f"{self._file}:{line}: too much, or nested too deep: that is no configuration")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*path, index)) for index, item in enumerate(node.value)]
        value = self._scalar(node, line)
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{self._file}:{line}: expected a finite number")
        return value

    def _scalar(self, node: yaml.Node, line: int) -> Any:
        try:
            value = self._reader.construct_object(node, deep=True)
        except ValueError:
            raise InputError(f"{self._file}:{line}: cannot be read as {node.tag.rpartition(':')[2]}") from None
        if value is not None and not isinstance(value, str | int | float | bool):
            raise InputError(f"{self._file}:{line}: is of a kind that no setting has ({node.tag.rpartition(':')[2]})")
        return value

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        self._refuse_twice(node)
        self._reader.flatten_mapping(node)  # merges (`<<: *anchor`): what they bring stands first, and gives way
        found: dict[str, Any] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(f"{self._file}:{key.start_mark.line + 1}: expected text for a key")
            name = key.value
            self._lines[*path, name] = key.start_mark.line + 1
            found[name] = self._value(item, (*path, name))
        return found

    def _refuse_twice(self, node: yaml.MappingNode) -> None:
        """Raise InputError if a key stands twice in a table, what merges bring aside."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                line = key.start_mark.line + 1
                raise InputError(f'{self._file}:{line}: the key "{key.value}" stands twice in one table')
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else "")
