"""`sidecar doctor`: what keeps a sidecar from doing well on this machine, with these manifests, and what would help."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from sidecar.core.nodes import Node
from sidecar.mechanism import bootstrap, loader, source
from sidecar.mechanism.bootstrap import BootstrapError
from sidecar.mechanism.checkouts import live_manifests
from sidecar.surfaces.cli.client import DEFAULT_URL, AnswerError, Remote, UnreachableError, declared_url, remote_options
from sidecar.surfaces.cli.git_options import FOLDER
from sidecar.surfaces.cli.labels import label_option, node_of
from sidecar.surfaces.cli.local import probe
from sidecar.surfaces.cli.output import NO, json_option, print_json, print_problems, print_table, prints_aside
from sidecar.surfaces.doctor.checks import CHECKS
from sidecar.surfaces.doctor.examine import examine
from sidecar.surfaces.doctor.finding import Finding, Level, Patient, Running
from sidecar.surfaces.report import PluginReport

T = TypeVar("T")


class _Status(msgspec.Struct, frozen=True):
    """As much of a status as any version has."""

    version: str
    problems: tuple[str, ...] = ()
    plugins: tuple[PluginReport, ...] = ()
    rounds: int = 0
    errors: int = 0


@click.command()
@click.argument("directory", default="manifests", type=click.Path(path_type=Path))
@click.option(
    "--timeout",
    "patience_s",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    help="Seconds, after which a check is given up.",
)
@label_option
@click.option("--only", multiple=True, type=click.Choice(list(CHECKS)), help="Only this check; may be repeated.")
@json_option
@remote_options
def doctor(
    directory: Path, patience_s: float, labels: tuple[str, ...], only: tuple[str, ...], as_json: bool, remote: Remote
) -> None:
    """Look for whatever keeps a sidecar with the manifests in DIRECTORY from doing well here, and say what would help.

    A bootstrap file instead of DIRECTORY means the commit of its repository that was in force here last. Exits 1 if
    anything fails. A check that hangs is given up and told as unknown.
    """
    checks = {name: check for name, check in CHECKS.items() if not only or name in only}
    findings = examine(_patient(directory, node_of(labels), patience_s, remote), checks)
    if as_json:
        print_json({"findings": findings, "counts": _counts(findings)})
    else:
        _show(findings)
    sys.stdout.flush()
    sys.stderr.flush()
    if any(finding.level is Level.FAIL for finding in findings):
        os._exit(NO)  # not by an exception: threads that hang in a driver would be waited for
    os._exit(0)


def _patient(directory: Path, node: Node, patience_s: float, remote: Remote) -> Patient:
    try:
        root = _root(directory)
    except BootstrapError as error:
        print_problems(error.problems)
        sys.exit(NO)
    with prints_aside():
        loaded, unread = _within(patience_s, lambda: loader.load(source.read(root), os.environ, node=node))
    devices, unprobed = None, "the manifests cannot be read"
    if loaded is not None:
        catalog = loaded.catalog
        devices, unprobed = _within(patience_s, lambda: asyncio.run(probe(catalog)))
    if directory.is_file() and remote.url == DEFAULT_URL:  # it was looked for in manifests, which stand elsewhere
        remote.url = declared_url(root) or DEFAULT_URL
    running, refusal = _running(remote, patience_s)
    return Patient(
        root=root,
        environment=os.environ,
        loaded=loaded,
        unread=unread,
        devices=devices,
        unprobed=unprobed,
        running=running,
        refusal=refusal,
        patience_s=patience_s,
    )


def _root(directory: Path) -> Path:
    """Where the manifests are. Raises BootstrapError."""
    if not directory.is_file():
        return loader.manifest_folder(str(directory))
    declared = bootstrap.read(directory, {})
    return live_manifests(Path(declared.state_dir) / FOLDER, declared)


def _running(remote: Remote, patience_s: float) -> tuple[Running | None, str]:
    """The sidecar that answers, or why it does not tell; neither if there is none."""
    try:
        found = msgspec.convert(remote.request("GET", "/-/status", {}, patience_s), _Status)
    except UnreachableError:
        return None, ""
    except (AnswerError, msgspec.ValidationError) as error:
        return None, str(error)
    told = Running(
        version=found.version,
        url=remote.url,
        rounds=found.rounds,
        errors=found.errors,
        problems=found.problems,
        plugins={plugin.name: plugin.problem for plugin in found.plugins if plugin.problem},
    )
    return told, ""


def _within(patience_s: float, work: Callable[[], T]) -> tuple[T | None, str]:
    """What comes of it, or why nothing does, be it that a plugin or a driver hangs."""
    done: list[T] = []
    why = [f"no answer within {patience_s:g} s"]

    def run() -> None:
        try:
            done.append(work())
        except Exception as error:  # noqa: BLE001 - whatever it is, a check tells it
            why[0] = str(error) if isinstance(error, source.SourceError) else f"{type(error).__name__}: {error}"

    thread = threading.Thread(target=run, name="doctor", daemon=True)
    thread.start()
    thread.join(patience_s)
    return (done[0], "") if done else (None, why[0])


def _counts(findings: list[Finding]) -> dict[str, int]:
    return {level.value: sum(finding.level is level for finding in findings) for level in Level}


def _show(findings: list[Finding]) -> None:
    rows = [(finding.level.value, finding.check, finding.message) for finding in findings]
    print_table("", ("", "CHECK", "FINDING"), rows)
    remedies = [finding for finding in findings if finding.remedy]
    if remedies:
        click.echo("\nWhat would help:")
    for finding in remedies:
        click.echo(f"  {finding.check}: {finding.remedy}")
    click.echo("\n" + ", ".join(f"{count} {level}" for level, count in _counts(findings).items()))
