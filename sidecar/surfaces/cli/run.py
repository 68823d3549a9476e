"""`sidecar run`: the program itself."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path
from typing import NoReturn

import click
import msgspec
import uvloop

from sidecar.control.controller import Controller
from sidecar.control.gitsource import GitSource
from sidecar.control.machine import Outside
from sidecar.core.nodes import Node
from sidecar.core.sourcing import GitDeclaration
from sidecar.mechanism import applied, loader, memory, source, systemd
from sidecar.mechanism.lock import StateDir, StateDirError
from sidecar.mechanism.logs import LogOptions
from sidecar.mechanism.machine import LocalMachine
from sidecar.mechanism.manifests import Manifests
from sidecar.mechanism.metric_exports import MetricExportError, Push, push_of
from sidecar.mechanism.redaction import Redactor
from sidecar.mechanism.rules import listen_address
from sidecar.mechanism.sources import Library
from sidecar.mechanism.telemetry import Telemetry, TelemetryError
from sidecar.mechanism.upstream import Client
from sidecar.mechanism.watchdog import Watchdog
from sidecar.surfaces.cli.git_options import git_options, git_source
from sidecar.surfaces.cli.labels import label_option, node_of
from sidecar.surfaces.cli.log_options import log_options, logged
from sidecar.surfaces.cli.output import fail, print_problems
from sidecar.surfaces.server import Shutdown, bind, serve
from sidecar.surfaces.service import Service

log = logging.getLogger("sidecar")


@click.command()
@click.argument("directory", default="manifests", type=click.Path(path_type=Path))
@git_options
@label_option
@log_options
def run(directory: Path, declared: GitDeclaration | None, labels: tuple[str, ...], log_to: LogOptions) -> None:
    """Run the manifests in DIRECTORY (default: ./manifests) until SIGTERM.

    DIRECTORY may also be a bootstrap file, whose [source] tells of a git repository; so does --git.
    """
    memory.prepare()
    node = node_of(labels)
    manager = _manager()
    with logged(log_to), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if declared is None:
            _start(runner, loader.manifest_folder(str(directory)), node, None, manager)
        else:
            git, lock = git_source(runner, declared, node)
            _start(runner, git.root, node, git, manager)
            lock.close()


def _manager() -> systemd.Given:
    try:
        return systemd.take(os.environ)  # before anything is started, which would inherit it
    except systemd.SocketError as error:
        fail(str(error))


def _start(runner: asyncio.Runner, root: Path, node: Node, git: GitSource | None, manager: systemd.Given) -> None:
    try:
        snapshot = source.read(root)
        telemetry, push = Telemetry.from_environment(), push_of(os.environ)
    except (source.SourceError, TelemetryError, MetricExportError) as error:
        fail(str(error))
    own = loader.own_settings(snapshot)
    if own is None:
        _refuse(loader.load(snapshot, os.environ))
    try:
        state = StateDir(Path(own.settings.state_dir).expanduser())
    except StateDirError as error:
        fail(str(error))
    library = Library() if git is None else git.library
    before, loaded = _revisions(snapshot, own, state, library, node)
    settings = loaded.declaration.settings
    try:
        address = listen_address(settings.listen)
        listener = systemd.listener(manager, *address) or bind(*address)
    except systemd.SocketError as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot listen on {settings.listen}: {error.strerror}")
    start = Start(snapshot, before, loaded, library, node, git)
    runner.run(_run(start, state, listener, Told(telemetry, push, manager)))


def _revisions(
    snapshot: source.Snapshot, own: loader.OwnSettings, state: StateDir, library: Library, node: Node
) -> tuple[loader.Loaded | None, loader.Loaded]:
    """What the sidecar before had in force, if that is known, and what is declared now, checked as on a reload."""
    remembered = applied.AppliedFile(state.path).read(snapshot.root)
    before = None
    if remembered is not None:
        before = applied.before_start(remembered, snapshot.root, own, os.environ, library, node)
    loaded = loader.load(snapshot, os.environ, before.declaration if before else None, library, node)
    if own.entry is None and before is not None:  # there is no [sidecar]: what it said before stays in force
        if not before.usable:
            _refuse(before)
    elif not loaded.usable:
        _refuse(loaded)
    return before, loaded


def _refuse(loaded: loader.Loaded) -> NoReturn:
    print_problems(loaded.problems)
    fail("[sidecar] is faulty, or may be in a file that is: nothing is started")


class Start(msgspec.Struct, frozen=True):
    """What to start with. before: what was in force when there was a sidecar last. library: of plugins' code.

    git: where the manifests are from, None for a directory of somebody else's.
    """

    snapshot: source.Snapshot
    before: loader.Loaded | None
    loaded: loader.Loaded
    library: Library
    node: Node
    git: GitSource | None


class Told(msgspec.Struct, frozen=True):
    """Where traces and metrics go, and who holds the sidecar's own life in hand."""

    telemetry: Telemetry
    push: Push | None
    manager: systemd.Given


async def _run(start: Start, state: StateDir, listener: socket.socket, told: Told) -> None:
    root = start.snapshot.root
    client = Client()
    outside = Outside(
        machine=LocalMachine(state),
        source=start.git or Manifests(root, os.environ, start.snapshot, start.library, start.node),
        client=client,
        tracer=told.telemetry.tracer,
        node=start.node,
        state=state.path,
        hide=Redactor(os.environ),
    )
    controller = Controller(root, outside)
    service = Service(controller, systemd.Notifier(told.manager))
    shutdown = Shutdown(controller, service)
    watchdog = Watchdog(controller.generations.markers)
    watchdog.start()
    try:
        await controller.open(start.loaded, start.before)
        if start.git is not None:
            start.git.open(controller.events, controller.refresh)
        await serve(controller, listener, shutdown, told.telemetry, told.push)
    finally:
        listener.close()
        await controller.close()
        watchdog.close()
        await client.close()
        await asyncio.to_thread(told.telemetry.close)
        state.close()
        await service.close()
        log.info("done")
