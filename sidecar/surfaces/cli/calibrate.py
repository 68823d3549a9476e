"""`sidecar calibrate`: what servers took against what is declared, and with --write the manifests put right."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import msgspec

from sidecar.control.measurements import FILE, recorded
from sidecar.core.manifest import Declaration
from sidecar.core.observed import Measured
from sidecar.core.suggest import suggestion
from sidecar.mechanism import edits, loader, source
from sidecar.surfaces.cli.client import Remote, UnreachableError, remote_options
from sidecar.surfaces.cli.names import complete_models
from sidecar.surfaces.cli.output import NO, UNREACHABLE, fail, print_json, print_problems, print_table, prints_aside

_COLUMNS = ("MODEL", "VARIANT", "DEVICE", "DECLARED", "PEAK", "SUGGESTED")
_NOT_HERE = "what was measured is not what is declared here: its command, env, cwd or devices differ"


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """A device requirement of a variant. peak_mb: None = not known. suggested_mb: None = fine as it is."""

    model: str
    variant: str
    device: str
    declared_mb: int
    peak_mb: int | None
    suggested_mb: int | None

    @property
    def lower(self) -> bool:
        """Whether the suggestion only frees memory that lies idle."""
        return self.suggested_mb is not None and self.suggested_mb < self.declared_mb


class Outcome(msgspec.Struct, frozen=True):
    """What became of `--write`. refused: why a suggestion was not taken over."""

    written: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


class Manifests(msgspec.Struct, frozen=True):
    """A directory, read and checked."""

    snapshot: source.Snapshot
    loaded: loader.Loaded

    @property
    def declared(self) -> Declaration:
        """What it declares."""
        return self.loaded.declaration


@click.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("--write", is_flag=True, help="Put what is suggested into the manifests; only the numbers change.")
@click.option("--lower", is_flag=True, help="With --write: also where less would do.")
@click.option("--model", metavar="MODEL", shell_complete=complete_models, help="Only this model.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@remote_options
def calibrate(
    directory: Path | None, write: bool, lower: bool, model: str | None, as_json: bool, remote: Remote
) -> None:
    """Show what servers took at most, what their manifests say, and what those should say.

    Asks the running sidecar, or reads what it left in the state directory of the manifests in DIRECTORY (default:
    ./manifests). --write changes the manifests there; the sidecar then restarts the servers that are concerned.
    """
    manifests = _read(directory) if write else None
    found = _measured(remote, directory, manifests)
    if model is not None:
        found = tuple(one for one in found if one.model == model)
        if not found:
            fail(f'nothing was measured of a model "{model}"')
    outcome = Outcome()
    if manifests is not None:
        found = tuple(_as_declared(one, manifests.declared) for one in found)
        outcome = _write(manifests, found, lower=lower)
    lines = [line for one in found for line in _lines(one)]
    if as_json:
        print_json({"variants": lines, "written": outcome.written, "refused": outcome.refused})
    else:
        _show(lines, outcome, write=write)
    if outcome.refused:
        raise SystemExit(NO)


def _measured(remote: Remote, directory: Path | None, manifests: Manifests | None) -> tuple[Measured, ...]:
    try:
        return msgspec.convert(remote.ask("GET", "/-/measurements", {}, timeout_s=30.0), tuple[Measured, ...])
    except UnreachableError as error:
        unreachable = str(error)
    declared = (manifests or _read(directory, unreachable)).declared
    folder = Path(declared.settings.state_dir).expanduser()
    if not (folder / FILE).exists():
        fail(f"{unreachable}; and there is no {folder / FILE}", UNREACHABLE)
    click.echo(f"{unreachable}; reading {folder / FILE}", err=True)
    try:
        return recorded(folder, declared)
    except (OSError, ValueError) as error:
        fail(f"{folder / FILE} cannot be read: {error}")


def _read(directory: Path | None, unreachable: str = "") -> Manifests:
    """The manifests, or an exit. unreachable: why they are read, if it is in place of asking."""
    try:
        snapshot = source.read(loader.manifest_folder(str(directory or "manifests")))
    except source.SourceError as error:
        if unreachable:
            fail(f"{unreachable}; and {error}", UNREACHABLE)
        fail(str(error))
    with prints_aside():
        loaded = loader.load(snapshot, os.environ)
    if not loaded.usable:
        print_problems(loaded.problems)
        fail("[sidecar] is faulty, or may be in a file that is: nothing is calibrated")
    return Manifests(snapshot, loaded)


def _as_declared(measured: Measured, declared: Declaration) -> Measured:
    """With the memory that the directory declares for it, if it declares it at all."""
    position = _position(measured, declared)
    if position is None:
        return measured
    variant = declared.models[measured.model].variants[position]
    return msgspec.structs.replace(
        measured, variant=variant.name, fingerprint=variant.fingerprint(), declared_mb=dict(variant.needs())
    )


def _position(measured: Measured, declared: Declaration) -> int | None:
    """Where the variant stands that runs just so, whatever its memory_mb; the one of the same name if there are two."""
    model = declared.models.get(measured.model)
    same = [
        position
        for position, variant in enumerate(model.variants if model is not None else ())
        if variant.required_devices
        and set(variant.required_devices) == measured.declared_mb.keys()
        and msgspec.structs.replace(variant, memory_mb=measured.declared_mb).fingerprint() == measured.fingerprint
    ]
    if model is None or not same:
        return None
    return next((position for position in same if model.variants[position].name == measured.variant), same[0])


def _lines(measured: Measured) -> Iterator[Line]:
    suggested = suggestion(measured)
    for device, declared_mb in measured.declared_mb.items():
        yield Line(
            model=measured.model,
            variant=measured.variant,
            device=device,
            declared_mb=declared_mb,
            peak_mb=measured.peak_mb.get(device),
            suggested_mb=suggested.get(device),
        )


def _write(manifests: Manifests, found: Iterable[Measured], *, lower: bool) -> Outcome:
    wanted, refused, written = [], [], []
    for measured in found:
        if memory_mb := _wanted(measured, lower=lower):
            position = _position(measured, manifests.declared)
            if position is None:
                refused.append(f"{measured.model}, {measured.variant}: {_NOT_HERE}")
            else:
                wanted.append(edits.Edit(measured.model, position, memory_mb))
    try:
        changed = edits.prepare(manifests.snapshot, manifests.loaded, os.environ, wanted)
    except edits.EditError as error:
        return Outcome(refused=(*refused, str(error)))
    before = dict(manifests.snapshot.files)
    for name, content in changed.items():
        path = manifests.snapshot.root / name
        try:
            edits.write(path, before[name], content)
            written.append(str(path))
        except edits.EditError as error:
            refused.append(str(error))
    return Outcome(tuple(written), tuple(refused))


def _wanted(measured: Measured, *, lower: bool) -> dict[str, int]:
    """What is suggested, without what could be less unless that is asked for."""
    suggested = suggestion(measured).items()
    return {device: amount for device, amount in suggested if lower or amount > measured.declared_mb[device]}


def _show(lines: list[Line], outcome: Outcome, *, write: bool) -> None:
    if lines:
        print_table("Memory, in MB", _COLUMNS, map(_row, lines))
    else:
        click.echo("Nothing was measured yet.")
    for path in outcome.written:
        click.echo(f"written: {path}")
    for why in outcome.refused:
        click.echo(f"sidecar: not written: {why}", err=True)
    if write and not outcome.written and not outcome.refused:
        click.echo("nothing to write")
    elif not write and any(line.suggested_mb for line in lines):
        click.echo("--write puts what is suggested into the manifests, --lower also what could be less")


def _row(line: Line) -> tuple[str, ...]:
    suggested = (
        "" if line.suggested_mb is None else f"could be {line.suggested_mb}" if line.lower else line.suggested_mb
    )
    peak = "unknown" if line.peak_mb is None else line.peak_mb
    return (line.model, line.variant, line.device, str(line.declared_mb), str(peak), str(suggested))
