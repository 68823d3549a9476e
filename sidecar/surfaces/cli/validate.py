"""`sidecar validate`: every problem of manifests, for people, for programs, or as annotations of a pull request."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import click
import msgspec

from sidecar.core.manifest import Problem
from sidecar.core.nodes import EVERY_NODE, counted
from sidecar.mechanism import loader
from sidecar.mechanism.placeholders import ForeignEnvironment
from sidecar.mechanism.source import PLUGIN_FOLDER, content
from sidecar.surfaces.cli.labels import label_option, node_of
from sidecar.surfaces.cli.local import load
from sidecar.surfaces.cli.output import NO, format_option, print_json, print_problems

DEFAULT = Path("manifests")


@click.command()
@click.argument("paths", nargs=-1, metavar="[DIRECTORY | FILE...]", type=click.Path(path_type=Path))
@format_option("For people, for programs, or as annotations of GitHub Actions.", "github")
@click.option("--elsewhere", is_flag=True, help="They are for another machine: variables and secrets need not be here.")
@label_option
def validate(paths: tuple[Path, ...], form: str, elsewhere: bool, labels: tuple[str, ...]) -> None:
    """Check the manifests in DIRECTORY (default: ./manifests): print every problem, exit 1 if there are any.

    A FILE stands for the whole directory that it belongs to, so that hooks can hand over what has changed. Imports the
    plugins. Models are checked whatever nodes they are for; --label counts those that are for others.
    """
    node = node_of(labels) if labels else EVERY_NODE
    environment = ForeignEnvironment(os.environ) if elsewhere else os.environ
    directory = _directory(paths)
    loaded = _not_empty(load(directory, environment, node), directory)
    if form == "json":
        declared = loaded.declaration
        left_out = {name: one.nodes for name, one in declared.elsewhere.items()}
        print_json({"revision": declared.revision, "problems": loaded.problems, "elsewhere": left_out})
    elif form == "github":
        for problem in loaded.problems:
            click.echo(annotation(problem, _workspace()))
        _summarize(loaded)
    else:
        print_problems(_as_known(problem) for problem in loaded.problems)
        _summarize(loaded)
    if loaded.problems:
        raise SystemExit(NO)


def annotation(problem: Problem, workspace: Path) -> str:
    """The problem as a workflow command, which GitHub shows at its line. workspace: files are told relative to it."""
    message = f"{problem.path}: {problem.message}" if problem.path else problem.message
    properties = {"title": "sidecar validate"}
    if problem.file:
        file = Path(problem.file)
        properties["file"] = str(file.relative_to(workspace) if file.is_relative_to(workspace) else file)
    if problem.line:
        properties["line"] = str(problem.line)
    told = ",".join(f"{key}={_escaped(value, ':,')}" for key, value in sorted(properties.items()))
    return f"::error {told}::{_escaped(message)}"


def _not_empty(loaded: loader.Loaded, directory: Path) -> loader.Loaded:
    """What declares nothing at all is hardly what was meant, and would be fine whatever is wrong elsewhere."""
    if loaded.tables or loaded.problems:
        return loaded
    problem = Problem(file=str(directory), message="nothing is declared here: expected manifests (*.toml)")
    return msgspec.structs.replace(loaded, problems=(problem,))


def _as_known(problem: Problem) -> Problem:
    """The problem, with its file as one calls it from here."""
    file, here = Path(problem.file), Path.cwd()
    return msgspec.structs.replace(problem, file=str(file.relative_to(here))) if file.is_relative_to(here) else problem


def _escaped(text: str, more: str = "") -> str:
    for character in f"%\r\n{more}":  # the percent sign first
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def _workspace() -> Path:
    """The folder that annotations are relative to: the checkout's."""
    return Path(os.environ.get("GITHUB_WORKSPACE") or Path.cwd()).absolute()


def _summarize(loaded: loader.Loaded) -> None:
    declared = loaded.declaration
    only_some = sum(any(any(parts) for parts in model.selectors()) for model in declared.models.values())
    some = f", {only_some} of them for some nodes only" if only_some else ""
    left_out = f"; {told}" if (told := counted(declared.elsewhere)) else ""
    fine, problems = len(declared.models), len(loaded.problems)
    are = "model is" if fine == 1 else "models are"
    text = f"{fine} {are} fine{some}, {problems} problem{'' if problems == 1 else 's'}{left_out}"
    click.echo(text, err=bool(loaded.problems))


# --- what hooks hand over -----------------------------------------------------------------------------------------


def _directory(paths: tuple[Path, ...]) -> Path:
    """The one directory that is meant."""
    whole = (path.absolute() for path in paths or (DEFAULT,))
    roots = {path if path.is_dir() or not path.exists() else _root_of(path) for path in whole}
    if len(roots) > 1:
        found = ", ".join(sorted(map(str, roots)))
        raise click.UsageError(f"these belong to several manifest directories ({found}): check one at a time")
    return roots.pop()


def _root_of(file: Path) -> Path:
    """The manifest directory of a file: the nearest above it that has a `[sidecar]`, or `manifests`."""
    folders = [folder for folder in file.parents if folder.name != PLUGIN_FOLDER]
    below = [folder for folder in folders if folder.is_relative_to(Path.cwd())] or folders[:1]
    for folder in below:
        if any(map(_has_settings, sorted(folder.glob("*.toml")))):
            return folder
    if file.is_relative_to(DEFAULT.absolute()):
        return DEFAULT.absolute()
    raise click.UsageError(f"{file}: no folder above it has a [sidecar] table: name the manifest directory itself")


def _has_settings(file: Path) -> bool:
    """A file that cannot be read is nobody's root; if it is in one, it is told there."""
    try:
        return "sidecar" in tomllib.loads(content(file).decode())
    except (OSError, ValueError, RecursionError):
        return False
