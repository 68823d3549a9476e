"""Commands that speak to a running sidecar: `status`, `reload`."""

from __future__ import annotations

import click
import msgspec

from sidecar.core.nodes import shown
from sidecar.surfaces import progress
from sidecar.surfaces.cli.client import Remote, remote_options
from sidecar.surfaces.cli.devices import show_devices
from sidecar.surfaces.cli.output import NO, json_option, print_json, print_table
from sidecar.surfaces.cli.source import described
from sidecar.surfaces.report import ModelReport, ReloadReport, StatusReport


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything, as JSON.")
@remote_options
def status(as_json: bool, remote: Remote) -> None:
    """Show devices, models and problems of the running sidecar."""
    answer = remote.get("/-/status")
    if as_json:
        print_json(answer)
        return
    found = msgspec.convert(answer, StatusReport)
    click.echo(f"sidecar {found.version}, up {_ago(found.uptime_s)}, revision {found.applied}")
    if found.source is not None and found.source.kind != "directory":
        click.echo(f"from {described(found.source)}")
    click.echo()
    show_devices(found.devices)
    click.echo()
    print_table("Models", ("MODEL", "MODE", "STATE", "WHERE", "MB", "BUSY", "BECAUSE"), map(_model_row, found.models))
    if found.elsewhere:
        many = "1 model is" if len(found.elsewhere) == 1 else f"{len(found.elsewhere)} models are"
        click.echo(f"{many} for other nodes (this one: {shown(found.labels)})")
    old = [(plugin.name, plugin.kind, plugin.behind) for plugin in found.plugins if plugin.behind]
    if old:
        print_table("\nPlugins that stay as they were", ("PLUGIN", "KIND", "BECAUSE"), old)
    broken = [(plugin.name, plugin.kind, plugin.problem) for plugin in found.plugins if plugin.problem]
    if broken:
        print_table("\nPlugins that cannot be used", ("PLUGIN", "KIND", "BECAUSE"), broken)
    for title, texts in (("Problems", found.problems), ("In their last good form", found.kept)):
        if texts:
            click.echo(f"\n{title}:")
            for text in texts:
                click.echo(f"  {text}")


@click.command()
@json_option
@remote_options
def reload(as_json: bool, remote: Remote) -> None:
    """Read manifests and plugins anew, those that are installed too; exit 1 if anything is wrong with them."""
    found = msgspec.convert(remote.post("/-/reload"), ReloadReport)
    for text in (*found.problems, *found.plugins):
        click.echo(text, err=True)
    if as_json:
        print_json(found)
    else:
        click.echo(f"revision {found.applied} is in force as generation {found.generation}")
    if found.problems or found.plugins:
        raise SystemExit(NO)


def _model_row(model: ModelReport) -> tuple[str, ...]:
    server = model.server
    message = model.conditions[0].message.splitlines()[0] if model.conditions and model.conditions[0].message else ""
    if server is not None and server.loading is not None:
        message = progress.told(server.loading)
    where = f"{server.variant} :{server.port}" if server else ""
    busy = f"{server.in_flight if server else 0}" + (f" (+{model.waiting} waiting)" if model.waiting else "")
    marks = [mark for mark, there in (("pinned", model.pinned), ("drained", model.drained)) if there]
    return (model.name, ",".join(model.modes), ", ".join((model.state, *marks)), where, _memory(model), busy, message)


def _memory(model: ModelReport) -> str:
    """What is reserved, and the most that the variant has ever taken: `9000 (peak 8400)`."""
    server = model.server
    if server is None:
        return ""
    reserved = "+".join(str(amount) for amount in server.reserved_mb.values())
    peaks = [measured.peak_mb for measured in model.measured if measured.variant == server.variant]
    peak = "+".join(str(amount) for amount in peaks[0].values()) if peaks else ""
    return f"{reserved} (peak {peak})" if peak else reserved


def _ago(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{left:02}s" if minutes else f"{left}s"
