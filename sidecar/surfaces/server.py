"""Puts data plane and control API on one port, under uvicorn, and gives signals their meaning."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from typing import Any, cast

import uvicorn

from sidecar import __version__
from sidecar.control.controller import Controller
from sidecar.core.nodes import counted
from sidecar.mechanism import memory
from sidecar.mechanism.metric_exports import Push
from sidecar.mechanism.telemetry import Telemetry
from sidecar.surfaces.control_api import control_app
from sidecar.surfaces.dataplane.plane import Plane
from sidecar.surfaces.dataplane.protocol import factory
from sidecar.surfaces.metrics.catalog import Metrics
from sidecar.surfaces.service import Service

BACKLOG = 2048

log = logging.getLogger(__name__)


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handlers: they would end the process before the servers are stopped."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A socket on the address; port 0 takes any. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except BaseException:
        listener.close()
        raise
    listener.set_inheritable(False)
    return listener


class Shutdown:
    """What signals ask for: the first SIGTERM or SIGINT drains, the second hurries. (SIGHUP is Service's.)

    Made before anything is started, so that nothing that was started is left behind.
    """

    def __init__(self, controller: Controller, service: Service) -> None:
        self.asked = False
        self.service = service
        self._controller = controller
        self._server: HttpServer | None = None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ask, number)

    def of(self, server: HttpServer) -> None:
        """The server that is to end."""
        self._server = server
        server.should_exit = self.asked

    def _ask(self, number: signal.Signals) -> None:
        if self.asked:
            log.info("%s again: not waiting for requests in flight", number.name)
            self._controller.hurry.set()
        else:
            log.info("%s: draining", number.name)
            self.service.stopping()
            self._controller.fleet.close()
            self._controller.events.end_followers()  # whose streams would be waited for as requests in flight
        if self._server is not None:
            self._server.should_exit, self._server.force_exit = True, self.asked
        self.asked = True


async def serve(
    controller: Controller, listener: socket.socket, shutdown: Shutdown, telemetry: Telemetry, push: Push | None = None
) -> None:
    """Serve until `shutdown` is asked for. The controller is open, and stays so. push: of metrics."""
    plane = Plane(controller, telemetry.traces)
    metrics = Metrics(controller, plane, telemetry, push)
    config = uvicorn.Config(
        cast(Any, control_app(controller, plane, metrics)),
        loop="uvloop",
        http=cast(Any, factory(plane)),  # called like the class of a protocol
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, int(controller.declaration.settings.drain_timeout)),
    )
    server = HttpServer(config)
    shutdown.of(server)
    listener.listen(BACKLOG)  # from here on connections are kept until they are served, so the next line is true
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    models = len(controller.declaration.models)
    log.info("sidecar %s: http://%s:%d serves %d models of %s", __version__, shown, port, models, controller.root)
    if elsewhere := counted(controller.declaration.elsewhere):
        log.info("%s; this one has %s", elsewhere, controller.node)
    shutdown.service.ready()
    plane.look_after()
    collecting = asyncio.create_task(memory.keep_small(), name="keep memory small")
    pushing = asyncio.create_task(push.run(metrics.snapshot), name="metrics") if push is not None else None
    try:
        await server.serve(sockets=[listener])
    finally:
        collecting.cancel()
        await plane.close()
        if push is not None and pushing is not None:
            pushing.cancel()
            await push.close(metrics.snapshot)
        await metrics.close()
