"""Commands that need no running sidecar: `validate`, and `plan DIRECTORY`."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from sidecar.core.observed import Demand, Device, Observed
from sidecar.core.plan import Plan
from sidecar.core.planner import plan as decide
from sidecar.mechanism import loader, source
from sidecar.mechanism.devices import Prober, probe_all
from sidecar.mechanism.plugins import Catalog
from sidecar.surfaces.cli.client import Remote, remote_options
from sidecar.surfaces.cli.output import NO, fail, print_json, print_problems, print_table


@click.command()
@click.argument("directory", default="manifests", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
def validate(directory: Path, as_json: bool) -> None:
    """Check the manifests in DIRECTORY: print every problem, exit 1 if there are any. Imports the plugins."""
    loaded = load(directory)
    if as_json:
        print_json({"revision": loaded.declaration.revision, "problems": loaded.problems})
    else:
        print_problems(loaded.problems)
        models = len(loaded.declaration.models)
        click.echo(f"{models} models are fine, {len(loaded.problems)} problems", err=bool(loaded.problems))
    if loaded.problems:
        raise SystemExit(NO)


@click.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("--want", metavar="MODEL", help="Plan as if somebody asked for MODEL now.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@remote_options
def plan(directory: Path | None, want: str | None, as_json: bool, remote: Remote) -> None:
    """Show what would be done, and why.

    With DIRECTORY: by a sidecar that starts on this machine with these manifests. Without: by the running one.
    """
    if directory is None:
        decided = msgspec.convert(remote.get("/-/plan", {"want": want} if want else {}), Plan)
    else:
        loaded = load(directory)
        print_problems(loaded.problems)
        if not loaded.usable:
            fail("[sidecar] is faulty: there is nothing to plan with")
        decided = plan_offline(loaded, want)
    if as_json:
        print_json(decided)
    else:
        _show(decided)


def load(directory: Path) -> loader.Loaded:
    """Read and check a directory, or exit with the reason."""
    try:
        snapshot = source.read(loader.manifest_folder(str(directory)))
    except source.SourceError as error:
        fail(str(error))
    return loader.load(snapshot, os.environ)


def plan_offline(loaded: loader.Loaded, want: str | None) -> Plan:
    """The first plan of a sidecar that starts now."""
    demands: tuple[Demand, ...] = ()
    if want is not None:
        found = loaded.declaration.find(want)
        if found is None:
            fail(f'there is no model "{want}"')
        demands = (Demand(found[0], 0.0),)
    observed = Observed(devices=asyncio.run(probe(loaded.catalog)), demands=demands)
    return decide(loaded.declaration, observed, time.monotonic())


async def probe(catalog: Catalog) -> tuple[Device, ...]:
    """The devices of this machine, by the device plugins of the manifests."""
    plugins: list[Any] = [loaded.make() for loaded in catalog.loaded.values() if loaded.kind == "device"]
    probers = [Prober(plugin) for plugin in plugins]
    try:
        for plugin in plugins:
            await plugin.open()
        return await probe_all(probers)
    finally:
        for prober in probers:
            prober.close()
        for plugin in plugins:
            await plugin.close()


def _show(decided: Plan) -> None:
    rows = [(type(action).__name__, action.model, action.message) for action in decided.actions]
    if rows:
        print_table("Actions", ("ACTION", "MODEL", "WHY"), rows)
    else:
        click.echo("Nothing to do.")
    conditions = [(name, c.reason, c.message) for name, found in decided.conditions.items() for c in found]
    if conditions:
        print_table("\nModels", ("MODEL", "READY", "BECAUSE"), conditions)
