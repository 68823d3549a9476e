"""`sidecar run`: the program itself."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

import click
import uvloop

from sidecar.control.controller import Controller
from sidecar.control.machine import Outside
from sidecar.mechanism import loader, source
from sidecar.mechanism.lock import StateDir, StateDirError
from sidecar.mechanism.machine import LocalMachine
from sidecar.mechanism.manifests import Manifests
from sidecar.mechanism.rules import listen_address
from sidecar.mechanism.sources import Library
from sidecar.mechanism.telemetry import Telemetry, TelemetryError
from sidecar.mechanism.upstream import Client
from sidecar.mechanism.watchdog import Watchdog
from sidecar.surfaces.cli.output import fail, print_problems
from sidecar.surfaces.server import Shutdown, bind, serve

log = logging.getLogger("sidecar")


@click.command()
@click.argument("directory", default="manifests", type=click.Path(path_type=Path))
@click.option("--log-level", default="info", type=click.Choice(["debug", "info", "warning", "error"]))
def run(directory: Path, log_level: str) -> None:
    """Run the manifests in DIRECTORY (default: ./manifests) until SIGTERM."""
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    for noisy in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    root = loader.manifest_folder(str(directory))
    try:
        snapshot = source.read(root)
        telemetry = Telemetry.from_environment()
    except (source.SourceError, TelemetryError) as error:
        fail(str(error))
    library = Library()
    loaded = loader.load(snapshot, os.environ, library=library)
    if not loaded.usable:
        print_problems(loaded.problems)
        fail("[sidecar] is faulty, or may be in a file that is: nothing is started")
    settings = loaded.declaration.settings
    try:
        state = StateDir(Path(settings.state_dir).expanduser())
        listener = bind(*listen_address(settings.listen))
    except StateDirError as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot listen on {settings.listen}: {error.strerror}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(Manifests(root, os.environ, snapshot, library), root, loaded, state, listener, telemetry))


async def _run(
    manifests: Manifests,
    root: Path,
    loaded: loader.Loaded,
    state: StateDir,
    listener: socket.socket,
    telemetry: Telemetry,
) -> None:
    client = Client()
    outside = Outside(
        machine=LocalMachine(state),
        source=manifests,
        client=client,
        tracer=telemetry.tracer,
        state=state.path,
    )
    controller = Controller(root, outside)
    shutdown = Shutdown(controller)
    watchdog = Watchdog(controller.generations.markers)
    watchdog.start()
    try:
        await controller.open(loaded)
        await serve(controller, listener, shutdown)
    finally:
        listener.close()
        await controller.close()
        watchdog.close()
        await client.close()
        await asyncio.to_thread(telemetry.close)
        state.close()
        log.info("done")
