"""The course of one inference request, whoever carries its bytes.

Find the interface by path and the model by name; authenticate; lease a server, starting one if need be; relay its
answer byte by byte; whatever happens, give the lease back, record the outcome and end the span.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
from opentelemetry.trace import SpanKind

from plugin_sdk import ANONYMOUS, End, Endpoint, Headers, Interface, Outcome, Principal, Reject, Request, Usage
from plugin_sdk.messages import RawHeaders
from sidecar.control.controller import Controller
from sidecar.control.generations import Generation
from sidecar.control.leases import Lease, RefusedError, Target
from sidecar.core.manifest import Model
from sidecar.core.names import listed, near
from sidecar.mechanism.connections import UpstreamError
from sidecar.mechanism.upstream import end_to_end
from sidecar.surfaces.dataplane.body import Head, read_head, with_model
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.response import Downstream, Response
from sidecar.surfaces.dataplane.tracing import RequestTrace
from sidecar.surfaces.dataplane.waiting import loading, wait_aloud

log = logging.getLogger(__name__)

ATTEMPTS = 3  # connections tried in all, each on a server that was ready; only while nothing can have been processed

# Of the client's connection or identity: they do not concern the upstream, which gets its own.
_NOT_PASSED_ON = frozenset((b"host", b"content-length", b"expect", b"authorization", b"x-api-key"))


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it came. query: undecoded, without the "?"."""

    method: str
    path: str
    query: str
    headers: RawHeaders
    client: str


class Found(msgspec.Struct, frozen=True):
    """Where a path leads: the mode and interface that own it."""

    mode: str
    endpoint: Endpoint
    interface: Interface[Any]


def find_endpoints(generation: Generation, path: str) -> list[Found]:
    """The interfaces that serve a path; which of them counts depends on the model."""
    return [
        Found(mode, endpoint, interface)
        for mode, interface in generation.interfaces.items()
        for endpoint in interface.endpoints
        if endpoint.path == path
    ]


class Relay:
    """One request from start to end. Create, `run` once, and the outcome is recorded."""

    def __init__(self, controller: Controller, incoming: Incoming, candidates: list[Found], out: Downstream) -> None:
        self._controller = controller
        self._generation = controller.generation
        self._incoming = incoming
        self._candidates = candidates
        self._found = candidates[0]
        self._clock = controller.clock
        self._response = Response(out, self._clock)
        self._started = self._clock.monotonic()
        self._started_unix = self._clock.unix()
        self._trace = RequestTrace(
            controller.tracer, incoming.headers, self._found.endpoint.operation, incoming.method, incoming.path
        )
        self._chain = self._generation.default_chain
        self._model = ""
        self._principal: Principal = ANONYMOUS
        self._target: Target | None = None
        self._queue_s = 0.0

    async def run(self, body: bytes) -> None:
        """Answer the request. Raises nothing but cancellation, which means that the client has gone."""
        self._generation.enter()
        usage: Usage | None = None
        try:
            await self._answer(body)
            usage = self._usage()
        except ApiError as error:
            await self._response.refuse(error)
        except UpstreamError as error:
            log.warning("%s: %s", self._model, error)
            await self._response.refuse(ApiError(502, "upstream_failed", str(error)), End.UPSTREAM_FAILED)
        except asyncio.CancelledError:
            self._response.left()
            raise
        except Exception:
            log.exception("%s %s failed", self._incoming.method, self._incoming.path)
            message = "the sidecar failed on this request; its log says how"
            await self._response.refuse(ApiError(500, "internal_error", message))
        finally:
            self._generation.leave()
            outcome = self._outcome(len(body), usage)
            self._chain.record(outcome)
            self._trace.end(outcome)

    # --- stages -------------------------------------------------------------------------------------------------

    async def _answer(self, body: bytes) -> None:
        request, head, model = await self._admit(body)
        try:
            self._found.interface.validate(request)
        except Reject as reject:
            raise ApiError.rejected(reject) from None
        await self._relay(model, head, body)

    async def _admit(self, body: bytes) -> tuple[Request, Head, Model]:
        """Who asks for what. Nobody learns which models there are before the default chain has let them in."""
        request = Request(
            method=self._incoming.method,
            path=self._incoming.path,
            query=self._incoming.query,
            headers=Headers(self._incoming.headers),
            body=body,
            mode=self._found.mode,
            client=self._incoming.client,
        )
        try:
            head = read_head(body)
            found = self._generation.find(head.model or "")
        except ApiError:
            await self._authenticate(request)
            raise
        if found is None:
            await self._authenticate(request)
            raise self._unknown(head)
        name, model = found
        self._model = name
        self._trace.asks_for(head.model or name)
        self._found = next((found for found in self._candidates if found.mode in model.modes), self._found)
        self._chain = self._generation.chain(name)
        request = msgspec.structs.replace(request, model=name, requested_model=head.model or "", mode=self._found.mode)
        await self._authenticate(request)
        if self._found.mode not in model.modes:
            raise ApiError(400, "wrong_mode", self._wrong_mode(name, model), param="model")
        return msgspec.structs.replace(request, principal=self._principal), head, model

    def _unknown(self, head: Head) -> ApiError:
        if not head.model:
            return ApiError(400, "model_missing", 'the body must name a "model"', param="model")
        shown = head.model[:200]
        self._trace.asks_for(shown)
        meant = near(head.model, self._generation.names())
        hint = f"; near it: {', '.join(meant)}" if meant else "; see /v1/models"
        return ApiError(404, "model_not_found", f'there is no model "{shown}"{hint}', param="model")

    async def _authenticate(self, request: Request) -> None:
        if not self._chain.has_auth:
            return
        with self._trace.stage("auth") as span:
            try:
                self._principal = await self._chain.authenticate(request)
            except Reject as reject:
                span.set_attribute("error.type", reject.code)
                raise ApiError.rejected(reject) from None

    def _wrong_mode(self, name: str, model: Model) -> str:
        paths = [
            endpoint.path
            for mode in model.modes
            if mode in self._generation.interfaces
            for endpoint in self._generation.interfaces[mode].endpoints
        ]
        modes = listed(model.modes)
        return f'the model "{name}" is of mode {modes}, not {self._found.mode}: it answers at {listed(paths)}'

    async def _lease(self, model: Model, head: Head) -> Lease:
        lease = self._controller.activator.try_acquire(self._model, model)
        if lease is None:
            began = self._clock.monotonic()
            with self._trace.stage("queue") as span:
                try:
                    lease = await self._wait(model, head)
                except RefusedError as error:
                    raise ApiError.refused(error, self._model) from None
                finally:
                    self._queue_s += self._clock.monotonic() - began
                try:
                    self._trace.cold_start(lease.target, span)
                except BaseException:
                    lease.release()
                    raise
        self._target = lease.target
        return lease

    async def _wait(self, model: Model, head: Head) -> Lease:
        leasing = self._controller.activator.acquire(self._model, model)
        if not (model.loading_events and head.streams and self._incoming.method == "POST"):
            return await leasing
        began = self._clock.monotonic()

        async def tell() -> None:
            conditions = self._controller.fleet.conditions.get(self._model, ())
            await self._response.comment(loading(self._model, conditions, self._clock.monotonic() - began))

        return await wait_aloud(leasing, tell)

    async def _relay(self, model: Model, head: Head, body: bytes) -> None:
        """Ask the server, and again if it cannot have noticed; then pass on what it says."""
        for attempt in range(1, ATTEMPTS + 1):
            lease = await self._lease(model, head)
            try:
                await self._ask(lease.target, head, body)
                return
            except UpstreamError as error:
                if error.processed or attempt == ATTEMPTS:
                    why = await lease.last_words()
                    raise UpstreamError(f"{error}; {why}" if why else str(error), processed=error.processed) from error
                log.info("%s: %s; trying again", self._model, error)
            finally:
                lease.release()
            await asyncio.sleep(0.05 * attempt)  # a server that has just died is noticed in this time

    async def _ask(self, target: Target, head: Head, body: bytes) -> None:
        if head.model != target.upstream_model:
            body = with_model(body, target.upstream_model)
        with self._trace.stage("upstream", SpanKind.CLIENT) as span:
            span.set_attribute("url.full", target.base_url + self._incoming.path)
            query = f"?{self._incoming.query}" if self._incoming.query else ""
            exchange = await self._controller.client.exchange(
                self._incoming.method,
                target.base_url + self._incoming.path + query,
                self._trace.carry(self._headers_for(target), span),
                body,
            )
            try:
                span.set_attribute("http.response.status_code", exchange.status)
                await self._response.relay(exchange)
            finally:
                await exchange.close()

    def _headers_for(self, target: Target) -> RawHeaders:
        """The client's headers without what was meant for the sidecar, with the upstream's own key."""
        dropped = _NOT_PASSED_ON
        extra: RawHeaders = ()
        if self._response.begun:  # too late to tell the client of an encoding
            dropped, extra = dropped | {b"accept-encoding"}, ((b"accept-encoding", b"identity"),)
        headers = tuple(pair for pair in end_to_end(self._incoming.headers) if pair[0].lower() not in dropped)
        if target.api_key is not None:
            extra = (*extra, (b"authorization", b"Bearer " + target.api_key.reveal().encode()))
        return (*headers, *extra)

    # --- ends ---------------------------------------------------------------------------------------------------

    def _usage(self) -> Usage | None:
        try:
            return self._found.interface.usage(self._response.tail.read(), self._response.tail.streamed)
        except Exception:
            log.exception("the interface plugin of mode %s cannot read usage", self._found.mode)
            return None

    def _outcome(self, bytes_in: int, usage: Usage | None) -> Outcome:
        target, response = self._target, self._response
        first_byte_at = response.first_byte_at
        return Outcome(
            model=self._model,
            variant=target.variant if target else "",
            mode=self._found.mode,
            path=self._incoming.path,
            principal=self._principal.id,
            end=response.end,
            status=response.status,
            code=response.code,
            streamed=response.tail.streamed,
            cold=target is not None and target.cold is not None,
            started_s=self._started_unix,
            duration_s=self._clock.monotonic() - self._started,
            queue_s=self._queue_s,
            first_byte_s=None if first_byte_at is None else first_byte_at - self._started,
            bytes_in=bytes_in,
            bytes_out=response.tail.total,
            usage=usage,
            trace_id=self._trace.id,
        )
