"""`sidecar events`: what has happened, and with --follow what happens."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import datetime

import click
import msgspec

from sidecar.control.events import Event
from sidecar.surfaces.cli.client import Remote, UnreachableError, remote_options
from sidecar.surfaces.cli.output import UNREACHABLE, fail, print_table
from sidecar.surfaces.report import KEEP_ALIVE_S, EventsReport

RETRY_S = 1.0
_COLUMNS = ("TIME", "TYPE", "MODEL", "REASON", "MESSAGE")
_WIDTHS = (19, 17, 20, 20, 0)  # of lines that come one by one, so that nobody knows the longest


class Frame(msgspec.Struct, frozen=True):
    """One server-sent event. id: the place to go on from. data: "" for a sign of life."""

    id: str
    name: str
    data: str


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens, over restarts of the sidecar, too.")
@click.option("--model", help="Only what concerns this model.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 2000), help="How many to begin with.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, an event a line.")
@remote_options
def events(follow: bool, model: str | None, limit: int, as_json: bool, remote: Remote) -> None:
    """Show what has happened, oldest first."""
    asked = {"limit": str(limit), **({"model": model} if model is not None else {})}
    try:
        if follow:
            _follow(remote, asked, as_json)
        else:
            _show(msgspec.convert(remote.get("/-/events", asked), EventsReport).events, as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain when it flushes
    except KeyboardInterrupt:
        pass  # which is how one stops to follow


def frames(lines: Iterable[str]) -> Iterator[Frame]:
    """Read a stream of server-sent events (WHATWG HTML, 9.2.6), as far as a sidecar sends them."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif fields:
            yield Frame(id=fields.get("id", ""), name=fields.get("event", ""), data=fields.get("data", ""))
            fields = {}


def row(event: Event) -> tuple[str, ...]:
    """An event as people read it: on one line, without the control characters that a server may have printed."""
    message = event.message
    if event.count > 1:
        message += f" ({event.count} times since {_time(event.first_at)})"
    return tuple(map(_plain, (_time(event.at), event.type, event.model or "-", event.reason, message)))


def _show(found: list[Event], as_json: bool) -> None:
    if as_json:
        for event in found:
            click.echo(msgspec.json.encode(event))
    else:
        print_table("", _COLUMNS, map(row, found))


def _follow(remote: Remote, asked: dict[str, str], as_json: bool) -> None:
    if not as_json:
        click.echo(_line(_COLUMNS))
    after, reached, away = "", False, False
    while True:
        try:
            for frame in frames(remote.lines("/-/events", _going_on(asked, after), 3 * KEEP_ALIVE_S)):
                reached, away, after = True, False, frame.id or after
                _tell(frame, as_json)
        except UnreachableError as error:
            if not reached:
                fail(str(error), UNREACHABLE)
            if not away:
                click.echo(f"{error}; waiting for it", err=True)
            away = True
        time.sleep(RETRY_S)


def _going_on(asked: dict[str, str], after: str) -> dict[str, str]:
    return {**asked, "follow": "true", **({"after": after} if after else {})}


def _tell(frame: Frame, as_json: bool) -> None:
    if frame.name == "gap":
        click.echo("sidecar: events are missing here: they are no longer held", err=True)
    elif frame.data and as_json:
        click.echo(frame.data)
    elif frame.data:
        click.echo(_line(row(msgspec.json.decode(frame.data, type=Event))))
    elif _nobody_reads():
        raise BrokenPipeError


def _nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has gone. Else only the next event would tell, and that may be long off."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(happened & select.POLLERR for _, happened in poll.poll(0))


def _line(cells: Iterable[str]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def _plain(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


def _time(unix: float) -> str:
    return datetime.fromtimestamp(unix).astimezone().strftime("%Y-%m-%d %H:%M:%S")
