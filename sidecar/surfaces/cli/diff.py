"""`sidecar diff A B`: what a merge would start, stop, restart and evict, here or on another machine."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import msgspec

from sidecar.control.review import Side, review
from sidecar.control.trial import Machine
from sidecar.core.manifest import Declaration, Problem
from sidecar.core.nodes import EVERY_NODE, Node, shown
from sidecar.core.review import Fault, Review
from sidecar.mechanism import gittree, loader, source
from sidecar.mechanism.gittree import GitTreeError
from sidecar.mechanism.placeholders import ForeignEnvironment
from sidecar.surfaces.cli.labels import node_of, other_label_option
from sidecar.surfaces.cli.output import NO, fail, format_option, print_json, print_table, prints_aside
from sidecar.surfaces.cli.plan import machine
from sidecar.surfaces.cli.review_markdown import MOST_CHARS, markdown
from sidecar.surfaces.cli.review_tables import headline, notes, sheets
from sidecar.surfaces.snapshot import Snapshot

DEFAULT = "manifests"


class Operand(msgspec.Struct, frozen=True):
    """One side as it was named. revision: "" = a directory of the file system. shown: how its files are told."""

    name: str
    revision: str
    folder: str
    shown: str


@click.command()
@click.argument("a")
@click.argument("b", required=False)
@click.option("--git", "in_git", is_flag=True, help="A and B are revisions. [default for B: the working tree]")
@click.option("--path", help=f"Where the manifests are, with --git. [default: {DEFAULT}]")
@click.option(
    "--against", metavar="FILE", type=click.Path(path_type=Path), help="Try it on the machine that FILE was written on."
)
@format_option("For people, for programs, or as a comment on GitHub.", "markdown")
@click.option(
    "--most-chars",
    type=click.IntRange(min=100),
    help=f"Where to cut --format markdown, which may be one of several in a comment. [default: {MOST_CHARS}]",
)
@click.option(
    "--fail-on",
    type=click.Choice(["problem", "interruption", "change", "nothing"]),
    default="problem",
    show_default=True,
    help="When to exit 1: B has a new problem, or else some server stops or restarts, or else anything changes.",
)
@other_label_option
def diff(
    a: str,
    b: str | None,
    in_git: bool,
    path: str | None,
    against: Path | None,
    form: str,
    most_chars: int | None,
    fail_on: str,
    labels: tuple[str, ...],
) -> None:
    """Tell what comes of the manifests B where A is in force: what starts, stops, restarts and is evicted, and why.

    A and B are directories, or REVISION:DIRECTORY as git has it. It is found out as if it happened, by what decides
    then. Variables and secrets need not be set here.

    \b
    Exit codes: 0 done; 1 what --fail-on says, or it cannot be told; 2 wrong usage.
    """
    if path is not None and not in_git:
        raise click.UsageError("--path goes with --git: otherwise A and B say it themselves")
    if most_chars is not None and form != "markdown":
        raise click.UsageError("--most-chars goes with --format markdown: nothing else is cut")
    sides = _revisions(a, b, path or DEFAULT) if in_git else _operands(a, b)
    elsewhere = None if against is None else machine(against)
    known = {} if elsewhere is None else elsewhere.labels  # this machine's own are no matter
    node = node_of(labels, known) if labels or elsewhere else EVERY_NODE
    found = _reviewed(sides, node, elsewhere)
    if form == "json":
        print_json(found)
    elif form == "markdown":
        click.echo(markdown(found, _where(node), most_chars or MOST_CHARS))
    else:
        _show(found, _where(node))
    if _says_no(found, fail_on):
        raise SystemExit(NO)


# --- what is compared ---------------------------------------------------------------------------------------------


def _revisions(a: str, b: str | None, path: str) -> tuple[Operand, Operand]:
    if Path(path).is_absolute():
        path = os.path.relpath(path)  # in a revision, too, it is what is there in the working tree
    before = Operand(a, a, f"./{path}", path)
    return before, Operand("the working tree", "", path, path) if b is None else Operand(b, b, f"./{path}", path)


def _operands(a: str, b: str | None) -> tuple[Operand, Operand]:
    before = _operand(a)
    if b is not None:
        return before, _operand(b)
    if not before.revision:
        raise click.UsageError("B is missing: say what A is to be compared with")
    return before, Operand("the working tree", "", before.folder, before.folder)


def _operand(text: str) -> Operand:
    revision, colon, folder = text.partition(":")
    if Path(text).is_dir() or not colon:
        return Operand(text, "", text, text)
    return Operand(text, revision, folder or ".", folder or ".")


def _reviewed(sides: tuple[Operand, Operand], node: Node, elsewhere: Snapshot | None) -> Review:
    with _written_out(sides[0]) as first, _written_out(sides[1]) as second:
        if second is None:
            fail(f"{sides[1].name} has no {sides[1].shown}: a sidecar would keep what is in force")
        if first is None:
            click.echo(f"{sides[0].name} has no {sides[0].shown}: all is new", err=True)
        before = _side(sides[0].name, first, node, None)
        after = _side(sides[1].name, second, node, before.loaded.declaration)
        found = review(before, after, _machine(elsewhere))
        return _as_shown(found, after.snapshot.root, sides[1].shown)


@contextlib.contextmanager
def _written_out(side: Operand) -> Iterator[Path | None]:
    """The directory with its manifests; None if the revision has none."""
    if not side.revision:
        yield loader.manifest_folder(side.folder)
        return
    with tempfile.TemporaryDirectory(prefix="sidecar-diff-") as folder:
        try:
            yield gittree.write(side.revision, side.folder, Path(folder).resolve(), Path.cwd())
        except GitTreeError as error:
            fail(str(error))


def _side(name: str, root: Path | None, node: Node, before: Declaration | None) -> Side:
    if root is None:
        empty = source.Snapshot(Path("/nonexistent"), (), (), "", ())
        return Side(name=name, snapshot=empty, loaded=loader.load(empty, ForeignEnvironment(), before, node=node))
    try:
        snapshot = source.read(root)
    except source.SourceError as error:
        fail(str(error))
    with prints_aside():
        loaded = loader.load(snapshot, ForeignEnvironment(), before, node=node)
    return Side(name=name, snapshot=snapshot, loaded=loaded)


def _machine(elsewhere: Snapshot | None) -> Machine | None:
    if elsewhere is None:
        return None
    return Machine(observed=elsewhere.observed(), running=elsewhere.running, now=elsewhere.now)


def _as_shown(found: Review, root: Path, folder: str) -> Review:
    """The review, with files told as the person who asks knows them."""

    def told(text: str) -> str:
        return text.replace(str(root), folder.rstrip("/"))

    below = folder.rstrip("/")
    return msgspec.structs.replace(
        found,
        faults=tuple(
            Fault(problem=_told(fault.problem, told(fault.problem.file), told(fault.problem.message)), new=fault.new)
            for fault in found.faults
        ),
        changes=tuple(
            msgspec.structs.replace(change, file=f"{below}/{change.file}") if change.file else change
            for change in found.changes
        ),
        same_meaning=tuple(f"{below}/{file}" for file in found.same_meaning),
    )


def _told(problem: Problem, file: str, message: str) -> Problem:
    return msgspec.structs.replace(problem, file=file, message=message)


# --- how it is told -----------------------------------------------------------------------------------------------


def _where(node: Node) -> str:
    labels = dict(node.labels or {})
    name = labels.pop("hostname", "")
    return f"{name} ({shown(labels)})" if name and labels else name or shown(labels)


def _show(found: Review, where: str) -> None:
    click.echo(f"{found.before} -> {found.after}{f' on {where}' if where else ''}")
    click.echo(headline(found))
    for sheet in sheets(found):
        print_table(f"\n{sheet.title}", tuple(column.upper() for column in sheet.columns), sheet.rows)
    for note in notes(found):
        click.echo(f"\n{note}")


def _says_no(found: Review, fail_on: str) -> bool:
    """Each level has those before it in it."""
    problem = any(fault.new for fault in found.faults) or not found.at_rest
    levels = {
        "nothing": False,
        "problem": problem,
        "interruption": problem or bool(found.interrupts),
        "change": problem or not found.no_op,
    }
    return levels[fail_on]
