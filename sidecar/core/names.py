"""Names in words: suggestions for those that are misspelt, lists, articles."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 200


def near(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The names of `known` that `name` may have meant, best first."""
    if len(name) > _LONGEST:
        return []  # no name is so long, and comparing takes time that grows with the square
    by_folded = {candidate.casefold(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.casefold(), by_folded, n=most, cutoff=0.6)
    return [by_folded[match] for match in matches]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?`, or nothing when nothing is near."""
    matches = near(name, known, most=1)
    return f'; did you mean "{matches[0]}"?' if matches else ""


def listed(names: Iterable[str]) -> str:
    """`a, b, c`, or `none`."""
    return ", ".join(sorted(names)) or "none"


def an(noun: str) -> str:
    """The noun behind its article: `an auth`, `a device`."""
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"


def printable(text: str) -> str:
    """On one line, and without what would steer a terminal: servers, clients and authors may write what they like."""
    return "".join(character if character.isprintable() else " " for character in text)
