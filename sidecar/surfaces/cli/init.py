"""`sidecar init`: a manifest directory to begin with, or manifests for what runs on this machine already."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import click
from click.core import ParameterSource

from sidecar.mechanism import plugins, rules
from sidecar.mechanism.discovery import look
from sidecar.mechanism.discovery.asking import NO_HTTP
from sidecar.mechanism.discovery.offers import Found, Wanted, convert
from sidecar.mechanism.importing.draft import Imported
from sidecar.mechanism.importing.reading import InputError
from sidecar.mechanism.importing.writing import WriteError, write
from sidecar.surfaces.cli import beginning
from sidecar.surfaces.cli.importing import How, carry_out
from sidecar.surfaces.cli.local import probe
from sidecar.surfaces.cli.output import fail, print_json
from sidecar.surfaces.cli.schema import made

_LISTEN = "127.0.0.1:8080"
_OF_DISCOVERY = ("manage", "ports", "timeout", "api_key_env", "everything", "device")
_PORTS = re.compile(r"(\d+)(?:-(\d+))?")


def _range(context: click.Context, parameter: click.Parameter, value: str | None) -> range | None:
    del context
    if value is None:
        return None
    match = _PORTS.fullmatch(value)
    ports = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not ports or ports[0] < 1 or ports[-1] > 65535:
        raise click.BadParameter('expected a port or a range, such as "8000-8999"', param=parameter)
    return ports


def _address(context: click.Context, parameter: click.Parameter, value: str) -> str:
    del context
    try:
        if value:
            rules.listen_address(value)
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from None
    return value


@click.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option("--discover", is_flag=True, help="Offer manifests for the model servers that listen on this machine.")
@click.option("--manage", is_flag=True, help="Offer commands to start them by, instead of where they run.")
@click.option("--ports", callback=_range, metavar="PORT[-PORT]", help="Look at these only.  [default: all]")
@click.option(
    "--timeout", default=2.0, show_default=True, type=click.FloatRange(0.1, 60), help="Seconds for an answer."
)
@click.option("--api-key-env", default="", metavar="NAME", help="The variable with the key that the servers ask for.")
@click.option("--device", default="nvidia", show_default=True, help="What servers run on, if nothing tells it.")
@click.option("--all", "everything", is_flag=True, help="Tell of everything that listens, and what was made of it.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="The same as DIRECTORY.")
@click.option("--listen", default="", callback=_address, metavar="HOST:PORT", help=f"[default: {_LISTEN}]")
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON.")
def init(
    directory: Path | None,
    discover: bool,
    manage: bool,
    ports: range | None,
    timeout: float,
    api_key_env: str,
    device: str,
    everything: bool,
    out: Path | None,
    listen: str,
    force: bool,
    as_json: bool,
) -> None:
    """Write manifests to begin with into DIRECTORY (default: ./manifests).

    With --discover: manifests for the model servers that run here already. They are asked for their models, and their
    processes are looked at; none of them is changed. Without DIRECTORY they are printed.
    """
    if directory is not None and out is not None:
        raise click.UsageError("DIRECTORY and --out are the same: give one")
    how = How(directory or out, force, as_json, everything, device, listen)
    if discover:
        key = os.environ.get(api_key_env, "") if api_key_env else ""
        if api_key_env and not key:
            raise click.UsageError(f"the variable {api_key_env} is not set")
        if key and ports is None:
            raise click.UsageError("--api-key-env needs --ports: whoever listens could ask for the key")
        bounds = look.Bounds(ports=ports, each_s=timeout, all_s=max(15.0, 5 * timeout))
        carry_out(lambda: _discovered(how, bounds, manage, api_key_env), how)
        return
    _refuse_others()
    _begin(how)


def _refuse_others() -> None:
    context = click.get_current_context()
    for name in _OF_DISCOVERY:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            option = "all" if name == "everything" else name.replace("_", "-")
            raise click.UsageError(f"--{option} is about what runs already: it needs --discover")


def _begin(how: How) -> None:
    folder = how.out or Path("manifests")
    try:
        written = write(folder, beginning.files(how.listen or _LISTEN, made(None)), force=how.force)
    except WriteError as error:
        fail(f"nothing was written: {error}")
    if how.as_json:
        print_json({"written": [str(path) for path in written]})
        return
    for path in written:
        click.echo(f"written: {path}")
    click.echo(f"next: edit them, then  sidecar validate {folder}  and  sidecar run {folder}")


def _discovered(how: How, bounds: look.Bounds, manage: bool, key: str) -> Imported:
    found = asyncio.run(_look(bounds, os.environ.get(key, "") if key else ""))
    if not how.everything:
        found = [one for one in found if one.answer.why != NO_HTTP]
    if not found:
        more = "" if how.everything else "; --all tells of everything that listens"
        raise InputError(f"nobody listens {_told(bounds.ports)} who could be a model server{more}")
    return convert(found, Wanted(how.options(Path()), manage=manage, key=key))


def _told(ports: range | None) -> str:
    if ports is None:
        return "on this machine"
    return f"at port {ports[0]}" if len(ports) == 1 else f"at the ports {ports[0]}-{ports[-1]}"


async def _look(bounds: look.Bounds, key: str) -> list[Found]:
    catalog = await asyncio.to_thread(plugins.load, {}, Path(os.devnull) / "plugins")
    gpus: dict[int, dict[str, int]] = {}
    for device in await probe(catalog):
        for process in device.status.processes if not device.host_memory else ():
            if process.used_mb is not None:
                gpus.setdefault(process.pid, {})[device.label] = process.used_mb
    return await look.around(bounds, gpus, key)
