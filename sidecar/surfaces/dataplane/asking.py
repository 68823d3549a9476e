"""Asks a server for the answer: chooses and leases one, sends the request, and tries another if nobody has noticed."""

from __future__ import annotations

import asyncio
import logging

import msgspec
from opentelemetry.trace import SpanKind

from plugin_sdk import End, Outcome, Request
from plugin_sdk.messages import RawHeaders
from sidecar.control.controller import Controller
from sidecar.control.leases import Lease, RefusedError, Target
from sidecar.control.targets import lease as lease_of
from sidecar.control.targets import own_lease, targets
from sidecar.core.manifest import Model
from sidecar.mechanism.chain import Chain, Routed
from sidecar.mechanism.connections import Exchange, UpstreamError
from sidecar.mechanism.filters import Passage
from sidecar.mechanism.upstream import end_to_end
from sidecar.surfaces.dataplane.body import Head, with_model
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.response import Response
from sidecar.surfaces.dataplane.tracing import RequestTrace
from sidecar.surfaces.dataplane.waiting import loading, wait_aloud

log = logging.getLogger(__name__)

ATTEMPTS = 3  # connections tried in all, if there are no more servers than that; only while nothing can be processed

# Of the client's connection or identity: they do not concern the upstream, which gets its own.
_NOT_PASSED_ON = frozenset((b"host", b"content-length", b"expect", b"authorization", b"x-api-key"))


class UnknownModelError(Exception):
    """There is no such model: no manifest declares it, and no plugin knows it."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, of which model: the request as the filters left it, and what matters of its body.

    model: as a manifest declares it; None = none does, and a route plugin has to know where it is.
    """

    name: str
    model: Model | None
    request: Request
    head: Head
    chain: Chain
    passage: Passage | None


class Asking:
    """One request's attempts. target: the server of the latest."""

    def __init__(self, controller: Controller, asked: Asked, response: Response, trace: RequestTrace) -> None:
        self.target: Target | None = None
        self.queue_s = 0.0
        self._routed: list[tuple[Routed, str]] = []  # what route plugins chose, and which variant that was
        self._controller = controller
        self._asked = asked
        self._response = response
        self._trace = trace
        self._clock = controller.clock
        self._tried: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Ask, and again if it cannot have been noticed; then pass on the answer.

        Raises UpstreamError, ApiError, Reject, UnknownModelError.
        """
        model = self._asked.model
        attempts = max(ATTEMPTS, len(model.variants) if model is not None else 0)
        for attempt in range(1, attempts + 1):
            lease = await (self._lease(model) if model is not None else self._supplied())
            self.target = lease.target
            try:
                await self._ask(lease.target)
                return
            except UpstreamError as error:
                if error.processed or attempt == attempts:
                    why = await lease.last_words()
                    raise UpstreamError(f"{error}; {why}" if why else str(error), processed=error.processed) from error
                log.info("%s: %s; trying again", self._asked.name, error)
            finally:
                lease.release()
            self._tried |= {lease.target.variant}
            if lease.target.origin == "managed" or not self._others(model):
                await asyncio.sleep(0.05 * attempt)  # a server that has just died is noticed in this time

    def finished(self, outcome: Outcome) -> None:
        """Tell the route plugins what became of their choices. All but the last one did not answer."""
        for routed, variant in self._routed[:-1]:
            code = "upstream_failed"
            routed.finished(
                msgspec.structs.replace(outcome, variant=variant, end=End.UPSTREAM_FAILED, status=502, code=code)
            )
        for routed, _ in self._routed[-1:]:
            routed.finished(outcome)

    # --- choosing -----------------------------------------------------------------------------------------------

    def _others(self, model: Model | None) -> bool:
        """Whether there are servers that were not tried yet."""
        return model is not None and bool(targets(self._controller.fleet, self._asked.name, model, self._tried))

    async def _supplied(self) -> Lease:
        """The lease of what the plugin gives that has the model."""
        asked = self._asked
        with self._trace.stage("route"):
            routed = await asked.chain.supply(asked.request)
        if routed is None:
            raise UnknownModelError(asked.name)
        self._routed.append((routed, routed.target.name))
        return own_lease(self._controller.fleet, asked.name, routed.target)

    async def _lease(self, model: Model) -> Lease:
        asked = self._asked
        lease = await self._chosen(model) if asked.chain.has_route else None
        if lease is None:
            lease = self._controller.activator.try_acquire(asked.name, model, self._tried)
        if lease is None:
            lease = await self._queue(model)
            if asked.chain.has_route and lease.target.origin == "external":
                lease = await self._chosen_instead(model, lease)
        return lease

    async def _chosen(self, model: Model) -> Lease | None:
        """The lease of what route plugins choose; None if they leave it to the manifest, or it has to be waited for."""
        asked, fleet = self._asked, self._controller.fleet
        found = targets(fleet, asked.name, model, self._tried)
        with self._trace.stage("route"):
            routed = await asked.chain.resolve(asked.request, found)
        if routed is None:
            return None
        self._routed.append((routed, routed.target.name))
        return lease_of(fleet, asked.name, model, routed.target)

    async def _chosen_instead(self, model: Model, lease: Lease) -> Lease:
        """While it was waited for, there was nothing to choose from; now there is."""
        try:
            chosen = await self._chosen(model)
        except BaseException:
            lease.release()
            raise
        if chosen is None:
            return lease
        lease.release()
        return chosen

    async def _queue(self, model: Model) -> Lease:
        began = self._clock.monotonic()
        with self._trace.stage("queue") as span:
            try:
                lease = await self._wait(model)
            except RefusedError as error:
                raise ApiError.refused(error, self._asked.name) from None
            finally:
                self.queue_s += self._clock.monotonic() - began
            try:
                self._trace.cold_start(lease.target, span)
            except BaseException:
                lease.release()
                raise
        return lease

    async def _wait(self, model: Model) -> Lease:
        asked = self._asked
        leasing = self._controller.activator.acquire(asked.name, model)
        if not (model.loading_events and asked.head.streams and asked.request.method == "POST"):
            return await leasing
        began = self._clock.monotonic()

        async def tell() -> None:
            conditions = self._controller.fleet.conditions.get(asked.name, ())
            await self._response.comment(loading(asked.name, conditions, self._clock.monotonic() - began))

        return await wait_aloud(leasing, tell)

    # --- asking -------------------------------------------------------------------------------------------------

    async def _ask(self, target: Target) -> None:
        request = self._asked.request
        body = request.body
        if self._asked.head.model != target.upstream_model:
            body = with_model(body, target.upstream_model, request.headers.get("content-type"))
        url = target.base_url + request.path
        with self._trace.stage("upstream", SpanKind.CLIENT) as span:
            span.set_attribute("url.full", url)
            url += f"?{request.query}" if request.query else ""
            headers = self._trace.carry(self._headers_for(target), span)
            exchange = await self._send(target, url, headers, body)
            try:
                span.set_attribute("http.response.status_code", exchange.status)
                await self._response.relay(exchange, self._asked.passage)
            finally:
                await exchange.close()

    async def _send(self, target: Target, url: str, headers: RawHeaders, body: bytes) -> Exchange:
        try:
            async with asyncio.timeout(target.timeout_s):
                return await self._controller.client.exchange(self._asked.request.method, url, headers, body)
        except TimeoutError:
            message = f"{target.base_url} did not answer within {target.timeout_s:g} s"
            raise UpstreamError(message, processed=True) from None

    def _headers_for(self, target: Target) -> RawHeaders:
        """The client's headers without what was meant for the sidecar, with the upstream's own key."""
        dropped = _NOT_PASSED_ON
        extra: RawHeaders = ()
        passage = self._asked.passage
        # Too late to tell the client of an encoding; or filters are to read the answer.
        if self._response.begun or (passage is not None and passage.sees_body):
            dropped, extra = dropped | {b"accept-encoding"}, ((b"accept-encoding", b"identity"),)
        headers = tuple(pair for pair in end_to_end(self._asked.request.headers.raw) if pair[0].lower() not in dropped)
        if target.api_key is not None:
            extra = (*extra, (b"authorization", b"Bearer " + target.api_key.reveal().encode()))
        return (*headers, *extra)
