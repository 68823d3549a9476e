"""`sidecar devices`: what memory there is and who has it, for people, or as a file for `plan --against` elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import click
import msgspec

from sidecar.mechanism import plugins
from sidecar.mechanism.source import PLUGIN_FOLDER
from sidecar.surfaces import snapshot
from sidecar.surfaces.cli.client import Remote, UnreachableError, remote_options
from sidecar.surfaces.cli.labels import label_option, node_of
from sidecar.surfaces.cli.local import probe
from sidecar.surfaces.cli.output import json_option, print_json, print_table, prints_aside
from sidecar.surfaces.report import DeviceReport
from sidecar.surfaces.snapshot import Snapshot


@click.command()
@json_option
@label_option
@remote_options
def devices(as_json: bool, labels: tuple[str, ...], remote: Remote) -> None:
    """Show the devices: as the running sidecar sees them, or, if none runs, as they are.

    With --json: the whole machine, with labels and servers, for `plan --against` and `diff --against` on another.
    """
    try:
        found = msgspec.convert(remote.ask("GET", "/-/snapshot", {}, timeout_s=30.0), Snapshot)
    except UnreachableError as error:
        click.echo(f"{error}; looking for myself, without reservations", err=True)
        node = node_of(labels)
        with prints_aside():
            catalog = plugins.load({}, Path("manifests") / PLUGIN_FOLDER)
        found = snapshot.offline(asyncio.run(probe(catalog)), node)
    else:
        if labels:
            raise click.UsageError(f"the sidecar at {remote.url} has labels of its own: --label is for where none runs")
    if as_json:
        print_json(found)
    else:
        show_devices(found.devices)


def show_devices(found: Iterable[DeviceReport]) -> None:
    """One to a row."""
    columns = ("DEVICE", "NAME", "TOTAL MB", "USABLE", "RESERVED", "FREE", "BUSY", "TEMP", "POWER")
    print_table("Devices", columns, map(_row, found))


def _row(device: DeviceReport) -> tuple[str, ...]:
    seen = device.status
    label = ", ".join((device.label, *device.names))
    if seen.problem:
        return (label, f"{seen.name}: UNKNOWN: {seen.problem}", "", "", str(device.reserved_mb), "", "", "", "")
    return (
        label,
        seen.name,
        str(seen.total_mb),
        str(device.usable_mb),
        str(device.reserved_mb),
        str(seen.free_mb),
        _unit(seen.utilisation_pct, "%"),
        _unit(seen.temperature_c, "°C"),
        _unit(seen.power_w, " W"),
    )


def _unit(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:.0f}{unit}"
