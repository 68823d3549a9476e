"""A frame printed as text, for terminals without a screen, for files and for bug reports."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sidecar.control.events import Event
from sidecar.surfaces.cli.events import row as event_row
from sidecar.surfaces.cli.top import bars, rows
from sidecar.surfaces.cli.top.frame import Frame

SHOWN_EVENTS = 8
WIDE = 200


def head(frame: Frame, url: str, shown: int, notes: Iterable[str] = ()) -> Text:
    """What holds for the whole sidecar, on a line."""
    report = frame.report
    requests = sum(rates.requests for rates in frame.rates.values())
    tokens = sum(rates.tokens_out for rates in frame.rates.values())
    busy = sum(model.in_flight for model in report.models)
    waiting = sum(model.waiting for model in report.models)
    text = Text(f"sidecar {report.version}  ", "bold", no_wrap=True, overflow="ellipsis")
    text.append(f"{busy} busy, {waiting} waiting, {requests:.1f} req/s, {tokens:,.0f} tok/s", "not bold")
    if report.problems:
        text.append(f"  {report.problems} problems in the manifests", "red not bold")
    for note in notes:
        text.append(f"  {note}", "yellow not bold")
    return text.append(f"  {shown} of {len(report.models)} models  {url} pid {report.pid}", "dim not bold")


def style(state: str) -> str:
    """The colour of a state, which also stands there as a word."""
    return {"ready": "green", "elsewhere": "green", "failed": "red", "backoff": "red", "stopped": "dim"}.get(
        state, "yellow"
    )


def frame_of(frame: Frame, width: int, look: bars.Signs, what: tuple[str, str], url: str) -> RenderableType:
    """what: the pattern of the models that are meant, and their order."""
    models = rows.chosen(frame, *what)
    longest = max((len(model.name) for model in models), default=0)
    columns = rows.columns(width, longest)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, rows.GAP, 0, 0))
    for column, size in zip(columns, rows.sizes(columns, width, longest), strict=True):
        justify: Literal["left", "right"] = "right" if column.right else "left"
        table.add_column(column.title, justify=justify, width=size, no_wrap=True, overflow="ellipsis")
    for model in models:
        cells = [Text(column.cell(model, frame.rates_of(model.name))) for column in columns]
        cells[1].stylize(style(model.state))
        table.add_row(*cells)
    parts: list[RenderableType] = [head(frame, url, len(models)), Text()]
    parts += [*bars.lines(frame.report.devices, width, look), bars.legend(look), Text(), table, Text()]
    parts += [event_line(event) for event in frame.events[-SHOWN_EVENTS:]]
    return Group(*parts)


def event_line(event: Event) -> Text:
    """One line, without the day."""
    when, *told = event_row(event)
    text = Text(f"{when.rpartition(' ')[2]} ", "dim", no_wrap=True, overflow="ellipsis")
    return text.append("  ".join(filter(None, told)), "default not dim")


def show(frame: Frame, what: tuple[str, str], url: str) -> None:
    """Print it as wide as the terminal."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=WIDE)  # lines of files and pipes are whole
    console.print(frame_of(frame, console.width, bars.signs(console.encoding), what, url))
