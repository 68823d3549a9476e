"""What all requests share: the generation's paths, connections to servers, traces, and counts of how they ended."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

import msgspec

from plugin_sdk import End, Outcome
from sidecar.control.controller import Controller
from sidecar.control.generations import Generation
from sidecar.core.manifest import Settings
from sidecar.mechanism.origins import Origin
from sidecar.mechanism.request_meter import RequestMeter
from sidecar.mechanism.traces import Traces
from sidecar.surfaces.dataplane.cors import Cors
from sidecar.surfaces.dataplane.courses import Course, Courses
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.models import ModelList
from sidecar.surfaces.dataplane.routing import Way, Ways

SWEEP_S = 0.5
ORIGINS_MOST = 4096  # remembered; route plugins may make up any number


class Connected(Protocol):
    """A client's connection."""

    def look_after(self, now: float, settings: Settings) -> None:
        """End it, if nothing has moved for too long. now: the loop's clock."""
        ...

    def cut_off(self, error: ApiError) -> None:
        """End what is being answered, and the connection."""
        ...


class Requests(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of all requests for inference: `accepted` is the sum of the next five.

    ended: those that were looked into, by how they ended (`End`). listed: for the list of models. refused_early: for
    how they were sent, or where to. abandoned: their clients left before their turn came, or did not send all of them.
    malformed: what was no request, or did not come in time. connections: of clients, now.
    refused_connections: beyond the most.
    """

    accepted: int = 0
    in_flight: int = 0
    ended: dict[str, int] = {}
    listed: int = 0
    refused_early: int = 0
    abandoned: int = 0
    malformed: int = 0
    connections: int = 0
    refused_connections: int = 0


class Plane:
    """The data plane of one sidecar. Its counts are explained with `Requests`."""

    def __init__(self, controller: Controller, traces: Traces) -> None:
        self.controller = controller
        self.generations = controller.generations
        self.traces = traces
        self.pool = controller.client.pool
        self.meter = RequestMeter()
        self.models = ModelList(controller)
        self.loop = asyncio.get_running_loop()
        self.accepted = 0
        self.ended = dict.fromkeys((end.value for end in End), 0)
        self.listed = 0
        self.refused_early = 0
        self.abandoned = 0
        self.malformed = 0
        self.refused_connections = 0
        self._connections: set[Connected] = set()
        self._ways: Ways | None = None
        self._courses: Courses | None = None
        self._cors: Cors | None = None
        self._origins: dict[str, Origin] = {}
        self._later: set[asyncio.Task[None]] = set()
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def generation(self) -> Generation:
        """The generation in force."""
        return self.controller.generation

    @property
    def max_body(self) -> int:
        """The most bytes of a request's body."""
        return self.controller.declaration.settings.max_body

    @property
    def cors(self) -> Cors | None:
        """Which pages may read answers; None = no rules of ours."""
        origins = self.controller.declaration.settings.cors_origins
        if not origins:
            return None
        if self._cors is None or self._cors.origins is not origins:
            self._cors = Cors(origins)
        return self._cors

    @property
    def requests(self) -> Requests:
        """The counts of this moment."""
        told = sum(self.ended.values()) + self.listed + self.refused_early + self.abandoned
        return Requests(
            accepted=self.accepted,
            in_flight=self.accepted - told,
            ended=dict(self.ended),
            listed=self.listed,
            refused_early=self.refused_early,
            abandoned=self.abandoned,
            malformed=self.malformed,
            connections=len(self._connections),
            refused_connections=self.refused_connections,
        )

    def connected(self, connection: Connected) -> bool:
        """Whether one more client may be served."""
        if len(self._connections) >= self.controller.declaration.settings.max_connections:
            self.refused_connections += 1
            return False
        self._connections.add(connection)
        return True

    def disconnected(self, connection: Connected) -> None:
        """A client has gone."""
        self._connections.discard(connection)

    def look_after(self) -> None:
        """End connections on which nothing moves, from now on."""
        now, settings = self.loop.time(), self.controller.declaration.settings
        for connection in list(self._connections):
            connection.look_after(now, settings)
        self._sweep = self.loop.call_later(SWEEP_S, self.look_after)

    async def close(self) -> None:
        """End whatever is still being answered."""
        if self._sweep is not None:
            self._sweep.cancel()
        error = ApiError(503, "shutting_down", "the sidecar is shutting down", retry_after_s=10.0)
        for connection in list(self._connections):
            connection.cut_off(error)
        await asyncio.gather(*self._later, return_exceptions=True)

    def way(self, method: bytes, url: bytes) -> Way:
        """Where a request leads. Raises BadRequestError."""
        ways = self._ways
        if ways is None or ways.generation is not self.controller.generation:
            ways = self._ways = Ways(self.controller.generation, self.models)
            self.meter.by_principal = self.controller.declaration.settings.metrics_principals
        return ways.find(method, url)

    def course(self, way: Way, model: str) -> Course | None:
        """What is known of requests for a model there; None if they have to be looked at one by one."""
        courses = self._courses
        if courses is None or courses.generation is not self.controller.generation:
            courses = self._courses = Courses(self.controller.generation)
        return courses.find(way, model)

    def may_stream(self, way: Way, model: str | None) -> bool:
        """Whether a request's body can go to its server while it still comes in: nobody else has to see it."""
        generation = self.generation
        found = generation.find(model) if model is not None else None
        if found is None or any(one.through for one in way.found):
            return False
        fit = [one for one in way.found if one.mode in found[1].modes]
        return not generation.chain(found[0]).reads_body and not any(one.interface.validates for one in fit)

    def origin(self, base_url: str) -> Origin:
        """Where a server's base URL leads."""
        origin = self._origins.get(base_url)
        if origin is None:
            if len(self._origins) >= ORIGINS_MOST:
                self._origins.clear()
            origin = self._origins[base_url] = Origin.of(base_url)
        return origin

    def count(self, outcome: Outcome, operation: str) -> None:
        """A request has ended. operation: of its endpoint."""
        self.ended[outcome.end._value_] += 1  # an Enum's hash is slow
        self.meter.count(outcome, operation)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """What is left to do for a request that has ended."""
        task = self.loop.create_task(work)
        self._later.add(task)
        task.add_done_callback(self._later.discard)
