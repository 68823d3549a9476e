"""What commands that need no running sidecar share: manifests that are read here, and this machine's devices."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidecar.core.nodes import EVERY_NODE, Node
from sidecar.core.observed import Device
from sidecar.mechanism import loader, source
from sidecar.mechanism.devices import Prober, probe_all
from sidecar.mechanism.plugins import Catalog
from sidecar.surfaces.cli.output import fail, prints_aside


def load(directory: Path, environment: Mapping[str, str] = os.environ, node: Node = EVERY_NODE) -> loader.Loaded:
    """Read and check a directory, or exit with the reason."""
    try:
        snapshot = source.read(loader.manifest_folder(str(directory)))
    except source.SourceError as error:
        fail(str(error))
    with prints_aside():
        return loader.load(snapshot, environment, node=node)


async def probe(catalog: Catalog) -> tuple[Device, ...]:
    """The devices of this machine, by the device plugins of the manifests."""
    with prints_aside():
        return await _probe(catalog)


async def _probe(catalog: Catalog) -> tuple[Device, ...]:
    plugins: list[Any] = [loaded.make() for loaded in catalog.loaded.values() if loaded.kind == "device"]
    probers = [Prober(plugin) for plugin in plugins]
    try:
        for plugin in plugins:
            await plugin.open()
        return await probe_all(probers)
    finally:
        for prober in probers:
            prober.close()
        for plugin in plugins:
            await plugin.close()
