"""Which server a request goes to: what route plugins say, what is ready, or what has to be waited for."""

from __future__ import annotations

import asyncio

import msgspec

from plugin_sdk import End, Outcome
from sidecar.control.controller import Controller
from sidecar.control.leases import Lease, RefusedError
from sidecar.control.targets import lease as lease_of
from sidecar.control.targets import own_lease, targets
from sidecar.core.manifest import Model
from sidecar.mechanism.calls import at_once
from sidecar.mechanism.chain import Routed
from sidecar.mechanism.traces import AnyTrace
from sidecar.surfaces.dataplane.admission import Asked
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.response import Response
from sidecar.surfaces.dataplane.waiting import loading, wait_aloud

ATTEMPTS = 3  # connections tried in all, if there are no more servers than that; only while nothing can be processed


class UnknownModelError(Exception):
    """There is no such model: no manifest declares it, and no plugin knows it."""


class Choosing:
    """One request's choices. tried: variants that did not answer."""

    __slots__ = ("_asked", "_clock", "_controller", "_response", "_routed", "_trace", "attempts", "queue_s", "tried")

    def __init__(self, controller: Controller, asked: Asked, response: Response, trace: AnyTrace) -> None:
        self.queue_s = 0.0
        self.tried: frozenset[str] = frozenset()
        self.attempts = max(ATTEMPTS, len(asked.model.variants) if asked.model is not None else 0)
        self._routed: list[tuple[Routed, str]] = []  # what route plugins chose, and which variant that was
        self._controller = controller
        self._asked = asked
        self._response = response
        self._trace = trace
        self._clock = controller.clock

    def at_once(self) -> Lease | None:
        """A lease if there is one without waiting for anything."""
        asked = self._asked
        if asked.model is None or not asked.chain.route_inline:
            return None
        lease = at_once(self._chosen(asked.model)) if asked.chain.has_route else None
        return lease or self._controller.activator.try_acquire(asked.name, asked.model, self.tried)

    async def lease(self, *, asked_routes: bool = False) -> Lease:
        """A lease. Raises ApiError, Reject, UnknownModelError.

        asked_routes: the route plugins have been asked a moment ago, and had nothing to choose from.
        """
        asked = self._asked
        if asked.model is None:
            return await self._supplied()
        lease = await self._chosen(asked.model) if asked.chain.has_route and not asked_routes else None
        if lease is None:
            lease = self._controller.activator.try_acquire(asked.name, asked.model, self.tried)
        if lease is None:
            lease = await self._queue(asked.model)
            if asked.chain.has_route and lease.target.origin == "external":
                lease = await self._chosen_instead(asked.model, lease)
        return lease

    def others(self) -> bool:
        """Whether there are servers that were not tried yet."""
        asked = self._asked
        return asked.model is not None and bool(targets(self._controller.fleet, asked.name, asked.model, self.tried))

    def finished(self, outcome: Outcome) -> None:
        """Tell the route plugins what became of their choices. All but the last one did not answer."""
        for routed, variant in self._routed[:-1]:
            code = "upstream_failed"
            routed.finished(
                msgspec.structs.replace(outcome, variant=variant, end=End.UPSTREAM_FAILED, status=502, code=code)
            )
        for routed, _ in self._routed[-1:]:
            routed.finished(outcome)

    async def _supplied(self) -> Lease:
        """The lease of what the plugin gives that has the model."""
        asked = self._asked
        with self._trace.stage("route"):
            routed = await asked.chain.supply(asked.request)
        if routed is None:
            raise UnknownModelError(asked.name)
        self._routed.append((routed, routed.target.name))
        return own_lease(self._controller.fleet, asked.name, routed.target)

    async def _chosen(self, model: Model) -> Lease | None:
        """The lease of what route plugins choose; None if they leave it to the manifest, or it has to be waited for."""
        asked, fleet = self._asked, self._controller.fleet
        found = targets(fleet, asked.name, model, self.tried)
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
        with self._trace.stage("queue") as stage:
            try:
                lease = await self._wait(model)
            except RefusedError as error:
                raise ApiError.refused(error, self._asked.name) from None
            finally:
                self.queue_s += self._clock.monotonic() - began
            try:
                self._trace.cold_start(lease.target, stage)
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
            self._response.comment(loading(asked.name, conditions, self._clock.monotonic() - began))
            await asyncio.sleep(0)

        return await wait_aloud(leasing, tell)
