"""The results as a Markdown table, for people, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from tests.benchmarks.dataplane.rounds import DISTURBED
from tests.benchmarks.dataplane.rows import Row

_COLUMNS = ("", "result", "target", "stretch", "", "measured")


def markdown(rows: Sequence[Row]) -> str:
    """The table, its columns in line."""
    cells = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(_COLUMNS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def disturbed(rows: Sequence[Row]) -> str:
    """What to say about other processes; nothing, if they kept still."""
    worst = max((row.others for row in rows), default=0.0)
    if worst <= DISTURBED:
        return ""
    names = ", ".join(row.name for row in rows if row.others > DISTURBED)
    return f"Other processes took up to {worst:.0%} of a core meanwhile, so that these are doubtful: {names}."


def encoded(rows: Sequence[Row], facts: Mapping[str, str], quick: bool, failures: Mapping[str, str]) -> bytes:
    """All of it, for programs."""
    listed = [
        {
            "name": row.name,
            "what": row.what,
            "figure": row.figure,
            "unit": row.unit,
            "target": row.goal.target,
            "stretch": row.goal.stretch,
            "verdict": row.verdict,
            "measured": row.measured,
            "others_cores": row.others,
        }
        for row in rows
    ]
    whole = {"machine": facts, "quick": quick, "rows": listed, "failures": failures}
    return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"


def _cells(row: Row) -> tuple[str, ...]:
    mark = "" if row.others <= DISTURBED else " (disturbed)"
    target, stretch = (_number(wanted, row.unit) for wanted in (row.goal.target, row.goal.stretch))
    return (row.what, _number(row.figure, row.unit), target, stretch, row.verdict + mark, row.measured)


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "x":
        return f"{value:.2f}x"
    return f"{value:.3g} {unit}" if unit else f"{value:,.0f}"
