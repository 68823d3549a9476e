"""The manifests' README as data: what each key means, so that editors can show what people read."""

from __future__ import annotations

import re
from importlib import resources

_HEADING = re.compile(r"^## `(\[+[^`]+\]+)`$", re.MULTILINE)
_ROW = re.compile(r"^\| `([a-z_]+)` \|(.*)\|$", re.MULTILINE)
_CELLS = re.compile(r"(?<!\\)\|")


def text() -> str:
    """The README. It lies in the package as a link, so that there is one of it."""
    return (resources.files("sidecar.mechanism") / "manifests.md").read_text(encoding="utf-8")


def keys() -> dict[str, dict[str, str]]:
    """What each key means, in Markdown, by the heading of its table (`[sidecar]`, `[models.NAME]`, ...)."""
    _, *parts = _HEADING.split(text())
    return {heading: _rows(body.partition("\n## ")[0]) for heading, body in zip(parts[::2], parts[1::2], strict=True)}


def _rows(body: str) -> dict[str, str]:
    return {key: _CELLS.split(cells)[-1].strip().replace("\\|", "|") for key, cells in _ROW.findall(body)}
