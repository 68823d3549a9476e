"""How a server is asked: which one, over which connection, with what, and how often if it does not answer."""

from __future__ import annotations

import asyncio
import logging

from opentelemetry.trace import SpanKind

from plugin_sdk import Request
from sidecar.control.leases import Target
from sidecar.mechanism.connections import Connection
from sidecar.mechanism.exchanges import UpstreamError
from sidecar.surfaces.dataplane.admission import Asked, Given
from sidecar.surfaces.dataplane.body import with_model, with_usage
from sidecar.surfaces.dataplane.choosing import Choosing
from sidecar.surfaces.dataplane.ending import Ending
from sidecar.surfaces.dataplane.relaying import Owner, Relaying
from sidecar.surfaces.dataplane.request import UPGRADE, headers_for, passed_on, written
from sidecar.surfaces.dataplane.tunnel import Switching
from sidecar.surfaces.dataplane.withheld import UsageWithheld

log = logging.getLogger(__name__)


class Asking(Ending, Owner):
    """A request for which there may have to be a server."""

    async def _course(self, body: bytes) -> None:
        if self._take(await self.admission.admit(body)) and not self._ask_at_once():
            await self._ask()

    def _take(self, admitted: Asked | Given) -> bool:
        """Whether a server is to be asked."""
        self.response.interface = self.admission.found.interface
        if isinstance(admitted, Given):
            self.response.give(admitted.answer, f"answered_by:{admitted.by}")
            self._finish()
            return False
        if self._tunnel is not None:
            self._tunnel.check(admitted.passage)
        self._asked = admitted
        self._choosing = Choosing(self._plane.controller, admitted, self.response, self._trace)
        return True

    def _ask_at_once(self) -> bool:
        """Ask if a server and a connection to it are there; whether it was."""
        choosing = self._choosing
        if choosing is None:
            return False
        self._lease = choosing.at_once()
        if self._lease is None:
            return False
        self._target = self._lease.target
        origin = self._plane.origin(self._target.base_url)
        connection = None if self._fresh else self._plane.pool.take(origin)
        if connection is None:
            return False
        try:
            self._send(connection)
        except UpstreamError:
            self._fresh = True  # it was closed in this moment
            return False
        return True

    async def _ask(self, error: UpstreamError | None = None) -> None:
        """Ask, and again if it cannot have been noticed. error: why the attempt before has failed."""
        choosing = self._choosing
        if choosing is None:
            return
        try:
            while True:
                if error is not None:
                    await self._again(error, choosing)
                try:
                    asked_routes = self._attempt == 0 and self._asked is not None and self._asked.chain.route_inline
                    self._lease = self._lease or await choosing.lease(asked_routes=asked_routes)
                    self._target = self._lease.target
                    origin = self._plane.origin(self._target.base_url)
                    pool = self._plane.pool
                    connection = (None if self._fresh else pool.take(origin)) or await pool.connect(origin)
                    self._send(connection)
                    return
                except UpstreamError as failed:
                    error = failed
        finally:
            del error  # its traceback leads here: the request and its body would be left to the garbage collector

    async def _again(self, error: UpstreamError, choosing: Choosing) -> None:
        """Get ready for another attempt. Raises UpstreamError if there is none to be had."""
        self._attempt += 1
        lease, target = self._lease, self._target
        sent = self._uploading is not None and self._uploading.begun
        if error.processed or sent or lease is None or target is None or self._attempt >= choosing.attempts:
            raise await self._told(error) from error
        log.info("%s: %s; trying again", self.admission.name, error, extra=self._about())
        self._plane.meter.retried(self.admission.known_name)
        if error.reused:
            self._fresh = True  # the server closes idle connections: there is nothing wrong with it
            return
        self._release()
        choosing.tried |= {target.variant}
        if target.origin == "managed" or not choosing.others():
            await asyncio.sleep(0.05 * self._attempt)  # a server that has just died is noticed in this time

    async def _broke_off(self, error: UpstreamError) -> None:
        raise await self._told(error)

    async def _told(self, error: UpstreamError) -> UpstreamError:
        """The error, and how the server ended if it did."""
        why = await self._lease.last_words() if self._lease is not None else ""
        return UpstreamError(f"{error}; {why}" if why else str(error), processed=True)

    def _send(self, connection: Connection) -> None:
        """Raises UpstreamError, ApiError."""
        try:
            self._ask_on(connection)
        except Exception:
            connection.abort()  # nobody else knows of it
            raise

    def _ask_on(self, connection: Connection) -> None:
        asked, target = self._asked, self._target
        if asked is None or target is None:
            raise RuntimeError("nothing is asked of nobody")
        request = asked.request
        uploading, tunnel = self._uploading, self._tunnel
        framing = UPGRADE if tunnel is not None else b""
        body, withheld = request.body, None
        renamed = asked.renames_body(target.upstream_model)
        if uploading is not None:
            framing = uploading.framing(target.upstream_model if renamed else None)
        elif renamed:
            body = with_model(body, target.upstream_model, self._content_type(request))
        if uploading is None and self._counts_itself(asked):
            body, withheld = with_usage(body), UsageWithheld()
        passage = asked.passage if asked.passage is not None and asked.passage.sees_answer else None
        if tunnel is None:
            relaying = Relaying(self, self.response, self._wire, passage, withheld)
        else:
            relaying = Switching(self, self.response, self._wire, passage, tunnel)
        plain = self.response.begun or withheld is not None or (passage is not None and passage.sees_body)
        stage = self._stage = self._trace.begin("upstream", SpanKind.CLIENT)
        stage.set("url.full", target.base_url + request.path)
        incoming = self._incoming
        headers = incoming.passed_on if request.headers.raw is incoming.headers else passed_on(request.headers.raw)
        carried = self._trace.carry(headers_for(target, headers, plain=plain), stage)
        path = self._path(request) if not asked.elsewhere else asked.target(target.upstream_model)
        data = written(request.method, path, connection, carried, body, framing)
        connection.ask(
            relaying,
            data,
            head_only=request.method == "HEAD",
            pieces=relaying.pieces,
            upgrade=tunnel is not None,
            more=uploading is not None,
        )
        relaying.connection = connection
        self._relaying = relaying
        if uploading is not None:
            uploading.attach(connection)
        if self._wire.paused:
            connection.pause()
        if target.timeout_s is not None:
            self._timer = asyncio.get_running_loop().call_later(target.timeout_s, self._too_late, target)

    def _content_type(self, request: Request) -> str:
        incoming = self._incoming
        same = request.headers.raw is incoming.headers
        return incoming.content_type if same else request.headers.get("content-type")

    def _path(self, request: Request) -> str:
        """What to ask for: the very same, unless a filter has changed it."""
        incoming = self._incoming
        if request.path is incoming.path and request.query is incoming.query:
            return incoming.target
        return f"{request.path}?{request.query}" if request.query else request.path

    def _counts_itself(self, asked: Asked) -> bool:
        """Whether the stream is to tell its usage to us, though the client has not asked for it."""
        wanted = asked.model is not None and asked.model.count_streams and asked.head.streams
        return wanted and not asked.head.asks_usage and self.admission.found.interface.usage_on_request

    def _too_late(self, target: Target) -> None:
        """The server has not answered within the target's timeout."""
        self._stop_relaying()
        message = f"{target.base_url} did not answer within {target.timeout_s:g} s"
        self.fail(UpstreamError(message, processed=True))
