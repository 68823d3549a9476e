"""`sidecar fmt`: lays manifests out."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import msgspec

from sidecar.core.manifest import Problem
from sidecar.mechanism import edits, source
from sidecar.mechanism.formatting import FormatError, formatted
from sidecar.surfaces.cli.output import NO, fail, print_json, print_problems

_STDIN = "-"


class Outcome(msgspec.Struct, frozen=True):
    """What became of the files. changed: those that were, or have to be, laid out anew."""

    changed: tuple[str, ...]
    unchanged: int
    problems: tuple[Problem, ...]


class _File(msgspec.Struct, frozen=True):
    path: Path
    before: bytes
    after: bytes


@click.command()
@click.argument("paths", nargs=-1, metavar="[FILE|DIR|-]...")
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if something would be.")
@click.option("--diff", is_flag=True, help="Change nothing; print what would be.")
@click.option("--json", "as_json", is_flag=True, help="Print what became of the files, as JSON.")
def fmt(paths: tuple[str, ...], check: bool, diff: bool, as_json: bool) -> None:
    """Lay out manifests: spaces, indents and blank lines. Comments, order and meaning stay.

    A directory (default: ./manifests) stands for all manifests below it, - for a manifest on standard input, which is
    printed. Files that cannot be read are told and left alone.
    """
    if diff and as_json:
        raise click.UsageError("--diff and --json cannot be had together: --check --json names the files")
    if _STDIN in paths:
        if len(paths) > 1 or diff or as_json:
            raise click.UsageError("- cannot be had together with files, --diff or --json")
        _standard_input(check)
        return
    problems: list[Problem] = []
    files = list(_laid_out(_files(paths or ("manifests",)), problems))
    changed = [file for file in files if file.after != file.before]
    if diff:
        for file in changed:
            click.echo("".join(_difference(file)), nl=False)
    elif not check:
        changed = list(_written(changed, problems))
    outcome = Outcome(tuple(str(file.path) for file in changed), len(files) - len(changed), tuple(problems))
    _tell(outcome, would=check or diff, as_json=as_json, quiet=diff)
    if problems or (check and changed):
        raise SystemExit(NO)


def _standard_input(check: bool) -> None:
    before = sys.stdin.buffer.read(source.MAX_FILE_BYTES + 1)
    try:
        if len(before) > source.MAX_FILE_BYTES:
            raise FormatError(f"is larger than {source.MAX_FILE_BYTES // 2**20} MiB, which no manifest is")
        after = formatted(before)
    except FormatError as error:
        print_problems([Problem(file="<stdin>", line=error.line, message=str(error))])
        raise SystemExit(NO) from None
    if not check:
        sys.stdout.buffer.write(after)
        sys.stdout.buffer.flush()
    elif after != before:
        fail("standard input would be laid out anew")


def _files(paths: Iterable[str]) -> list[Path]:
    """The files that are meant, each once."""
    found: dict[Path, Path] = {}
    for name in paths:
        path = Path(name)
        if path.is_dir():
            try:
                below = [path / entry[0] for entry in source.signature(path)]
            except source.SourceError as error:
                fail(str(error))
        else:
            below = [path]
        for file in below:
            found.setdefault(file.absolute(), file)
    return list(found.values())


def _laid_out(paths: Iterable[Path], problems: list[Problem]) -> Iterator[_File]:
    for path in paths:
        try:
            before = source.content(path)
            yield _File(path, before, formatted(before))
        except FormatError as error:
            problems.append(Problem(file=str(path), line=error.line, message=str(error)))
        except OSError as error:
            problems.append(Problem(file=str(path), message=f"cannot be read: {error.strerror or error}"))


def _written(files: Iterable[_File], problems: list[Problem]) -> Iterator[_File]:
    for file in files:
        try:
            edits.write(file.path, file.before, file.after)
            yield file
        except edits.EditError as error:
            problems.append(Problem(file=str(file.path), message=f"stays as it is: {error}"))


def _difference(file: _File) -> Iterator[str]:
    before, after = (text.decode().splitlines(keepends=True) for text in (file.before, file.after))
    for line in difflib.unified_diff(before, after, str(file.path), str(file.path)):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _tell(outcome: Outcome, *, would: bool, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json(outcome)
        return
    print_problems(outcome.problems)
    if quiet:
        return
    for name in outcome.changed:
        click.echo(f"{name}: {'would be laid out anew' if would else 'laid out anew'}")
    click.echo(f"{len(outcome.changed)} changed, {outcome.unchanged} as they should be", err=True)
