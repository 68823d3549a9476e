"""`sidecar events`: what has happened, and with --follow what happens."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from datetime import datetime

import click
import msgspec

from sidecar.control.events import Event
from sidecar.core.names import printable
from sidecar.surfaces.cli.client import Remote, remote_options
from sidecar.surfaces.cli.following import Frame, follow, until_nobody_reads
from sidecar.surfaces.cli.names import complete_models
from sidecar.surfaces.cli.output import print_table
from sidecar.surfaces.report import EventsReport

_COLUMNS = ("TIME", "TYPE", "MODEL", "REASON", "MESSAGE")
_WIDTHS = (19, 17, 20, 20, 0)  # of lines that come one by one, so that nobody knows the longest


@click.command()
@click.option(
    "--follow", "-f", "follows", is_flag=True, help="Go on with what happens, over restarts of the sidecar, too."
)
@click.option("--model", shell_complete=complete_models, help="Only what concerns this model.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 2000), help="How many to begin with.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, an event a line.")
@remote_options
def events(follows: bool, model: str | None, limit: int, as_json: bool, remote: Remote) -> None:
    """Show what has happened, oldest first."""
    asked = {"limit": str(limit), **({"model": model} if model is not None else {})}
    with until_nobody_reads():
        if not follows:
            _show(msgspec.convert(remote.get("/-/events", asked), EventsReport).events, as_json)
            return
        if not as_json:
            click.echo(_line(_COLUMNS))
        follow(remote, "/-/events", asked, functools.partial(_tell, as_json=as_json))


def row(event: Event) -> tuple[str, ...]:
    """An event as people read it: on one line, without the control characters that a server may have printed."""
    message = event.message
    if event.count > 1:
        message += f" ({event.count} times since {_time(event.first_at)})"
    return tuple(map(printable, (_time(event.at), event.type, event.model or "-", event.reason, message)))


def _show(found: list[Event], as_json: bool) -> None:
    if as_json:
        for event in found:
            click.echo(msgspec.json.encode(event))
    else:
        print_table("", _COLUMNS, map(row, found))


def _tell(frame: Frame, *, as_json: bool) -> None:
    if frame.name == "gap":
        click.echo("sidecar: events are missing here: they are no longer held", err=True)
    elif frame.data and as_json:
        click.echo(frame.data)
    elif frame.data:
        click.echo(_line(row(msgspec.json.decode(frame.data, type=Event))))


def _line(cells: Iterable[str]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def _time(unix: float) -> str:
    return datetime.fromtimestamp(unix).astimezone().strftime("%Y-%m-%d %H:%M:%S")
