"""The life of one server, from its reservation to the confirmed end of its process group: one task, one straight line.

Failure is data: it ends in `Fleet.failed`, never in an exception that leaves the task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import msgspec
from opentelemetry.context import Context
from opentelemetry.trace import Status as SpanStatus
from opentelemetry.trace import StatusCode

from plugin_sdk import Upstream
from sidecar.control.fleet import Fleet
from sidecar.control.live import LiveServer
from sidecar.control.machine import Outside, Running
from sidecar.control.serverlogs import without_keys
from sidecar.core.lifecycle import Cause
from sidecar.core.manifest import PortRange
from sidecar.core.observed import Device, ServerState
from sidecar.mechanism import placeholders
from sidecar.mechanism.journal import Record
from sidecar.mechanism.machine import Job
from sidecar.mechanism.ports import NoPortError
from sidecar.mechanism.readiness import NeverReadyError, Wait
from sidecar.mechanism.redaction import NOTHING
from sidecar.mechanism.runner import SpawnError

log = logging.getLogger(__name__)

Ready = Callable[[Upstream], Awaitable[bool]]

_RETRY_STOP_S = 1.0
_TOLD_LINES = 8  # of the server's last output, in conditions and client errors


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """How a server is to be run. ready: the interface's probe. devices: those that it gets, in the manifest's order.

    visibility: what restricts it to them, by environment variable.
    """

    ready: Ready
    devices: tuple[Device, ...]
    visibility: dict[str, str]
    ports: PortRange
    cwd: Path


class Servers:
    """Runs servers. One task for each; none of them waits for another."""

    def __init__(self, outside: Outside, fleet: Fleet) -> None:
        self.fleet = fleet
        self._client = outside.client
        self._machine = outside.machine
        self._tracer = outside.tracer
        self._tasks: dict[asyncio.Task[None], LiveServer] = {}

    def begin(self, server: LiveServer, order: Order, why: str = "") -> None:
        """Take the server's reservation, then start it; or go on with it, if it was taken over."""
        self.fleet.add(server, why, adopted=server.process is not None)
        task = asyncio.create_task(self._live(server, order), name=f"server {server.id}")
        self._tasks[task] = server
        task.add_done_callback(self._tasks.pop)

    async def all_gone(self) -> None:
        """Wait until every server has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def keep(self) -> None:
        """Let go of what serves, and leave it running: it is recorded, and the next sidecar takes it over."""
        for task, server in self._tasks.items():
            if server.process is not None and server.state in (ServerState.READY, ServerState.DRAINING):
                server.kept = True
                task.cancel()

    def take_over(self, server: LiveServer, record: Record) -> bool:
        """Whether the recorded process is there, and proven to be the one; then `begin` goes on with it."""
        server.process = self._machine.take_over(record)
        if server.process is not None:
            server.port = record.port
            server.created_unix = record.created_unix
            self._machine.hold_port(record.port)
        return server.process is not None

    def clear_away(self, server: LiveServer) -> None:
        """Stop what another sidecar has left of a server. Its reservation stands until that is gone; nobody waits."""
        self._machine.hold_port(server.port)
        self.fleet.add(server, "left behind by another sidecar", adopted=True)
        self.fleet.auto_started.discard(server.model)  # what it is declared as now has not started yet
        self.fleet.force_stop(server, "LeftBehind", "it is not what is declared")
        task = asyncio.create_task(self._end(server), name=f"server {server.id}")
        self._tasks[task] = server
        task.add_done_callback(self._tasks.pop)

    async def _live(self, server: LiveServer, order: Order) -> None:
        try:
            await self._start(server, order)
            if server.process is not None and server.state in (ServerState.READY, ServerState.DRAINING):
                await self._serve(server)
        except Exception as error:
            log.exception("%s: the server's own task failed", server.id)
            self.fleet.failed(server, "InternalError", f"{type(error).__name__}: {error}")
        finally:
            if server.kept and server.process is not None:
                server.process.let_go()
            else:
                await self._end(server)

    async def _start(self, server: LiveServer, order: Order) -> None:
        attributes = {
            "sidecar.model": server.model,
            "sidecar.variant": server.variant.name,
            "sidecar.devices": list(server.devices),
        }
        with self._tracer.start_as_current_span("server start", attributes=attributes) as span:
            problem = await self._try_start(server, order)
            if problem is None:
                return
            reason, message = problem
            message = await self._with_output(server, message)
            span.set_status(SpanStatus(StatusCode.ERROR, message))
            self.fleet.failed(server, reason, message)
            server.left_because = server.left_because or reason

    async def _try_start(self, server: LiveServer, order: Order) -> tuple[str, str] | None:
        """Spawn and wait for ready. (reason, message) if it failed; None if it is ready, or was told to leave."""
        try:
            adopted = server.process is not None
            if server.process is None:
                server.port = self._machine.take_port(order.ports)
                await self._must_write_down()  # the intent, before there is a process
                server.process = await self._machine.spawn(_job(server, order))
                await self._must_write_down()  # its identity
            await self._ready_or_told_to_leave(server, server.process, order)
            if server.state is ServerState.STARTING and not server.leave.is_set():  # nothing comes in between from here
                server.ready_unix = self.fleet.clock.unix()
                server.last_used = self.fleet.clock.monotonic()
                if not adopted:
                    load_s = server.last_used - server.since
                    self.fleet.measurements.loaded(server.model, server.variant, load_s)
                    self.fleet.tallies.loaded(server.model, server.variant.name, load_s)
                self.fleet.move(server, Cause.BECAME_READY)
                self.fleet.grant(server)
        except NoPortError as error:
            return "NoPort", str(error)
        except SpawnError as error:
            return "SpawnFailed", str(error)
        except NeverReadyError as error:
            return error.reason, str(error)
        except OSError as error:
            return "HostError", f"the machine is in trouble: {error}"
        return None

    async def _must_write_down(self) -> None:
        try:
            await self.write_down()
        except OSError as error:
            message = f"what is started must be written down first, and cannot be: {error}"
            raise NeverReadyError("StateUnwritable", message) from error

    async def _ready_or_told_to_leave(self, server: LiveServer, process: Running, order: Order) -> None:
        """Until it answers, or is told to leave. Raises NeverReadyError."""
        upstream = self._client.probe(server.base_url)
        wait = Wait(
            port=server.port,
            ready=lambda: order.ready(upstream),
            timeout_s=server.variant.load_deadline_s,
            foreign_listener=server.variant.foreign_listener,
        )
        ready = asyncio.create_task(process.until_ready(wait))
        leave = asyncio.create_task(server.leave.wait())
        try:
            await asyncio.wait((ready, leave), return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
        finally:
            for task in (ready, leave):
                task.cancel()
            await asyncio.gather(ready, leave, return_exceptions=True)

    async def _serve(self, server: LiveServer) -> None:
        """Until it is told to leave, or ends by itself."""
        process = server.process
        if process is None:
            return
        leave = asyncio.create_task(server.leave.wait())
        try:
            await asyncio.wait((process.exited, leave), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leave.cancel()
        if server.leave.is_set():
            self.fleet.forgive(server.model, server.variant.name)  # it served, and leaves because it was told to
            return
        message = f"the server {process.exited.result()} while it was serving"
        if server.state is ServerState.READY:
            self.fleet.failed(server, "Exited", message)
        # The route closes here, before anything else can happen.
        self.fleet.force_stop(server, "Exited", message, Cause.EXITED)
        self.fleet.explain(server, await self._with_output(server, message))

    async def _end(self, server: LiveServer) -> None:
        """Stop what there is of it; only when its whole group is gone, give back port and memory."""
        if server.state is not ServerState.STOPPING:
            self.fleet.force_stop(server, server.left_because or "Failed", cause=Cause.FAILED)
        if server.process is not None:
            attributes = {"sidecar.model": server.model, "sidecar.reason": server.left_because}
            # A trace of its own: the one that this task belongs to began with the start, maybe days ago.
            with self._tracer.start_as_current_span("server stop", context=Context(), attributes=attributes):
                await self._stop(server, partial(server.process.stop, server.variant.stop_timeout))
        elif server.left_because == "LeftBehind":
            await self._stop(server, partial(self._machine.stop_left_behind, server.id, server.variant.stop_timeout))
        self._machine.give_back_port(server.port)
        self.fleet.gone(server)
        try:
            await self.write_down()
        except OSError:
            log.exception("%s is gone, which cannot be written down; the next sidecar will find out", server.id)

    async def write_down(self) -> None:
        """Record which servers there are. Raises OSError."""
        await self._machine.record([server.record() for server in self.fleet.servers.values()])

    async def _stop(self, server: LiveServer, stop: Callable[[], Awaitable[None]]) -> None:
        """Until it has worked: the reservation must not be released before, nor be kept for ever."""
        while True:
            try:
                await stop()
                return
            except OSError:
                log.exception("%s: stopping failed, and is tried again", server.id)
                await asyncio.sleep(_RETRY_STOP_S)

    async def _with_output(self, server: LiveServer, message: str) -> str:
        if server.process is None:
            return message
        hide = without_keys(NOTHING, [server.variant])  # others stand in variables: see LocalMachine
        lines = [hide(line) for line in await server.process.last_lines()]
        return "\n".join([f"{message}; the last lines of its output:", *lines[-_TOLD_LINES:]]) if lines else message


def _job(server: LiveServer, order: Order) -> Job:
    variant = server.variant
    values = {
        "port": str(server.port),
        "devices.index": ",".join(str(device.status.index) for device in order.devices),
        "devices.uuid": ",".join(device.id for device in order.devices),
    }
    extra = order.visibility | variant.env
    return Job(
        server=server.id,
        model=server.model,
        argv=tuple(placeholders.fill(text, values) for text in variant.command),
        env={key: placeholders.fill(text, values) for key, text in extra.items()},
        cwd=order.cwd / placeholders.fill(variant.cwd, values),
    )
