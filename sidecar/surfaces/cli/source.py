"""`sidecar source`: where the manifests are from, and what to do about it."""

from __future__ import annotations

from datetime import datetime

import click
import msgspec

from sidecar.core.names import printable
from sidecar.core.sourcing import Attempt, HistoryReport, SourceReport
from sidecar.surfaces.cli.client import Remote, remote_options
from sidecar.surfaces.cli.output import NO, json_option, print_json, print_table

_SHORT = 12


@click.group(invoke_without_command=True)
@click.pass_context
@json_option
@remote_options
def source(context: click.Context, as_json: bool, remote: Remote) -> None:
    """Show where the running sidecar's manifests are from; exit 1 if the last commit, or the server, cannot be had."""
    if context.invoked_subcommand is None:
        _tell(remote.get("/-/source"), as_json)


@source.command()
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1), help="How many at most.")
@json_option
@remote_options
def history(limit: int, as_json: bool, remote: Remote) -> None:
    """Show what came of the last commits, the newest last: which were applied, and why others were not."""
    found = msgspec.convert(remote.get("/-/source/history"), HistoryReport)
    shown = found.history[-limit:]
    if as_json:
        print_json(HistoryReport(commit=found.commit, history=shown))
        return
    rows = [_row(one, found.commit) for one in shown]
    print_table("", ("", "COMMIT", "TIME", "BY", "OUTCOME", "AUTHOR", "SUBJECT"), rows)
    for one in shown:
        for reason in one.reasons:
            click.echo(printable(f"{one.commit.id[:_SHORT]} {reason}"))


@source.command()
@json_option
@remote_options
def sync(as_json: bool, remote: Remote) -> None:
    """Ask the repository now, and wait until what is new is in force; exit 1 with the reason if it is not."""
    _tell(remote.post("/-/source/sync"), as_json)


@source.command()
@click.argument("commit", default="")
@json_option
@remote_options
def pin(commit: str, as_json: bool, remote: Remote) -> None:
    """Put COMMIT in force and stay there whatever is pushed, over restarts, too; without it, stay where it is now.

    This is how to roll back. It must be good as any other; exit 1 with the reason if it is not, and nothing changes.
    """
    _tell(remote.post("/-/source/pin", {"commit": commit}), as_json)


@source.command()
@json_option
@remote_options
def unpin(as_json: bool, remote: Remote) -> None:
    """Follow the branch again, beginning now."""
    _tell(remote.post("/-/source/unpin"), as_json)


@source.command()
@json_option
@remote_options
def suspend(as_json: bool, remote: Remote) -> None:
    """Let nothing change, over restarts, too, until `sidecar source resume`. What is in force serves on."""
    _tell(remote.post("/-/source/suspend"), as_json)


@source.command()
@json_option
@remote_options
def resume(as_json: bool, remote: Remote) -> None:
    """Follow the repository again, beginning now."""
    _tell(remote.post("/-/source/resume"), as_json)


def described(found: SourceReport) -> str:
    """One line: `git https://git.example/team/manifests.git main:manifests @ 0123456789ab, in sync`."""
    place = ":".join(filter(None, (found.ref, found.path)))
    commit = found.commit[:_SHORT] if found.kind != "ConfigMap" else found.commit
    at = f" @ {commit}" if commit else ""
    return f"{found.kind} {found.place}{f' {place}' if place else ''}{at}{f', {found.state}' if found.state else ''}"


def _tell(answer: object, as_json: bool) -> None:
    found = msgspec.convert(answer, SourceReport)
    if as_json:
        print_json(found)
    else:
        click.echo(described(found))
        for line in _details(found):
            click.echo(f"  {printable(line)}")
    if found.state in ("failing", "rejected"):
        raise SystemExit(NO)


def _details(found: SourceReport) -> list[str]:
    lines = list(found.messages)
    if found.pinned:
        lines.append(f"pinned to {found.pinned[:_SHORT]}" + _newer(found))
    if found.attempted and found.attempted != found.commit:
        lines.append(f"attempted: {found.attempted[:_SHORT]}")
    if found.failures:
        lines.append(f"failed {found.failures} times in a row")
    if found.asked_at is not None:
        lines.append(f"asked {_time(found.asked_at)}" + (f", next {_time(found.next_at)}" if found.next_at else ""))
    if found.unsaved:
        lines.append(f"the history cannot be written down: {found.unsaved}")
    return lines


def _newer(found: SourceReport) -> str:
    return f"; {found.ref} is {found.head[:_SHORT]}" if found.head and found.head != found.pinned else ""


def _row(one: Attempt, live: str) -> tuple[str, ...]:
    outcome = (
        one.outcome + (f" ({one.count} times)" if one.count > 1 else "") + (", rewritten" if one.rewritten else "")
    )
    signed = f" (signed: {one.signed_by})" if one.signed_by else ""
    mark = "*" if one.commit.id == live and one.outcome == "applied" else ""
    texts = (mark, one.commit.id[:_SHORT], _time(one.at), one.trigger, outcome, one.commit.author + signed)
    return tuple(map(printable, (*texts, one.commit.subject)))


def _time(unix: float) -> str:
    return datetime.fromtimestamp(unix).astimezone().strftime("%Y-%m-%d %H:%M:%S")
