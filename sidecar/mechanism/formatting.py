"""Lays manifests out: spaces, indents and blank lines, and nothing else. What they mean, say and quote stays as it is.

The line breaks within arrays are the author's, so that an argv can be written in pairs; what taplo has laid out stays.
Comments that were below each other stay so. A result that would mean something else is refused, not returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import tree_sitter_toml
from tree_sitter import Language, Node, Parser

from sidecar.mechanism.toml import TomlError, parsed

_LANGUAGE = Language(tree_sitter_toml.language())
_LEAVES = {"bare_key", "quoted_key", "string", "integer", "float", "boolean", "comment"}  # dates have no children
_TABLES = ("table", "table_array_element")
_INDENT = "  "


class FormatError(Exception):
    """It cannot be laid out, and stays. line: where, 0 if nowhere in particular."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


class Line(msgspec.Struct):
    """Something with a line of its own, or several. first, last: its rows in the source, from 0.

    column: where its comment began there, -1 = it has none. gap: how far from its end.
    """

    code: str
    first: int
    last: int
    comment: str = ""
    column: int = -1
    gap: int = 1
    header: bool = False

    @property
    def lone_comment(self) -> bool:
        return not self.code


def formatted(content: bytes) -> bytes:
    """The manifest, laid out. Raises FormatError if it is no TOML, or cannot be laid out without a loss."""
    before = _meaning(content)
    text = content.decode("utf-8")
    plain = text.replace("\r\n", "\n")
    try:
        after = _Layout(plain).text()
    except RecursionError:
        raise FormatError("is nested too deep") from None
    if after != plain and (_meaning(after.encode()) != before or _comments(after) != _comments(plain)):
        raise FormatError("would mean something else after this; lay it out by hand")
    return after.replace("\n", "\r\n" if text.partition("\n")[0].endswith("\r") else "\n").encode()


def _meaning(content: bytes) -> str:
    """What it says, and in which order; as text, since nan is not the same as nan."""
    try:
        return repr(parsed(content))
    except TomlError as error:
        raise FormatError(str(error), error.line) from None
    except RecursionError:
        raise FormatError("is nested too deep") from None


def _comments(text: str) -> list[str]:
    """All comments, in their order."""
    root = Parser(_LANGUAGE).parse(text.encode()).root_node
    return [_text(node).rstrip() for node in _leaves(root) if node.type == "comment"]


class _Layout:
    """One document."""

    def __init__(self, text: str) -> None:
        source = text.encode()
        self._rows = source.split(b"\n")
        self._root = Parser(_LANGUAGE).parse(source).root_node
        if self._root.has_error:
            raise FormatError("its layout cannot be read; lay it out by hand")

    def text(self) -> str:
        lines: list[Line] = []
        for node in self._root.children:
            self._add(node, lines)
        return "".join(f"{line}\n" for line in _spaced(lines, _wants_blank(lines)))

    def _add(self, node: Node, lines: list[Line]) -> None:
        if node.type == "comment":
            self._comment(node, lines)
        elif node.type == "pair":
            value = next(child for child in reversed(node.children) if child.type != "comment")
            lines.append(Line(self._pair(node, 0), node.start_point.row, _last_row(value)))
            for child in node.children:
                if child.type == "comment":  # behind the value
                    self._comment(child, lines)
        elif node.type in _TABLES:
            self._table(node, lines)

    def _table(self, node: Node, lines: list[Line]) -> None:
        opening, *inner = node.children
        key = self._key(inner[0])
        closing = inner[1]
        header = f"{_text(opening)}{key}{_text(closing)}"
        lines.append(Line(header, node.start_point.row, _last_row(closing), header=True))
        for child in inner[2:]:
            self._add(child, lines)

    def _comment(self, node: Node, lines: list[Line]) -> None:
        """Behind what stands in its row, or in a line of its own."""
        row, text = node.start_point.row, _text(node).rstrip()
        if lines and lines[-1].last == row and not lines[-1].comment:
            before = self._rows[row][: node.start_point.column].decode()
            lines[-1].comment, lines[-1].column = text, len(before)
            lines[-1].gap = max(1, len(before) - len(before.rstrip()))
        else:
            lines.append(Line("", row, row, comment=text))

    def _pair(self, node: Node, depth: int) -> str:
        key, *_, value = (child for child in node.children if child.type != "comment")
        return f"{self._key(key)} = {self._value(value, depth)}"

    def _key(self, node: Node) -> str:
        return ".".join(_text(leaf) for leaf in _leaves(node) if leaf.type != ".")

    def _value(self, node: Node, depth: int) -> str:
        if node.type == "inline_table":
            pairs = [self._pair(child, depth) for child in node.named_children if child.type == "pair"]
            return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
        if node.type == "array":
            return self._array(node, depth)
        return _text(node)

    def _array(self, node: Node, depth: int) -> str:
        inner = [child for child in node.children[1:-1] if child.type != ","]
        if not _broken(node):
            return f"[{', '.join(self._value(child, depth) for child in inner)}]"
        lines: list[Line] = []
        for child in inner:
            if child.type == "comment":
                self._comment(child, lines)
                continue
            item = f"{self._value(child, depth + 1)},"
            row = child.start_point.row
            if lines and not lines[-1].lone_comment and not lines[-1].comment and lines[-1].last == row:
                lines[-1].code += f" {item}"
                lines[-1].last = _last_row(child)
            else:
                lines.append(Line(item, row, _last_row(child)))
        indent = _INDENT * depth
        body = [f"{indent}{_INDENT}{line}\n" if line else "\n" for line in _spaced(lines, set())]
        return "".join(("[\n", *body, indent, "]"))


def _leaves(node: Node) -> Iterator[Node]:
    todo = [node]
    while todo:
        one = todo.pop()
        if one.type in _LEAVES or not one.children:
            yield one
        else:
            todo += reversed(one.children)


def _text(node: Node) -> str:
    return (node.text or b"").decode()


def _last_row(node: Node) -> int:
    """A node that ends with a line end is not in the next line for that."""
    end = node.end_point
    return end.row - 1 if end.column == 0 and end.row > node.start_point.row else end.row


def _broken(array: Node) -> bool:
    """Whether there is a line break in it, but for those in texts."""
    row = array.start_point.row
    for leaf in _leaves(array):
        if leaf.start_point.row != row:
            return True
        row = leaf.end_point.row
    return False


def _wants_blank(lines: list[Line]) -> set[int]:
    """Which lines must have a blank one before them: tables, or the comments right above those."""
    wanted = set()
    for number, line in enumerate(lines):
        if line.header:
            begin = number
            while begin and lines[begin - 1].lone_comment and lines[begin].first == lines[begin - 1].last + 1:
                begin -= 1
            wanted.add(begin)
    return wanted - {0}


def _spaced(lines: list[Line], wants_blank: set[int]) -> Iterator[str]:
    """The lines, with comments in their columns, and never two blank ones together."""
    ends = _comment_columns(lines)
    for number, line in enumerate(lines):
        if number and (line.first > lines[number - 1].last + 1 or number in wants_blank):
            yield ""
        if line.lone_comment or not line.comment:
            yield line.code or line.comment
        else:
            width = _width(line)
            yield f"{line.code}{' ' * (max(ends[number], width + 1) - width)}{line.comment}"


def _comment_columns(lines: list[Line]) -> dict[int, int]:
    """Where comments begin: those below each other in the source in one column, all others as far off as they were."""
    columns: dict[int, int] = {}
    for run in _runs(lines):
        gap = min(lines[number].gap for number in run)
        end = max(_width(lines[number]) for number in run) + gap
        columns |= dict.fromkeys(run, end)
    return columns


def _runs(lines: list[Line]) -> Iterable[list[int]]:
    """The lines with comments, those together whose comments were below each other. What has several rows is alone."""
    runs: list[list[int]] = []
    for number, line in enumerate(lines):
        if line.lone_comment or not line.comment:
            continue
        before = lines[number - 1] if number and "\n" not in line.code + lines[number - 1].code else None
        if before and before.comment and (before.column, before.last) == (line.column, line.first - 1):
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def _width(line: Line) -> int:
    return len(line.code.rpartition("\n")[2])
