"""Which models are for which machine: `nodes = { gpu = "h200", rack = ["a", "b"] }` against the labels of a node."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping

import msgspec

from sidecar.core.names import listed

Patterns = Mapping[str, str | tuple[str, ...]]  # label to a shell-style pattern, or to several, of which one must match

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_WILD = frozenset("*?[")


class Node(msgspec.Struct, frozen=True):
    """A machine, as the manifests see it. labels: None = no one in particular: then everything is for it."""

    labels: dict[str, str] | None = None

    def fits(self, *selectors: Patterns) -> bool:
        """Whether each label that is asked for is there, and matches."""
        labels = self.labels
        return labels is None or all(
            key in labels and any(fnmatch.fnmatchcase(labels[key], pattern) for pattern in _listed(patterns))
            for selector in selectors
            for key, patterns in selector.items()
        )

    def __str__(self) -> str:
        return shown(self.labels or {}) or "no labels"


EVERY_NODE = Node()


class Elsewhere(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is declared, and not for this node. nodes: for which ones, told to people. labels: asked for."""

    nodes: str
    aliases: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


def parse(text: str) -> tuple[str, str]:
    """A label as it is given to a node: `gpu=h200`. Raises ValueError."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not value:
        raise ValueError(f'expected KEY=VALUE, such as gpu=h200, got "{text}"')
    if not is_key(key):
        raise ValueError(f'"{key}" is no name of a label: letters, digits and ._/- only, first a letter or digit')
    if set(value) & set(",\0\n\r"):
        raise ValueError(f'expected no comma and no line end in the value of the label "{key}"')
    return key, value


def is_key(key: str) -> bool:
    """Whether a label may be called so."""
    return bool(_KEY.fullmatch(key))


def shown(selector: Patterns) -> str:
    """`gpu = h200, rack = a or b`."""
    return ", ".join(f"{key} = {' or '.join(_listed(patterns))}" for key, patterns in selector.items())


def told(selectors: Iterable[Iterable[Patterns]]) -> str:
    """Several of those, of which one must fit; each may have several parts, all of which must."""
    texts = (", ".join(filter(None, map(shown, parts))) for parts in selectors)
    return "; or ".join(dict.fromkeys(text for text in texts if text))


def may_meet(one: Iterable[Patterns], other: Iterable[Patterns]) -> bool:
    """Whether there may be a node that both fit. Two patterns with wildcards are taken to match something common."""
    mine = [(key, _listed(patterns)) for selector in one for key, patterns in selector.items()]
    theirs = [(key, _listed(patterns)) for selector in other for key, patterns in selector.items()]
    return all(
        any(_overlap(this, that) for this in patterns for that in others)
        for key, patterns in mine
        for also, others in theirs
        if key == also
    )


def faults(selector: Patterns) -> Iterable[tuple[str, str]]:
    """(label, what is wrong with what is asked of it)."""
    for key, patterns in selector.items():
        if not is_key(key):
            yield key, f'"{key}" is no name of a label: letters, digits and ._/- only, first a letter or digit'
        elif not patterns or not all(_listed(patterns)):
            yield key, 'expected a pattern such as "h200" or "h*", or a list of them, none of them empty'


def _listed(patterns: str | tuple[str, ...]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else patterns


def _overlap(one: str, other: str) -> bool:
    if _WILD.isdisjoint(one):
        return fnmatch.fnmatchcase(one, other)
    return not _WILD.isdisjoint(other) or fnmatch.fnmatchcase(other, one)


def counted(elsewhere: Mapping[str, Elsewhere]) -> str:
    """`2 models are for other nodes: a, b`; "" if none is."""
    if not elsewhere:
        return ""
    many = f"{len(elsewhere)} models are" if len(elsewhere) > 1 else "1 model is"
    return f"{many} for other nodes: {listed(elsewhere)}"
