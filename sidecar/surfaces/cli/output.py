"""How the command line speaks: JSON for programs, tables for people, problems one to a line on stderr."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sidecar.core.manifest import Problem

NO, UNREACHABLE = 1, 3
_PIPE_WIDTH = 240

F = TypeVar("F", bound=Callable[..., Any])


def prints_aside() -> contextlib.AbstractContextManager[object]:
    """Around what runs plugins: what they print goes to stderr, for stdout is the command's own, and may be JSON."""
    return contextlib.redirect_stdout(sys.stderr)


def json_option(command: F) -> F:
    """Adds --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print what a program can read: JSON.")(command)


def format_option(help_text: str, *forms: str) -> Callable[[F], F]:
    """Adds --format, with `text` and `json` among its forms, and --json for the latter; hands the command a `form`."""

    def add(command: F) -> F:
        @click.option(
            "--format", "form", type=click.Choice(["text", "json", *forms]), help=f"{help_text} [default: text]"
        )
        @click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
        @functools.wraps(command)
        def with_form(*args: Any, form: str | None, as_json: bool, **kwargs: Any) -> Any:
            if as_json and form not in (None, "json"):
                raise click.UsageError(f"--json and --format {form} cannot be had together")
            return command(*args, form="json" if as_json else form or "text", **kwargs)

        return with_form  # type: ignore[return-value] # click's options are attributes of it, its type is the same

    return add


def print_json(value: Any) -> None:
    """Any struct or plain value, indented."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, stderr: bool = False) -> None:
    """A table as wide as the terminal; wide where there is none, so that pipes get whole lines."""
    console = Console(stderr=stderr)
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH, stderr=stderr)
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text, since brackets in messages are no markup
    console.print(table)


def print_problems(problems: Iterable[Problem]) -> None:
    """One to a line, `file:line: path: message`, as editors and compilers have it."""
    for problem in problems:
        click.echo(str(problem), err=True)


def fail(message: str, code: int = NO) -> NoReturn:
    """Say why on stderr and exit."""
    click.echo(f"sidecar: {message}", err=True)
    raise SystemExit(code)
