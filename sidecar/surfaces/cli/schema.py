"""`sidecar schema`: what editors need to know of the manifests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from stat import S_ISREG
from typing import Any

import click

from sidecar.mechanism import durable, loader, plugins, source
from sidecar.mechanism.plugins import Catalog, PluginFault
from sidecar.mechanism.schema import Names, bootstrap, manifests, offers
from sidecar.mechanism.source import PLUGIN_FOLDER
from sidecar.mechanism.sources import Library
from sidecar.surfaces.cli.output import NO, fail, prints_aside

_DEFAULT = Path("manifests")


@click.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option(
    "--plugins",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The folder of drop-in plugins. [default: DIRECTORY/plugins]",
)
@click.option("--bootstrap", "of_bootstrap", is_flag=True, help="Of a bootstrap file ([source]) instead.")
@click.option("--strict", is_flag=True, help="Names that no manifest in DIRECTORY declares are mistakes, too.")
@click.option("--out", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="Write it there, whole.")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 unless FILE is up to date.")
def schema(
    directory: Path | None, folder: Path | None, of_bootstrap: bool, strict: bool, out: Path | None, check: bool
) -> None:
    """Print the JSON Schema of the manifests in DIRECTORY (default: ./manifests), with the settings of all plugins.

    A manifest that begins with `#:schema ./sidecar.schema.json` is checked, completed and explained by editors that
    know taplo (Even Better TOML for VS Code, and others).
    """
    if check and out is None:
        raise click.UsageError("--check needs --out FILE")
    if of_bootstrap and (directory or folder or strict):
        raise click.UsageError("a bootstrap file knows no plugins and no names: --bootstrap goes with --out alone")
    with prints_aside():
        text = _as_text(bootstrap()) if of_bootstrap else made(_root(directory), folder, strict)
    if out is None:
        click.echo(text, nl=False)
    elif not check:
        _write(out, text)
    elif not _is(out, text):
        fail(f"{out} is not up to date; to write it anew, run this without --check")


def _root(directory: Path | None) -> Path | None:
    """The manifests that are meant; None if there are none where they would be by default."""
    root = loader.manifest_folder(str(directory or _DEFAULT))
    return root if directory is not None or root.is_dir() else None


def made(root: Path | None, folder: Path | None = None, strict: bool = False) -> str:
    """The schema as text; what is not in it is told on stderr. root: of the manifests. folder: of plugins."""
    library = Library()
    paths: list[str] = []
    declared: dict[str, list[str]] = {"plugins": [], "devices": []}
    if root is None:
        if strict:
            fail(f"--strict needs manifests, and there is no directory {_DEFAULT}", NO)
        catalog = plugins.load({}, folder or Path(os.devnull) / PLUGIN_FOLDER, library=library)
    else:
        loaded = _load(root, library)
        for subject in loaded.tables:
            declared.get(subject[0], []).extend(subject[1:])
        paths = [plugin.import_path for plugin in loaded.declaration.plugins.values()]
        catalog = loaded.catalog
        if folder is not None:
            catalog = plugins.load(loaded.declaration.plugins, folder, declared["plugins"], library)
    offered, broken = offers(library, paths)
    schema, unknown = manifests(_names(catalog, declared, strict), offered)
    _tell([*broken, *unknown])
    return _as_text(schema)


def _as_text(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _load(root: Path, library: Library) -> loader.Loaded:
    try:
        return loader.load(source.read(root), os.environ, library=library)
    except source.SourceError as error:
        fail(str(error))


def _names(catalog: Catalog, declared: dict[str, list[str]], strict: bool) -> Names:
    return Names.of(catalog, declared["plugins"], declared["devices"], strict=strict)


def _tell(faults: Iterable[PluginFault]) -> None:
    """On stderr, since the schema is on stdout, and good but for these."""
    for fault in faults:
        place = f"{fault.file}:{fault.line}: " if fault.file else ""
        click.echo(f"{place}{fault}; its settings are not in the schema", err=True)


def _is(out: Path, text: str) -> bool:
    """Whether the file says so already; exits if it is there and no file: a device has no end, a pipe makes us wait."""
    try:
        if not S_ISREG(out.stat().st_mode):
            fail(f"{out} is no regular file; without --out it is printed")
        return out.read_bytes() == text.encode()
    except FileNotFoundError:
        return False
    except OSError as error:
        fail(f"{out} cannot be read: {error.strerror}")


def _write(out: Path, text: str) -> None:
    if _is(out, text):
        return  # editors that watch it need not look again
    try:
        durable.replace(out.resolve(), text.encode())  # a link stays one
    except OSError as error:
        fail(f"{out} cannot be written: {error.strerror}")
