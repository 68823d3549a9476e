"""`sidecar logs`: what a model's server has said, and with --follow what it says."""

from __future__ import annotations

import functools
import re
from datetime import UTC, datetime
from urllib.parse import quote

import click
import msgspec

from sidecar.mechanism.logreader import LINES_MOST, Line
from sidecar.surfaces.cli.client import Remote, remote_options
from sidecar.surfaces.cli.following import Frame, follow, until_nobody_reads
from sidecar.surfaces.cli.names import model_argument
from sidecar.surfaces.cli.output import fail
from sidecar.surfaces.logs_api import LogReport, moment

# Sequences that a terminal obeys (ECMA-48, 5.4 and 5.6), other control characters but tabs, and what turns text round.
_CONTROLS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]"
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_A_TIME = re.compile(r"\d{4}-\d\d-\d\d")


@click.command()
@model_argument
@click.option("--follow", "-f", "follows", is_flag=True, help="Go on with what comes, over restarts, too.")
@click.option("--since", default="", help="Only from then on: 10m (ago), or a time such as 2026-01-31T12:00.")
@click.option("--grep", default="", metavar="RE2", help="Only lines in which this pattern is found.")
@click.option("--tail", "-n", type=click.IntRange(0, LINES_MOST), help="The last so many. [default: 200; all --since]")
@click.option("--previous", "-p", is_flag=True, help="Of the run before this one.")
@click.option("--stream", type=click.Choice(["out", "err"]), help="Only stdout or stderr.")
@click.option("--timestamps", "-t", is_flag=True, help="When each line was first seen: it is at most so old.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a line each.")
@remote_options
def logs(
    model: str,
    follows: bool,
    since: str,
    grep: str,
    tail: int | None,
    previous: bool,
    stream: str | None,
    timestamps: bool,
    as_json: bool,
    remote: Remote,
) -> None:
    """Show what the server of MODEL has said, oldest first."""
    asked = {
        "since": _since(since),
        "grep": grep,
        "tail": "" if tail is None else str(tail),
        "previous": "true" if previous else "",
        "stream": stream or "",
    }
    asked = {name: value for name, value in asked.items() if value}
    path = f"/-/models/{quote(model, safe='/')}/logs"
    show = functools.partial(_show, timestamps=timestamps, as_json=as_json)
    with until_nobody_reads():
        if follows:
            follow(remote, path, asked, functools.partial(_tell, show))
        else:
            _print(msgspec.convert(remote.get(path, asked), LogReport), show)


def plain(text: str) -> str:
    """A line as a terminal can be shown it: colours stay, what else would move the cursor is left out.

    Of a progress bar, which begins its line anew again and again, what it shows in the end.
    """
    shown = _CONTROLS.sub(lambda found: found[0] if _COLOUR.fullmatch(found[0]) else "", text.rsplit("\r", 1)[-1])
    return shown + "\x1b[0m" if "\x1b" in shown else shown


def _print(report: LogReport, show: functools.partial[None]) -> None:
    if report.gone:
        click.echo("sidecar: earlier lines are missing here: they were cut away, or are too many at once", err=True)
    for line in report.lines:
        show(line)
    if report.given_up:
        fail("the search took too long: later lines were not looked at; narrow it with --since or --tail")


def _tell(show: functools.partial[None], frame: Frame) -> None:
    if frame.name == "gap":
        click.echo("sidecar: lines are missing here: they were cut away", err=True)
    elif frame.name == "error":
        click.echo(f"sidecar: the log cannot be read: {frame.data}", err=True)
    elif frame.data:
        show(msgspec.json.decode(frame.data, type=Line))


def _show(line: Line, *, timestamps: bool, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(line))
    elif timestamps:
        when = datetime.fromtimestamp(line.at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        click.echo(f"{when} {line.stream}  {plain(line.text)}")
    else:
        click.echo(plain(line.text))


def _since(text: str) -> str:
    """As the sidecar takes it, which may be elsewhere: times of this place become times of all."""
    try:
        if text:
            moment(text, 0.0)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--since") from None
    if not _A_TIME.match(text):
        return text
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
