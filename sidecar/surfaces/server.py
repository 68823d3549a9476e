"""Puts data plane and control API on one port, under uvicorn, and gives signals their meaning."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from sidecar import __version__
from sidecar.control.controller import Controller
from sidecar.surfaces.control_api import control_app
from sidecar.surfaces.dataplane.asgi import DataPlane, Receive, Scope, Send

BACKLOG = 2048
KEEP_ALIVE_S = 75  # longer than clients keep connections in their pools, so that they are the ones to close them

log = logging.getLogger(__name__)


class Edge:
    """Inference goes to the data plane, everything else to Litestar."""

    def __init__(self, controller: Controller) -> None:
        self._data_plane = DataPlane(controller)
        self._control: Any = control_app(controller)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._data_plane.owns(scope["path"]):
            await self._data_plane(scope, receive, send)
        else:
            await self._control(scope, receive, send)


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
    """What signals ask for: the first SIGTERM or SIGINT drains, the second hurries; SIGHUP has all read anew.

    Made before anything is started, so that nothing that was started is left behind.
    """

    def __init__(self, controller: Controller) -> None:
        self.asked = False
        self._controller = controller
        self._server: HttpServer | None = None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ask, number)
        loop.add_signal_handler(signal.SIGHUP, controller.ask_reload)

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
            self._controller.fleet.close()
            self._controller.events.end_followers()  # whose streams would be waited for as requests in flight
        if self._server is not None:
            self._server.should_exit, self._server.force_exit = True, self.asked
        self.asked = True


async def serve(controller: Controller, listener: socket.socket, shutdown: Shutdown) -> None:
    """Serve until `shutdown` is asked for. The controller is open, and stays so."""
    config = uvicorn.Config(
        Edge(controller),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, int(controller.declaration.settings.drain_timeout)),
    )
    logging.getLogger("uvicorn.error").addFilter(_unlike_broken_off)
    server = HttpServer(config)
    shutdown.of(server)
    listener.listen(BACKLOG)  # from here on connections are kept until they are served, so the next line is true
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    models = len(controller.declaration.models)
    log.info("sidecar %s: http://%s:%d serves %d models of %s", __version__, shown, port, models, controller.root)
    await server.serve(sockets=[listener])


def _unlike_broken_off(record: logging.LogRecord) -> bool:
    """Drop uvicorn's complaint about a response without an end: that is how a broken-off answer is passed on."""
    return "returned without completing response" not in record.getMessage()
