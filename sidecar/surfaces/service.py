"""What the service manager hears of a running sidecar: that it is ready, reads anew, stops, lives, and how it is."""

from __future__ import annotations

import asyncio
import logging
import signal

from sidecar.control.controller import Controller
from sidecar.core.manifest import Declaration
from sidecar.core.observed import ServerState
from sidecar.mechanism.systemd import Notifier

log = logging.getLogger(__name__)

STATUS_S = 2.0
PUT_AWAY_S = 15.0


class Service:
    """Keeps a Notifier up to date, and has SIGHUP read all anew."""

    def __init__(self, controller: Controller, notifier: Notifier) -> None:
        self._controller = controller
        self._notifier = notifier
        self._ready = False
        self._reading = 0  # how many reloads are under way
        loop = asyncio.get_running_loop()
        self._tasks = {loop.create_task(notifier.keep_alive(), name="service watchdog")}
        loop.add_signal_handler(signal.SIGHUP, self._reload)

    def ready(self) -> None:
        """Connections are served from now on."""
        self._ready = True
        self._notifier.ready()
        if self._notifier.there:
            self._tasks.add(asyncio.get_running_loop().create_task(self._tell_status(), name="service status"))

    def stopping(self) -> None:
        """Requests in flight are finished; then it ends."""
        self._ready = False
        current = self._controller.generations.current  # None if it is still being opened
        self._notifier.stopping(longest_end_s(current.declaration) if current is not None else PUT_AWAY_S)

    async def close(self) -> None:
        """Tell nothing more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._notifier.close()

    def _reload(self) -> None:
        if not self._ready:  # it is not open yet, or the end has begun
            self._controller.ask_reload()
            return
        self._reading += 1
        self._notifier.reloading()
        task = asyncio.get_running_loop().create_task(self._read_anew(), name="reload")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read_anew(self) -> None:
        try:
            await self._controller.reload()
        except Exception:
            log.exception("reading all anew failed; what is in force stays")
        finally:
            self._reading -= 1
            if self._ready and not self._reading:
                self._notifier.ready()

    async def _tell_status(self) -> None:
        while True:
            self._notifier.status(summary(self._controller))
            await asyncio.sleep(STATUS_S)


def longest_end_s(declaration: Declaration) -> float:
    """How long it may take to end: requests are finished, then servers stop, then there is a little to put away."""
    variants = [variant for model in declaration.models.values() for variant in model.variants]
    stops = [variant.stop_timeout for variant in variants if not variant.external]
    return declaration.settings.drain_timeout + max(stops, default=0.0) + PUT_AWAY_S


def summary(controller: Controller) -> str:
    """One line: models, servers, requests, problems."""
    servers = list(controller.fleet.servers.values())
    ready = sum(server.state is ServerState.READY for server in servers)
    in_flight = sum(server.in_flight for server in servers)
    problems = len(controller.revisions.problems)
    parts = [f"{len(controller.declaration.models)} models", f"{ready} of {len(servers)} servers ready"]
    parts.append(f"{in_flight} requests in flight")
    if problems:
        parts.append(f"{problems} problems in the manifests")
    return f"{', '.join(parts)}; revision {controller.revisions.applied}"
