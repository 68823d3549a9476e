"""The course of one inference request, whoever carries its bytes.

Find the interface by path and the model by name; authenticate; let the filters have their say; ask a server, starting
one if need be, and relay its answer byte by byte; whatever happens, give back what was held, record the outcome and end
the span.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from plugin_sdk import ANONYMOUS, End, Endpoint, Headers, Outcome, Principal, Reject, Request, Usage
from plugin_sdk import Response as Answer
from plugin_sdk.messages import RawHeaders
from sidecar.control.controller import Controller
from sidecar.control.generations import Generation
from sidecar.control.visible import Visible
from sidecar.core.manifest import Model
from sidecar.core.names import listed
from sidecar.mechanism.connections import UpstreamError
from sidecar.mechanism.filters import Passage
from sidecar.mechanism.modes import Mode
from sidecar.mechanism.results import is_name
from sidecar.surfaces.dataplane.asking import Asked, Asking, UnknownModelError
from sidecar.surfaces.dataplane.body import Head, read_head
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.response import Downstream, Response
from sidecar.surfaces.dataplane.tracing import RequestTrace
from sidecar.surfaces.dataplane.waiting import to_the_end

log = logging.getLogger(__name__)


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
    interface: Mode


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
        self._response.interface = self._found.interface
        self._started = self._clock.monotonic()
        self._started_unix = self._clock.unix()
        self._trace = RequestTrace(
            controller.tracer, incoming.headers, self._found.endpoint.operation, incoming.method, incoming.path
        )
        self._chain = self._generation.default_chain
        self._model = ""
        self._is_model = True  # and not merely what somebody has called one
        self._principal: Principal = ANONYMOUS
        self._passage: Passage | None = None
        self._asking: Asking | None = None

    async def run(self, body: bytes) -> None:
        """Answer the request. Raises nothing but cancellation, which means that the client has gone."""
        self._generation.enter()
        usage: Usage | None = None
        try:
            await self._answer(body)
            usage = self._usage()
        except ApiError as error:
            await self._response.refuse(error)
        except Reject as reject:  # whichever stage it is from
            await self._response.refuse(ApiError.rejected(reject))
        except UpstreamError as error:
            log.warning("%s: %s", self._model, error)
            await self._response.refuse(ApiError(502, "upstream_failed", str(error)), End.UPSTREAM_FAILED)
        except asyncio.CancelledError:
            self._response.left()
            usage = self._usage()  # many clients leave as soon as they have seen the last event
            raise
        except Exception:
            log.exception("%s %s failed", self._incoming.method, self._incoming.path)
            message = "the sidecar failed on this request; its log says how"
            await self._response.refuse(ApiError(500, "internal_error", message))
        finally:
            await self._finish(self._outcome(len(body), usage))

    async def _finish(self, outcome: Outcome) -> None:
        """Tell everybody what came of it; the plugins are in use until then."""
        try:
            if self._asking is not None:
                self._asking.finished(outcome)
            self._chain.record(outcome)
            self._trace.end(outcome)
            if self._passage is not None and self._passage.has_end:
                await to_the_end(self._passage.end(outcome))
        finally:
            self._generation.leave()

    # --- stages -------------------------------------------------------------------------------------------------

    async def _answer(self, body: bytes) -> None:
        request, head, model = await self._admit(body)
        interface = self._found.interface
        interface.validate(request)
        limit = self._generation.declaration.settings.max_body
        self._passage = self._chain.passage(self._found.mode, limit, events=interface.events)
        if self._passage is not None:
            changed = await self._filter(self._passage, request)
            if changed is None:
                return
            if changed.body is not body:
                head = _reread(changed)
            request = changed
        asked = Asked(
            name=self._model,
            model=model,
            request=request,
            head=head,
            chain=self._chain,
            passage=self._passage,
        )
        self._asking = Asking(self._controller, asked, self._response, self._trace)
        try:
            await self._asking.run()
        except UnknownModelError as error:
            raise self._unknown(str(error)) from None

    async def _filter(self, passage: Passage, request: Request) -> Request | None:
        """The request as it goes on; None if a filter has answered it."""
        with self._trace.stage("filters"):
            result = await passage.request(request)
        if isinstance(result, Answer):
            await self._response.give(result, f"answered_by:{passage.answered_by}")
            return None
        return result

    async def _admit(self, body: bytes) -> tuple[Request, Head, Model | None]:
        """Who asks for what. Nobody learns which models there are before the default chain has let them in.

        The model is None if no manifest declares it; then a route plugin may know it.
        """
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
            head = read_head(body, request.headers.get("content-type"))
            found = self._generation.find(head.model or "")
        except ApiError:
            await self._authenticate(request)
            raise
        if found is None:
            return await self._admit_undeclared(request, head.model or ""), head, None
        name, model = found
        self._chain = self._generation.chain(name)
        self._trace.asks_for(head.model or name)
        return await self._admit_to(request, name, head.model or "", model.modes), head, model

    async def _admit_undeclared(self, request: Request, requested: str) -> Request:
        """The request if a plugin may know the model."""
        supplied = self._generation.supplied
        if not (self._chain.supplies and is_name(requested) and supplied.may_have(requested)):
            await self._authenticate(request)
            raise self._unknown(requested)
        await supplied.first()
        listed_as = supplied.find(requested)
        self._is_model = listed_as is not None
        name, modes = (requested, ()) if listed_as is None else (listed_as.name, listed_as.modes)
        request = await self._admit_to(request, name, requested, modes)
        self._trace.asks_for(requested)
        return request

    async def _admit_to(self, request: Request, name: str, requested: str, modes: tuple[str, ...]) -> Request:
        """The request for a model that has these modes, () = any; authenticated."""
        self._model = name
        self._found = next((found for found in self._candidates if found.mode in modes), self._found)
        self._response.interface = self._found.interface
        asks_for = {"model": name, "requested_model": requested, "listed": self._is_model}
        request = msgspec.structs.replace(request, **asks_for, mode=self._found.mode)
        await self._authenticate(request)
        if modes and self._found.mode not in modes:
            raise ApiError(400, "wrong_mode", self._wrong_mode(name, modes), param="model")
        return msgspec.structs.replace(request, principal=self._principal)

    def _unknown(self, requested: str) -> ApiError:
        if not requested:
            return ApiError(400, "model_missing", 'the body must name a "model"', param="model")
        shown = requested[:200]
        self._trace.asks_for(shown)
        meant = Visible(self._generation, self._principal).near(requested)
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

    def _wrong_mode(self, name: str, modes: tuple[str, ...]) -> str:
        paths = [
            endpoint.path
            for mode in modes
            if mode in self._generation.interfaces
            for endpoint in self._generation.interfaces[mode].endpoints
        ]
        return f'the model "{name}" is of mode {listed(modes)}, not {self._found.mode}: it answers at {listed(paths)}'

    # --- ends ---------------------------------------------------------------------------------------------------

    def _usage(self) -> Usage | None:
        if self._asking is None:
            return None  # no server has counted anything
        tail = self._response.tail
        return self._found.interface.usage(tail.read(), tail.streamed)

    def _outcome(self, bytes_in: int, usage: Usage | None) -> Outcome:
        asking, response = self._asking, self._response
        target = asking.target if asking else None
        first_byte_at = response.first_byte_at
        return Outcome(
            model=self._model if self._is_model or target is not None else "",
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
            queue_s=asking.queue_s if asking else 0.0,
            first_byte_s=None if first_byte_at is None else first_byte_at - self._started,
            bytes_in=bytes_in,
            bytes_out=response.tail.total,
            usage=usage,
            trace_id=self._trace.id,
        )


def _reread(request: Request) -> Head:
    """What matters of a request that filters have changed."""
    try:
        return read_head(request.body, request.headers.get("content-type"))
    except ApiError as error:
        raise ApiError(500, "filter_failed", f"a filter has made of the request what cannot be sent: {error}") from None
