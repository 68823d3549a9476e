"""`sidecar import`: manifests from what another gateway is configured with, and what could not be carried over."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import msgspec

from sidecar.core.manifest import Problem
from sidecar.mechanism import loader, rules, source
from sidecar.mechanism.importing import litellm, llama_swap, llm_manager, llm_one_api, ollama
from sidecar.mechanism.importing.account import Entry, Fate
from sidecar.mechanism.importing.draft import Imported, Options
from sidecar.mechanism.importing.reading import MOST_BYTES, InputError, Tree, read
from sidecar.mechanism.importing.writing import WriteError, write
from sidecar.surfaces.cli.output import NO, UNREACHABLE, fail, print_json, print_problems, print_table

Convert = Callable[[Tree, Options], Imported]
Command = Callable[..., Any]

_UNSET = "http://unset.invalid"  # stands for variables that are not set here: it passes for an address, too


class How(msgspec.Struct, frozen=True):
    """The options that all sources have. out: None = print."""

    out: Path | None
    force: bool
    as_json: bool
    everything: bool
    device: str
    listen: str

    def options(self, folder: Path) -> Options:
        """For the importers. folder: where the input's relative paths begin."""
        return Options(environment=os.environ, device=self.device, listen=self.listen, folder=str(folder.absolute()))


@click.group("import")
def import_() -> None:
    """Write manifests from what another gateway is configured with.

    \b
    Every setting of the input is either carried, carried in another way, or
    listed with the reason why it is not, and what to do about it. Keys never
    stand in what is written: those of clients become hashes, and those of
    servers variables that have to be set.
    """


def _address(context: click.Context, parameter: click.Parameter, value: str) -> str:
    del context, parameter
    try:
        if value:
            rules.listen_address(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value


def _shared(command: Command) -> Command:
    options = [
        click.option(
            "--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Write them there."
        ),
        click.option("--force", is_flag=True, help="Overwrite files that are there."),
        click.option("--json", "as_json", is_flag=True, help="Print files and report as JSON."),
        click.option("--all", "everything", is_flag=True, help="Also tell what was carried, and where to."),
        click.option("--device", default="nvidia", show_default=True, help="What servers run on, if nothing tells it."),
        click.option("--listen", default="", callback=_address, metavar="HOST:PORT", help="The sidecar's address."),
    ]

    def wrapped(
        out: Path | None, force: bool, as_json: bool, everything: bool, device: str, listen: str, **rest: Any
    ) -> None:
        command(how=How(out, force, as_json, everything, device, listen), **rest)  # by name, as click gives them

    wrapped.__doc__ = command.__doc__
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def _from_file(name: str, convert: Convert, doc: str, *, core: bool = False) -> None:
    """Add the command of a source that is a file."""

    def command(file: Path, how: How) -> None:
        folder = Path() if str(file) == "-" else file.parent
        carry_out(lambda: convert(_read(file, core=core), how.options(folder)), how)

    command.__doc__ = doc
    with_file = click.argument("file", type=click.Path(path_type=Path, allow_dash=True))(_shared(command))
    import_.command(name)(with_file)


_from_file(
    "llama-swap", llama_swap.convert, "From llama-swap's config.yaml. FILE may be - for standard input.", core=True
)
_from_file("litellm", litellm.convert, "From the config.yaml of LiteLLM's proxy. FILE may be - for standard input.")
_from_file(
    "llm-manager", llm_manager.convert, "From LLM-Manager's config.json or config.yaml, and the scripts it names."
)
_from_file("llm-one-api", llm_one_api.convert, "From LLM One API's config.yaml. FILE may be - for standard input.")


@_shared
def _ollama(url: str, how: How) -> None:
    """From a running Ollama: its models, which it goes on running."""
    carry_out(lambda: ollama.convert(ollama.fetch(url.rstrip("/")), how.options(Path())), how)


import_.command("ollama")(
    click.option("--url", default="http://127.0.0.1:11434", show_default=True, help="Where Ollama answers.")(_ollama)
)


def _read(file: Path, *, core: bool) -> Tree:
    if str(file) == "-":
        return read("-", sys.stdin.buffer.read(MOST_BYTES + 1), core=core)
    try:
        with file.open("rb") as stream:
            return read(str(file), stream.read(MOST_BYTES + 1), core=core)
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror or error}")


def carry_out(convert: Callable[[], Imported], how: How) -> None:
    """Make manifests, check them as `sidecar validate` would, and write or print them with their report."""
    try:
        imported = convert()
    except InputError as error:
        fail(str(error))
    except ollama.UnreachableError as error:
        fail(str(error), UNREACHABLE)
    written: list[Path] = []
    try:
        problems = _check(imported, how.out or Path("manifests"))
        if how.out is not None:
            written = write(how.out, imported.files, force=how.force)
    except WriteError as error:
        fail(f"nothing was written: {error}")
    if how.as_json:
        print_json({**msgspec.to_builtins(imported), "problems": problems, "written": [str(path) for path in written]})
    else:
        _show(imported, how, written)
        print_problems(problems)
    if problems:
        raise SystemExit(NO)


def _check(imported: Imported, folder: Path) -> list[Problem]:
    """What `sidecar validate` would say, once the variables are set."""
    with tempfile.TemporaryDirectory() as name:
        draft = Path(name).resolve()
        write(draft, imported.files)
        environment = dict.fromkeys(imported.variables, _UNSET) | dict(os.environ)
        loaded = loader.load(source.read(draft), environment)
        unset = [f"environment variable {variable} is not set" for variable in imported.variables]
        return [
            msgspec.structs.replace(problem, file=problem.file.replace(str(draft), str(folder)))
            for problem in loaded.problems
            if not any(text in problem.message for text in unset)
        ]


def _show(imported: Imported, how: How, written: Iterable[Path]) -> None:
    if how.out is None:
        for name, text in imported.files.items():
            click.echo(f"# --- {name}\n{text}")
    for path in written:
        click.echo(f"written: {path}")
    _report(imported, how)


def _report(imported: Imported, how: How) -> None:
    """What is left for a person, on stderr if the manifests are on stdout."""
    stderr = how.out is None
    count = Counter(entry.fate for entry in imported.entries)
    models = sum(name.startswith("models/") for name in imported.files)
    shown = [entry for entry in imported.entries if how.everything or entry.fate is Fate.LEFT or entry.do]
    if shown:
        columns = ("LINE", "SETTING", "", "WHERE, OR WHY NOT", "TO DO")
        print_table("Settings", columns, map(_row, shown), stderr=stderr)
    for name, what in imported.variables.items():
        click.echo(f"set {name}: {what}", err=stderr)
    for note in imported.notes:
        click.echo(f"note: {note}", err=stderr)
    click.echo(
        f"{models} models; of the settings {count[Fate.CARRIED]} are carried, {count[Fate.CHANGED]} in another way, "
        f"and {count[Fate.LEFT]} are not",
        err=stderr,
    )


def _row(entry: Entry) -> tuple[str, ...]:
    line = str(entry.line) if entry.line else ""
    told = "; ".join(text for text in (entry.to, entry.why) if text)
    return (
        line,
        entry.path,
        {Fate.CHANGED: "changed", Fate.CARRIED: "carried", Fate.LEFT: "left"}[entry.fate],
        told,
        entry.do,
    )
