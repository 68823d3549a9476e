"""What became of each setting: carried, carried in another way, or left behind, with the reason and what to do.

A statement about a table is about all in it, unless something closer is said. What nothing is said about was not known
to the importer, and is listed so: an importer that forgets a key tells on itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

import msgspec

from sidecar.mechanism.importing.reading import InputError, Path, Tree
from sidecar.mechanism.places import shown

UNKNOWN = "is not known to this importer"
EMPTY = "is empty (null), which TOML cannot say"
LOOK = "see what it did, and look for it in manifests/README.md"


_LONGEST = 1e9  # of any unit


class Fate(Enum):
    """What became of a setting. CHANGED: carried, but not word for word."""

    CARRIED = "carried"
    CHANGED = "changed"
    LEFT = "left"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A setting and what became of it. line: 0 = not known. to: where it is now. why: of a change, or of its absence.

    do: what is left for a person to do, if anything.
    """

    path: str
    line: int = 0
    fate: Fate
    to: str = ""
    why: str = ""
    do: str = ""


class _Mark(msgspec.Struct, frozen=True):
    fate: Fate
    to: str = ""
    why: str = ""
    do: str = ""


class Account:
    """The settings of a document, and what was said of them so far."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._marks: dict[Path, list[_Mark]] = {}

    def root(self) -> At:
        """The document as a whole."""
        return At(self, (), self.tree.value)

    def say(self, path: Path, fate: Fate, to: str = "", why: str = "", do: str = "") -> None:
        """Say what became of a setting. It may be carried to several places; that it is left counts if to none."""
        mark = _Mark(fate, to, why, do)
        marks = self._marks.setdefault(path, [])
        if fate is not Fate.LEFT:
            marks[:] = [other for other in marks if other.fate is not Fate.LEFT]
        elif any(other.fate is not Fate.LEFT for other in marks):
            return
        if mark not in marks:
            marks.append(mark)

    def entries(self) -> tuple[Entry, ...]:
        """At least one for each value of the document, in its order."""
        return tuple(self._entries())

    def _entries(self) -> Iterator[Entry]:
        for path, value in leaves(self.tree.value):
            line = next((self.tree.lines[path[:size]] for size in _sizes(path) if path[:size] in self.tree.lines), 0)
            for mark in self._marks_of(path, value):
                yield Entry(path=shown(path), line=line, fate=mark.fate, to=mark.to, why=mark.why, do=mark.do)

    def _marks_of(self, path: Path, value: Any) -> list[_Mark]:
        if value is None and path not in self._marks:
            return [_Mark(Fate.LEFT, why=EMPTY)]
        closest = next((self._marks[path[:size]] for size in _sizes(path) if path[:size] in self._marks), None)
        return closest or [_Mark(Fate.LEFT, why=UNKNOWN, do=LOOK)]


class At:
    """A place in the document: its value, what is below it, and what became of it."""

    def __init__(self, account: Account, path: Path, value: Any) -> None:
        self._account = account
        self.path = path
        self.value = value

    @property
    def name(self) -> str:
        """The last key of its path."""
        return str(self.path[-1])

    # --- looking ------------------------------------------------------------------------------------------------

    def get(self, *keys: str) -> At | None:
        """What stands below, key by key; None if it is not there or empty (`key:`)."""
        here = self
        for key in keys:
            table = here._table()
            if table.get(key) is None:
                return None
            here = At(self._account, (*here.path, key), table[key])
        return here

    def items(self) -> Iterator[At]:
        """What stands below, in its order, without what is empty. Raises InputError if it is no table."""
        for key, value in self._table().items():
            if value is not None:
                yield At(self._account, (*self.path, key), value)

    def each(self) -> Iterator[At]:
        """The items of a list; a single value counts as a list of one. Raises InputError if it is a table."""
        if isinstance(self.value, dict):
            raise self.wrong("a list")
        if not isinstance(self.value, list):
            yield self
            return
        for index, value in enumerate(self.value):
            yield At(self._account, (*self.path, index), value)

    def text(self) -> str:
        """A plain value as it was written, more or less. Raises InputError."""
        if isinstance(self.value, bool):
            return "true" if self.value else "false"
        if isinstance(self.value, str | int | float) and "\0" not in str(self.value):
            return str(self.value)
        raise self.wrong("text")

    def number(self) -> float:
        """A number, also if it is quoted. Raises InputError."""
        try:
            if not isinstance(self.value, bool):
                return float(self.value)
        except (TypeError, ValueError, OverflowError):
            pass
        raise self.wrong("a number")

    def whole(self) -> int:
        """A whole number. Raises InputError."""
        number = self.number()
        if number != int(number):
            raise self.wrong("a whole number")
        return int(number)

    def duration(self, unit: str = "s") -> str:
        """A time in that unit, as manifests have it. Raises InputError."""
        number = self.number()
        if not 0 <= number <= _LONGEST:
            raise self.wrong("a time of 0 or more")
        text = f"{number:.6f}".rstrip("0").rstrip(".")
        return f"{text}{unit}"

    def port(self) -> int:
        """A TCP port. Raises InputError."""
        port = self.whole()
        if not 1 <= port <= 65535:
            raise self.wrong("a port from 1 to 65535")
        return port

    def host(self) -> str:
        """A host's name or address, as it stands before `:PORT`. Raises InputError."""
        host = self.text().strip().strip("[]")
        if not host or not host.isascii() or not host.isprintable() or " " in host:
            raise self.wrong("a host's name or address")
        return f"[{host}]" if ":" in host else host

    def flag(self) -> bool:
        """A boolean, also if it is quoted. Raises InputError."""
        if isinstance(self.value, bool):
            return self.value
        if str(self.value).lower() in ("true", "false"):
            return str(self.value).lower() == "true"
        raise self.wrong("true or false")

    @property
    def is_table(self) -> bool:
        """Whether something can stand below it."""
        return isinstance(self.value, dict)

    def _table(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self.wrong("a table")
        return self.value

    def wrong(self, expected: str) -> InputError:
        """What to raise if something else stands here than is expected."""
        tree = self._account.tree
        line = next((tree.lines[self.path[:size]] for size in _sizes(self.path) if self.path[:size] in tree.lines), 0)
        place = f"{tree.file}:{line}" if line else tree.file
        return InputError(f"{place}: {shown(self.path) or 'the document'}: expected {expected}")

    # --- saying what became of it -------------------------------------------------------------------------------

    def carried(self, to: str) -> None:
        """It is there, word for word. to: where."""
        self._account.say(self.path, Fate.CARRIED, to)

    def changed(self, to: str, why: str, do: str = "") -> None:
        """What it meant is there, in another way."""
        self._account.say(self.path, Fate.CHANGED, to, why, do)

    def left(self, why: str, do: str = "") -> None:
        """It is not there."""
        self._account.say(self.path, Fate.LEFT, why=why, do=do)


def each(at: At | None) -> Iterator[At]:
    """The items of a list, if it is there."""
    yield from at.each() if at else ()


def items(at: At | None) -> Iterator[At]:
    """What stands in a table, if it is there."""
    yield from at.items() if at else ()


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each plain value, and each empty table and list, with its path."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))
    else:
        yield path, value


def _sizes(path: Path) -> range:
    """The lengths of a path and of those above it, longest first."""
    return range(len(path), -1, -1)
