"""Where a key stands in a TOML file: the line for a path, so that errors can point.

The standard library's parser keeps no positions; tree-sitter's grammar does. Only files with errors are looked at.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator

import tree_sitter_toml
from tree_sitter import Language, Node, Parser

Path = tuple[str | int, ...]


class Unshown(str):
    """A key that somebody else's settings have made up, as a table of API keys has them: it may be a secret."""

    __slots__ = ()


_LANGUAGE = Language(tree_sitter_toml.language())
_BARE = re.compile(r"[A-Za-z0-9_=-]+")
_KEYS = ("bare_key", "quoted_key", "dotted_key")


class Places:
    """The lines of one file's keys."""

    def __init__(self, text: bytes) -> None:
        self._lines: dict[Path, int] = {}
        self._arrays: dict[Path, int] = {}
        for node in Parser(_LANGUAGE).parse(text).root_node.named_children:
            if node.type == "pair":
                self._pair((), node)
            elif node.type in ("table", "table_array_element"):
                self._table(node)

    def line(self, path: Path) -> int:
        """The line (from 1) of `path`, or of the nearest part of it that the file has; 0 if it has none."""
        for length in range(len(path), 0, -1):
            if line := self._lines.get(path[:length]):
                return line
        return 0

    def _table(self, node: Node) -> None:
        header, *pairs = [child for child in node.named_children if child.type != "comment"]
        path = self._resolve((), _parts(header), repeated=node.type == "table_array_element")
        self._note(path, header)
        for pair in pairs:
            if pair.type == "pair":
                self._pair(path, pair)

    def _resolve(self, base: Path, parts: list[str], repeated: bool) -> Path:
        """The path that a header means: inside an array of tables it speaks of the last element (TOML 1.0)."""
        path = base
        for position, part in enumerate(parts):
            path = (*path, part)
            if repeated and position == len(parts) - 1:
                self._arrays[path] = self._arrays.get(path, -1) + 1
            if path in self._arrays:
                path = (*path, self._arrays[path])
        return path

    def _pair(self, base: Path, node: Node) -> None:
        key, *values = [child for child in node.named_children if child.type != "comment"]
        path = (*base, *_parts(key))
        self._note(path, key)
        for value in values:
            self._value(path, value)

    def _value(self, path: Path, node: Node) -> None:
        if node.type == "inline_table":
            for child in node.named_children:
                if child.type == "pair":
                    self._pair(path, child)
        elif node.type == "array":
            for index, child in enumerate(c for c in node.named_children if c.type != "comment"):
                self._note((*path, index), child)
                self._value((*path, index), child)

    def _note(self, path: Path, node: Node) -> None:
        for length in range(1, len(path) + 1):
            self._lines.setdefault(path[:length], node.start_point.row + 1)


def _parts(node: Node) -> list[str]:
    return [_plain(leaf) for leaf in _leaves(node)]


def _leaves(node: Node) -> Iterator[Node]:
    if node.type != "dotted_key":
        yield node
        return
    for child in node.named_children:
        if child.type in _KEYS:
            yield from _leaves(child)


def _plain(node: Node) -> str:
    text = (node.text or b"").decode("utf-8", "replace")
    if node.type == "bare_key":
        return text
    try:
        return next(iter(tomllib.loads(f"{text} = 0")))  # unquoted by the language's own rules
    except tomllib.TOMLDecodeError:
        return text  # the file has a syntax error just here; its line is found by the message instead


def shown(path: Path) -> str:
    """`models.qwen.variants[0].memory_mb`; a key that could be read otherwise is quoted, as in TOML.

    In place of one that may be a secret stands `[...]`: the line says which it is.
    """
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif isinstance(part, Unshown):
            text += "[...]"
        else:
            key = part if _BARE.fullmatch(part) else json.dumps(part, ensure_ascii=False)
            text += f".{key}" if text else key
    return text
