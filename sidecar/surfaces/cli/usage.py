"""`sidecar usage`: who has used what, and what it costs; of the running sidecar, or of what one has left."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import msgspec

from plugin_sdk import Plugin, PluginError, Reject, Stats, UsageQuery, UsageReport
from sidecar.builtin.usage import Settings, Usage
from sidecar.core.names import printable
from sidecar.mechanism import loader, reports, source
from sidecar.mechanism.services import Host
from sidecar.surfaces.cli.client import Remote, UnreachableError, remote_options
from sidecar.surfaces.cli.names import complete_models
from sidecar.surfaces.cli.output import UNREACHABLE, fail, json_option, print_json, print_table, prints_aside
from sidecar.surfaces.usage import DEFAULT_BY, Question, UsageTable, as_csv, table

_COLUMNS = ("REQUESTS", "FAILED", "REFUSED", "INPUT", "CACHED", "OUTPUT", "HOURS")
_LEAST = Decimal("0.0001")


@click.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option(
    "--by",
    multiple=True,
    metavar="NAME",
    help="What to tell apart, see above; may be repeated. [default: model]",
)
@click.option("--since", default="", metavar="WHEN", help='From then on: "7d" ago, a day, or a time, in UTC.')
@click.option("--until", default="", metavar="WHEN", help="Before then.")
@click.option(
    "--model", default="", metavar="PATTERN", shell_complete=complete_models, help='Only these models, such as "qwen*".'
)
@click.option("--principal", default="", metavar="PATTERN", help="Only of these callers.")
@click.option("--plugin", default="", metavar="NAME", help="The stats plugin that is asked, where several can tell.")
@click.option("--database", type=click.Path(path_type=Path), help="Read this SQLite file, and ask no sidecar.")
@click.option("--csv", "with_commas", is_flag=True, help="Print comma-separated values.")
@json_option
@remote_options
def usage(
    directory: Path | None,
    by: tuple[str, ...],
    database: Path | None,
    with_commas: bool,
    as_json: bool,
    remote: Remote,
    **asked: str,
) -> None:
    """Show what was used, and what it cost.

    Asks the running sidecar, or reads what it left where the manifests in DIRECTORY (default: ./manifests) say. Sums
    are of whole hours (UTC), and of whole days when the rows are gone.

    --by takes model, principal, key, variant, mode, node, hour, day and month; --by all makes one sum of all.
    """
    if with_commas and as_json:
        raise click.UsageError("--csv and --json do not go together")
    if database is not None and (directory is not None or asked["plugin"]):
        raise click.UsageError("--database is read as it is: it takes neither a DIRECTORY nor --plugin")
    question = Question(by=",".join(by) or DEFAULT_BY, **asked)
    found = _of_file(database, question) if database is not None else _found(directory, question, remote)
    if as_json:
        print_json(found)
    elif with_commas:
        click.echo(as_csv(found), nl=False)
    else:
        _show(found)


def _found(directory: Path | None, question: Question, remote: Remote) -> UsageTable:
    try:
        told = {name: text for name, text in msgspec.structs.asdict(question).items() if text}
        return msgspec.convert(remote.ask("GET", "/-/usage", told, timeout_s=reports.DEADLINE_S + 5), UsageTable)
    except UnreachableError as error:
        return _left_behind(directory or Path("manifests"), question, str(error))


def _of_file(path: Path, question: Question) -> UsageTable:
    """What the built-in plugin has written to a file."""
    return _ask(Usage(Settings(path=str(path)), name="usage"), question)


def _left_behind(directory: Path, question: Question, unreachable: str) -> UsageTable:
    """What the plugin that the manifests name tells, though no sidecar runs."""
    try:
        snapshot = source.read(loader.manifest_folder(str(directory)))
    except source.SourceError as error:
        fail(f"{unreachable}; and {error}", UNREACHABLE)
    with prints_aside():
        loaded = loader.load(snapshot, os.environ)
    settings, catalog = loaded.declaration.settings, loaded.catalog
    declared = {*settings.chain, *(name for model in loaded.declaration.models.values() for name in model.chain or ())}
    able = [name for name, one in catalog.loaded.items() if name in declared and _can_report(one.cls)]
    name = question.plugin or next(iter(reports.in_order(able, settings.chain)), "")
    if name not in able:
        faults = [str(fault) for fault in catalog.faults.get(name or "usage", ())]
        why = "; ".join(faults) or f"no plugin {name or 'in use'} there can report usage".replace("  ", " ")
        fail(f"{unreachable}; and {directory}: {why}", UNREACHABLE)
    click.echo(f"{unreachable}; reading what the plugin {name} has left", err=True)
    host = Host(state=Path(settings.state_dir).expanduser())
    try:
        plugin = catalog.loaded[name].make(host.of(name))
    except Exception as error:  # noqa: BLE001 - as in _ask
        fail(f"the plugin {name} cannot be made: {type(error).__name__}: {error}")
    return _ask(plugin, question, host)


def _can_report(cls: type[Plugin[Any]]) -> bool:
    return issubclass(cls, Stats) and cls.report is not Stats.report


def _ask(plugin: Plugin[Any], question: Question, host: Host | None = None) -> UsageTable:
    """What a plugin reports that nobody has opened; exits if there is nothing. host: what it asks others by."""
    try:
        query = question.query(time.time())
    except ValueError as error:
        fail(str(error))
    try:
        return table(plugin.name, query, asyncio.run(_report(plugin, query, host)))
    except Reject as reject:
        fail(f"{reject.message} ({reject.code})")
    except PluginError as error:
        fail(str(error))
    except TimeoutError:
        fail(f"the plugin {plugin.name} did not answer within {reports.DEADLINE_S:g} s: ask for a shorter time")
    except Exception as error:  # noqa: BLE001 - a plugin may raise anything
        fail(f"the plugin {plugin.name} failed: {type(error).__name__}: {error}")


async def _report(plugin: Plugin[Any], query: UsageQuery, host: Host | None) -> UsageReport:
    """What is used of the host is closed in the same loop, since it belongs to that."""
    if not isinstance(plugin, Stats):
        raise PluginError(f"{plugin.name} cannot report")
    try:
        found = plugin.report(query)
        if inspect.isawaitable(found):
            found = await asyncio.wait_for(found, reports.DEADLINE_S)
        return reports.report(found, query)
    finally:
        if host is not None:
            await host.close()


def _show(found: UsageTable) -> None:
    if found.since or found.until:
        click.echo(f"from {found.since or 'the beginning'} until {found.until or 'now'}\n")
    if not found.rows:
        click.echo("Nothing was recorded in that time.")
        return
    unpriced = bool(found.currencies) and found.total["unpriced"] > 0
    names = [name.upper() for name in found.by]
    columns = [*names, *_COLUMNS, *(f"COST {currency}" for currency in found.currencies)]
    groups = [[printable(row[name]) or "-" for name in found.by] for row in found.rows]
    rows = [_row(*one, found.currencies, unpriced=unpriced) for one in zip(groups, found.rows, strict=True)]
    if len(rows) > 1 and found.by:
        rows.append(_row(["all", *[""] * (len(names) - 1)], found.total, found.currencies, unpriced=unpriced))
    print_table("", [*columns, *(["UNPRICED"] if unpriced else [])], rows)


def _row(group: list[str], row: dict[str, Any], currencies: list[str], *, unpriced: bool) -> tuple[str, ...]:
    counts = ("requests", "failed", "refused", "input_tokens", "cached_tokens", "output_tokens")
    hours = f"{row['loaded_s'] / 3600:.2f}" if row["loaded_s"] else ""
    costs = [_money(row["cost"].get(currency)) for currency in currencies]
    left = [str(row["unpriced"] or "")] if unpriced else []
    return (*group, *(f"{row[name]:,}" for name in counts), hours, *costs, *left)


def _money(amount: str | None) -> str:
    """To a hundredth of a cent; what is less than that, and more than nothing, does not look like nothing."""
    if amount is None:
        return ""
    exact = Decimal(amount)
    return f"{exact:,.4f}" if not exact or abs(exact) >= _LEAST else f"<{_LEAST}"
