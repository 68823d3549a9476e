"""`sidecar run` on a git repository: its options, and the source that they, or a bootstrap file, describe."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from sidecar.control.gitsource import GitSource
from sidecar.core.manifest import Declaration
from sidecar.core.nodes import Node
from sidecar.core.sourcing import GitDeclaration, shown
from sidecar.mechanism import bootstrap, loader
from sidecar.mechanism.bootstrap import BootstrapError
from sidecar.mechanism.git import Git, GitError
from sidecar.mechanism.lock import StateDir, StateDirError
from sidecar.mechanism.source import RejectedError, Snapshot, SourceError
from sidecar.mechanism.sources import Library
from sidecar.surfaces.cli.output import fail, print_problems

F = TypeVar("F", bound=Callable[..., Any])

TOKEN, WEBHOOK_SECRET = "SIDECAR_GIT_TOKEN", "SIDECAR_WEBHOOK_SECRET"
FOLDER = "source"  # of the state directory, for clone and checkouts
_OPTIONS = ("git", "ref", "path", "interval", "state_dir")


def git_options(command: F) -> F:
    """Adds the options, and hands the command a `declared`: the repository that is meant, None for a directory."""

    @click.option("--git", metavar="URL", help="Run the manifests of a git repository instead of a directory's.")
    @click.option("--ref", help="Its branch, tag or commit.  [default: HEAD, the server's default branch]")
    @click.option("--path", help="The folder in it that holds the manifests.  [default: all of it]")
    @click.option("--interval", help="How often to ask it; 0s = when told to.  [default: 60s]")
    @click.option("--state-dir", help="Where to keep clone and checkouts.  [default: ~/.local/state/sidecar]")
    @functools.wraps(command)
    def with_source(*args: Any, directory: Path, **kwargs: Any) -> Any:
        given = {key: value for key in _OPTIONS if (value := kwargs.pop(key)) is not None}
        named = click.get_current_context().get_parameter_source("directory") is not click.core.ParameterSource.DEFAULT
        return command(*args, directory=directory, declared=_declared(directory, named, given), **kwargs)

    return with_source  # type: ignore[return-value] # click's options are attributes of the function, its type is the same


def _declared(directory: Path, named: bool, given: dict[str, str]) -> GitDeclaration | None:
    is_file = named and directory.is_file()
    if named and not is_file and "git" in given:
        raise click.UsageError(f"the manifests are either in {directory} or in a repository (--git)")
    if not is_file and "git" not in given:
        if given:
            raise click.UsageError(f"--{next(iter(given)).replace('_', '-')} needs --git, or a bootstrap file")
        return None
    try:
        if is_file:
            return bootstrap.read(directory, given)
        secrets = {"token": TOKEN, "webhook_secret": WEBHOOK_SECRET}
        options = {key: f"--{key.replace('_', '-')}" for key in _OPTIONS} | secrets
        known = {key: {"env": name} for key, name in secrets.items() if os.environ.get(name)}
        return bootstrap.from_options({**known, **given}, options)
    except BootstrapError as error:
        print_problems(error.problems)
        fail("the source is not told well enough: nothing is started")


def git_source(runner: asyncio.Runner, declared: GitDeclaration, node: Node) -> tuple[GitSource, StateDir]:
    """The source, with a checkout to begin with, and the lock on its folder; exits with the reason if there is none."""

    def check(snapshot: Snapshot, before: Declaration | None, library: Library) -> loader.Loaded:
        return loader.load(snapshot, os.environ, before, library, node)

    try:
        state = StateDir(Path(declared.state_dir) / FOLDER)
        found = GitSource(declared, state.path, Git(declared, os.environ), check)
        runner.run(_first(found))
    except StateDirError as error:
        fail(str(error))
    except RejectedError as error:
        print_problems(error.problems)
        fail(f"{error}, and there is none before it: nothing is started")
    except (GitError, SourceError) as error:
        fail(f"{shown(declared)}: {error}, and there is no checkout yet: nothing is started")
    except OSError as error:
        fail(f"{declared.state_dir}: {error}")
    return found, state


async def _first(found: GitSource) -> None:
    """SIGTERM must not leave a git behind, which is in a session of its own."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await found.first()
    except asyncio.CancelledError:
        fail("ended before there was a checkout")
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
