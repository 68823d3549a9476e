"""`sidecar plan`: what would be done, and why, by the running sidecar, by one that starts here, or elsewhere."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path

import click
import msgspec
from click.core import ParameterSource

from sidecar.core.manifest import Declaration, Problem
from sidecar.core.names import did_you_mean, listed
from sidecar.core.nodes import Node, counted
from sidecar.core.observed import Demand, Observed
from sidecar.core.plan import Plan
from sidecar.core.planner import plan as decide
from sidecar.core.whatif import as_declared
from sidecar.mechanism import loader
from sidecar.mechanism.placeholders import ForeignEnvironment
from sidecar.surfaces import snapshot
from sidecar.surfaces.cli.client import Remote, remote_options
from sidecar.surfaces.cli.labels import label_option, node_of
from sidecar.surfaces.cli.local import load, probe
from sidecar.surfaces.cli.names import complete_models
from sidecar.surfaces.cli.output import NO, fail, json_option, print_json, print_problems, print_table
from sidecar.surfaces.snapshot import Snapshot, SnapshotError


@click.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option(
    "--want", metavar="MODEL", shell_complete=complete_models, help="Plan as if somebody asked for MODEL now."
)
@click.option(
    "--against", metavar="FILE", type=click.Path(path_type=Path), help="Plan for the machine that FILE was written on."
)
@json_option
@label_option
@remote_options
def plan(
    directory: Path | None,
    want: str | None,
    against: Path | None,
    as_json: bool,
    labels: tuple[str, ...],
    remote: Remote,
) -> None:
    """Show what would be done, and why.

    With DIRECTORY: by a sidecar that starts on this machine with these manifests. With --against as well: on the
    machine that `sidecar devices --json > FILE` was run on, whose servers it takes over. Without: by the running one.

    \b
    Exit codes: 0 done; 1 the manifests in DIRECTORY have problems, without which it is planned; 2 wrong usage; 3 no
    sidecar answers.
    """
    problems: tuple[Problem, ...] = ()
    if directory is not None:
        _refuse_remote()
        decided, problems = _decided(directory, want, against, labels)
    elif against or labels:
        raise click.UsageError("--against and --label need a DIRECTORY: the running sidecar plans for its own machine")
    else:
        decided = msgspec.convert(remote.get("/-/plan", {"want": want} if want else {}), Plan)
        if left_out := remote.get("/-/status")["elsewhere"]:
            click.echo(f"not for this node: {listed(left_out)}", err=True)
    if as_json:
        print_json(decided)
    else:
        _show(decided)
    if problems:
        raise SystemExit(NO)


def _refuse_remote() -> None:
    """Variables may be set for other commands; an option was meant."""
    context = click.get_current_context()
    for name in ("url", "token"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} is about the running sidecar, which plans without a DIRECTORY")


def machine(against: Path) -> Snapshot:
    """The snapshot of a machine, or exit with what is wrong with it."""
    try:
        return snapshot.read(against)
    except SnapshotError as error:
        fail(str(error))


def _decided(
    directory: Path, want: str | None, against: Path | None, labels: tuple[str, ...]
) -> tuple[Plan, tuple[Problem, ...]]:
    elsewhere = None if against is None else machine(against)
    node = node_of(labels, None if elsewhere is None else elsewhere.labels)
    loaded = _loaded(directory, os.environ if elsewhere is None else ForeignEnvironment(), node)
    declared = loaded.declaration
    if elsewhere is None:
        observed, now = Observed(devices=asyncio.run(probe(loaded.catalog))), time.monotonic()
    else:
        observed, now = elsewhere.observed(), elsewhere.now
        observed = _at_a_start(observed, declared)
    return decide(declared, _wanting(declared, observed, want, now), now), loaded.problems


def _at_a_start(observed: Observed, declared: Declaration) -> Observed:
    """What a sidecar finds that starts there: servers to take over; what operators told the one before is over."""
    return msgspec.structs.replace(
        observed,
        servers=as_declared(observed.servers, declared),
        auto_started=frozenset(server.model for server in observed.servers),
        pinned=frozenset(),
        drained=frozenset(),
    )


def _loaded(directory: Path, environment: Mapping[str, str], node: Node) -> loader.Loaded:
    loaded = load(directory, environment, node)
    print_problems(loaded.problems)
    if not loaded.usable:
        fail("[sidecar] is faulty: there is nothing to plan with")
    if elsewhere := counted(loaded.declaration.elsewhere):
        click.echo(f"{elsewhere} (this one: {node})", err=True)
    return loaded


def _wanting(declared: Declaration, observed: Observed, want: str | None, now: float) -> Observed:
    if want is None:
        return observed
    found = declared.find(want)
    if found is None:
        nodes = next((one.nodes for name, one in declared.elsewhere.items() if want in (name, *one.aliases)), "")
        fail(f'"{want}" is for other nodes: {nodes}' if nodes else f'there is no model "{want}"{_near(declared, want)}')
    return msgspec.structs.replace(observed, demands=(Demand(found[0], now),))


def _near(declared: Declaration, name: str) -> str:
    return did_you_mean(name, [known for model, one in declared.models.items() for known in (model, *one.aliases)])


def _show(decided: Plan) -> None:
    rows = [(type(action).__name__, action.model, action.message) for action in decided.actions]
    if rows:
        print_table("Actions", ("ACTION", "MODEL", "WHY"), rows)
    else:
        click.echo("Nothing to do.")
    conditions = [(name, c.reason, c.message) for name, found in decided.conditions.items() for c in found]
    if conditions:
        print_table("\nModels", ("MODEL", "READY", "BECAUSE"), conditions)
