"""`sidecar plugin`: what plugin authors and those who run plugins need to know."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

import plugin_sdk
from plugin_sdk import Plugin
from plugin_sdk.config import schema
from plugin_sdk.kinds import settings_of
from sidecar.core.manifest import PluginDeclaration
from sidecar.mechanism import finding
from sidecar.mechanism.annotations import doubts_of
from sidecar.mechanism.calls import runs_inline
from sidecar.mechanism.finding import Found
from sidecar.mechanism.fulfil import KINDS, ON_LOOP, methods_of
from sidecar.mechanism.places import shown
from sidecar.mechanism.plugins import BUILTIN, BUILTIN_CHAIN, PluginFault, fit
from sidecar.mechanism.plugins import WITH_SETTINGS as WITH_SETTINGS  # for the tests of the documents, too
from sidecar.mechanism.source import PLUGIN_FOLDER
from sidecar.mechanism.sources import Library
from sidecar.surfaces.cli import scaffold
from sidecar.surfaces.cli.client import Remote, remote_options
from sidecar.surfaces.cli.output import NO, fail, json_option, print_json, print_table
from sidecar.surfaces.plugins_api import PluginDetails

_NAMED = {**BUILTIN, **BUILTIN_CHAIN, **WITH_SETTINGS}
_COLUMNS = ("PLUGIN", "KIND", "FROM", "GEN", "ON ERROR", "RUNS", "FAILED", "BLOCKED", "P50 MS", "P95 MS", "STATE")

_beside = click.option(
    "--plugins",
    "folder",
    default=Path("manifests") / PLUGIN_FOLDER,
    show_default=True,
    type=click.Path(path_type=Path),
    help="The folder of drop-in files, for import paths.",
)


@click.group()
def plugin() -> None:
    """Write, check and watch plugins."""


@plugin.command(name="list")
@click.option(
    "--json", "as_json", is_flag=True, help="Print everything, as JSON, with the JSON Schema of the settings."
)
@remote_options
def list_(as_json: bool, remote: Remote) -> None:
    """Show the plugins of the running sidecar: where from, how they do, what went wrong last."""
    answer = remote.get("/-/plugins")
    if as_json:
        print_json(answer)
        return
    found = msgspec.convert(answer, tuple[PluginDetails, ...])
    print_table("Plugins", _COLUMNS, map(_row, found))
    for one in found:
        if one.last_error:
            click.echo(f"\nThe last error of {one.name}:\n{one.last_error.rstrip()}")


@plugin.command()
@click.argument("target", metavar="PATH|IMPORT")
@click.option("--config", metavar="JSON", help="Settings to check, as in the manifest, but as JSON.")
@json_option
@_beside
def check(target: str, config: str | None, as_json: bool, folder: Path) -> None:
    """Load a file, a package or an import path as the sidecar would; print every fault, exit 1 if there are any."""
    settings = _settings(config)
    found, broken = _find(target, folder)
    faults = [_told(fault, target) for fault in broken]
    fit_ones = []
    for one in found:
        wrong = [_told(fault, _place(one)) for fault in _unfit(one, settings)]
        faults += wrong
        fit_ones += [] if wrong else [one]
    if as_json:
        print_json(
            {"plugins": [{"name": one.cls.__name__, "place": _place(one)} for one in fit_ones], "faults": faults}
        )
    else:
        for fault in faults:
            click.echo(f"{fault.place}: {fault.message}", err=True)
        for one in fit_ones:
            click.echo("\n".join(_shown(one, config is not None)))
        if faults:
            click.echo(f"{len(faults)} {'fault' if len(faults) == 1 else 'faults'}", err=True)
    if faults:
        raise SystemExit(NO)
    if not found:
        fail(f"{target} has no plugin: a class derived from one of {', '.join(kind.__name__ for kind in KINDS)}")


@plugin.command()
@click.argument("kind", type=click.Choice(list(scaffold.KINDS)))
@click.argument("name")
@click.argument("folder", required=False, metavar="[DIR]", type=click.Path(path_type=Path))
@click.option("--package", is_flag=True, help="Add a pyproject.toml with the entry point; DIR is then NAME by default.")
@json_option
def new(kind: str, name: str, folder: Path | None, package: bool, as_json: bool) -> None:
    """Write a plugin that works, with its test and its table for a manifest, into DIR (default: manifests/plugins)."""
    if why_not := scaffold.fault_of_name(name):
        fail(why_not)
    folder = folder or (Path(name) if package else Path("manifests") / PLUGIN_FOLDER)
    texts = scaffold.files(kind, name, package=package)
    try:
        scaffold.write(folder, texts)
    except OSError as error:
        fail(str(error))
    if as_json:
        print_json({"files": [str(folder / file) for file in texts]})
        return
    for file in texts:
        click.echo(f"wrote {folder / file}")
    click.echo(f"next: python -m pytest {folder / f'test_{name}.py'}; sidecar plugin check {folder / f'{name}.py'}")
    click.echo(f"then: put {folder / f'{name}.toml'} into a manifest" + ("; pip install it" if package else ""))


@plugin.command()
@click.argument("name", required=False)
@_beside
def docs(name: str | None, folder: Path) -> None:
    """Print the reference: of all kinds, or of NAME: a kind, a built-in, a file, or an import path."""
    if name is None:
        for kind in KINDS:
            click.echo("\n".join(_kind(kind)) + "\n")
        click.echo("Built-ins: " + ", ".join(sorted(_NAMED)))
        return
    kinds = {kind.kind: kind for kind in KINDS}
    if name in kinds:
        click.echo("\n".join(_kind(kinds[name])))
        return
    found, broken = _find(_NAMED.get(name, name), folder)
    for fault in (_told(fault, name) for fault in broken):
        click.echo(f"{fault.place}: {fault.message}", err=True)
    for one in found:
        click.echo("\n".join(_reference(one)))
    if broken:
        raise SystemExit(NO)


def _row(one: PluginDetails) -> tuple[str, ...]:
    origin = one.origin if one.origin != "drop-in file" else f"{one.file}:{one.line}"
    spent = ("" if value is None else f"{value:g}" for value in (one.p50_ms, one.p95_ms))
    state = one.state.splitlines()[0] + (f" ({one.dropped} outcomes dropped)" if one.dropped else "")
    numbers = (str(one.runs), str(one.failed), str(one.blocked), *spent)
    return (one.name, one.kind, origin, str(one.generation), one.on_error, *numbers, state)


# --- finding and checking ---------------------------------------------------------------------------------------


def _settings(config: str | None) -> dict[str, Any]:
    try:
        settings = json.loads(config or "{}")
    except ValueError as error:
        raise click.BadParameter(f"is not JSON: {error}", param_hint="--config") from None
    if not isinstance(settings, dict):
        raise click.BadParameter("expected a JSON object", param_hint="--config")
    return settings


def _find(target: str, folder: Path) -> tuple[list[Found], list[PluginFault]]:
    """The plugins of a file, a package or an import path, and what is wrong with those that cannot be used."""
    library = Library()
    try:
        if ":" in target:
            library.read(folder.absolute())
            return [finding.resolve(target, library)], []
        path = Path(target).absolute()
        if not path.exists():
            raise PluginFault(f'there is no file "{target}", and it is no import path such as "package.module:Class"')
        library.read(path.parent)
        finds = finding.drop_in(path.stem if path.suffix == ".py" else path.name, library)
    except PluginFault as fault:
        return [], [fault]
    told: dict[int, PluginFault] = {id(fault): fault for faults in finds.faults.values() for fault in faults}
    return finds.found, list(told.values())


def _unfit(one: Found, settings: dict[str, Any]) -> Iterator[PluginFault]:
    """What is wrong with its annotations, and with its settings, as types or as values."""
    yield from doubts_of(one.cls)
    try:
        schema(settings_of(one.cls))
        if settings or not finding.needs_settings(one.cls):
            fit("checked", PluginDeclaration(import_path=one.import_path, config=settings), one)
    except PluginFault as fault:
        yield fault
    except ExceptionGroup as group:
        yield from (fault for fault in group.exceptions if isinstance(fault, PluginFault))
    except (TypeError, NameError, NotImplementedError) as error:
        yield PluginFault(f"the settings {settings_of(one.cls).__name__} cannot stand in a manifest: {error}")


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with a plugin, and where: `file:line`, or what was to be checked."""

    place: str
    message: str


def _told(fault: PluginFault, place: str) -> Fault:
    """With what to do about it where that is known."""
    at = f"{fault.file}:{fault.line}" if fault.file else place
    key = f"{shown(fault.key)}: " if fault.key and fault.key != ("import",) else ""
    text = str(fault).removesuffix(f" ({at})").replace(f"{at}: ", "")
    return Fault(at, f"{key}{text}{_remedy(fault)}")


def _remedy(fault: PluginFault) -> str:
    if "ModuleNotFoundError" in fault.trace:
        return "; install it where the sidecar runs, or put it beside this file"
    return ""


def _place(one: Found) -> str:
    file, line = finding.place_of(one.cls, one.version)
    return f"{file}:{line}" if file else one.import_path


# --- showing ----------------------------------------------------------------------------------------------------


def _shown(one: Found, checked: bool) -> Iterator[str]:
    """A plugin that is fine, in short."""
    yield f"{_place(one)}: {one.cls.__name__}: {one.cls.kind} plugin" + (
        f", found as {' and '.join(one.names)}" if one.names else ""
    )
    hooks = [f"{name} ({_how(one.cls, name)})" for name in methods_of(one.cls)]
    yield f"  methods: {', '.join(hooks) or 'those of its kind'}"
    yield f"  settings: {json.dumps(schema(settings_of(one.cls)))}"
    if not checked and finding.needs_settings(one.cls):
        yield "  it needs settings, so it has to be declared in [plugins.NAME]; check them with --config JSON"


def _how(cls: type[Plugin[Any]], name: str) -> str:
    method = getattr(cls, name)
    if inspect.iscoroutinefunction(method):
        return "async, on the loop"
    if runs_inline(method) or name in ON_LOOP:
        return "plain, on the loop"
    return "plain, in a thread"


def _kind(kind: type[Plugin[Any]]) -> Iterator[str]:
    """A kind with all that can be overridden."""
    yield kind.__name__
    yield from _indented(inspect.getdoc(kind), 2)
    names = [name for name in vars(kind) if not name.startswith("_") and name != "kind"]
    yield from (f"  {name} = {vars(kind)[name]!r}" for name in names if not callable(getattr(kind, name)))
    for name in names:
        if callable(method := getattr(kind, name)):
            yield f"  {'async ' if inspect.iscoroutinefunction(method) else ''}{name}{_signature(method)}"
            yield from _indented(inspect.getdoc(method), 6)


def _reference(one: Found) -> Iterator[str]:
    """A plugin, for those who put it into a manifest."""
    yield f"{one.cls.__name__} ({one.cls.kind}): {one.import_path}"
    yield from _indented(inspect.getdoc(one.cls) if one.cls.__doc__ else "", 2)
    settings = settings_of(one.cls)
    yield "  Settings: none" if not settings.__struct_fields__ else "  Settings:"
    if settings is not plugin_sdk.Config and settings.__doc__:
        yield from _indented(inspect.getdoc(settings), 4)
    definition = schema(settings)
    tables = definition.get("$defs", {})
    for field, what in tables.get(settings.__name__, definition).get("properties", {}).items():
        yield f"    {field}: {_type(what)}{_default(what)}"


def _type(what: dict[str, Any]) -> str:
    """A JSON Schema's type, in words."""
    if "$ref" in what:
        return str(what["$ref"]).rpartition("/")[2] + " table"
    if "anyOf" in what:
        return " or ".join(_type(one) for one in what["anyOf"])
    if "enum" in what:
        return " or ".join(json.dumps(one) for one in what["enum"])
    examples = f", such as {json.dumps(what['examples'][0])}" if what.get("examples") else ""
    return str(what.get("type", "anything")) + examples


def _default(what: dict[str, Any]) -> str:
    return f" (default {json.dumps(what['default'])})" if "default" in what else ""


def _signature(method: Any) -> str:
    parameters = inspect.signature(method).parameters.values()
    return f"({', '.join(one.name for one in parameters if one.name != 'self')})"


def _indented(text: str | None, by: int) -> Iterable[str]:
    return (f"{' ' * by}{line}".rstrip() for line in (text or "").splitlines())
