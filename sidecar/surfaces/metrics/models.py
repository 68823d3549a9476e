"""Metrics of models and of their servers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sidecar.control.controller import Controller
from sidecar.control.tallies import LOAD_BOUNDS_S
from sidecar.core.observed import ServerState, Status
from sidecar.mechanism.metrics import OVERFLOW, Family, Point, counter, gauge, histogram, info
from sidecar.surfaces.metrics.devices import MB, names_of

EVICTIONS = ("Evicted", "TurnOver")  # reasons for which a server makes room for another model

_MODEL = "sidecar.model"
_VARIANT = "sidecar.variant"
_WHICH = (_MODEL, _VARIANT)

STATE = gauge(
    "sidecar.model.state", "", "1 for the state that the model is in, 0 for the others.", (_MODEL, "sidecar.state")
)
VARIANT_STATE = info(
    "sidecar.variant.state",
    "The state that a variant of a model is in; each fails for itself.",
    (*_WHICH, "sidecar.state"),
)
READY = gauge(
    "sidecar.model.ready", "", "Whether the model can serve at once: its condition Ready.", (_MODEL, "sidecar.reason")
)
WAITING = gauge(
    "sidecar.queue.size", "{request}", "Requests that wait for their turn, or for their model to load.", (_MODEL,)
)
WAITING_SINCE = gauge(
    "sidecar.queue.age", "s", "For how long somebody has been waiting for the model; 0 = nobody is.", (_MODEL,)
)
IN_FLIGHT = gauge("sidecar.model.in_flight", "{request}", "Requests that a server of the model has now.", _WHICH)
RESERVED = gauge(
    "sidecar.server.memory.reserved", "By", "What is reserved for a server on a device.", (*_WHICH, "sidecar.device")
)
OBSERVED = gauge(
    "sidecar.server.memory.used",
    "By",
    "What a server really takes on a device, where that is known.",
    (*_WHICH, "sidecar.device"),
)
EXTERNAL_HEALTHY = gauge(
    "sidecar.external.healthy", "", "Whether a server that somebody else runs was well when it was last asked.", _WHICH
)
STARTS = counter("sidecar.server.starts", "{start}", "Servers that were started: cold starts.", (*_WHICH, OVERFLOW))
RESTARTS = counter(
    "sidecar.server.restarts",
    "{start}",
    "Of them, those that came after a failure of the variant.",
    (*_WHICH, OVERFLOW),
)
ADOPTIONS = counter(
    "sidecar.server.adoptions",
    "{server}",
    "Servers that were found running, and taken over from the sidecar before.",
    (*_WHICH, OVERFLOW),
)
FAILURES = counter(
    "sidecar.server.failures",
    "{failure}",
    "Servers that did not come up, or died while they served (reason Exited).",
    (*_WHICH, "sidecar.reason", OVERFLOW),
)
STOPS = counter(
    "sidecar.server.stops",
    "{server}",
    "Servers that were stopped, or cleared away after a failure.",
    (*_WHICH, "sidecar.reason", OVERFLOW),
)
EVICTED = counter(
    "sidecar.server.evictions",
    "{server}",
    "Of them, those that made room for another model: idle ones (Evicted), and ones in use (TurnOver).",
    (*_WHICH, "sidecar.reason", OVERFLOW),
)
LOADS = histogram(
    "sidecar.server.load.duration",
    "s",
    "From the start of a server until it was ready.",
    (*_WHICH, OVERFLOW),
    bounds=LOAD_BOUNDS_S,
)
METRICS = (
    *(STATE, VARIANT_STATE, READY, WAITING, WAITING_SINCE, IN_FLIGHT, RESERVED, OBSERVED, EXTERNAL_HEALTHY),
    *(STARTS, RESTARTS, ADOPTIONS, FAILURES, STOPS, EVICTED, LOADS),
)


def families(controller: Controller) -> Iterator[Family]:
    """As they stand."""
    yield Family(STATE, _states(controller))
    yield Family(VARIANT_STATE, _variant_states(controller))
    yield Family(READY, _ready(controller))
    yield Family(WAITING, _waiting(controller))
    yield Family(WAITING_SINCE, _waiting_since(controller))
    yield Family(IN_FLIGHT, _in_flight(controller))
    yield Family(RESERVED, _memory(controller, "reserved_mb"))
    yield Family(OBSERVED, _memory(controller, "observed_mb"))
    yield Family(EXTERNAL_HEALTHY, _externals(controller))
    tallies = controller.fleet.tallies
    yield Family(STARTS, tallies.starts.points())
    yield Family(RESTARTS, tallies.restarts.points())
    yield Family(ADOPTIONS, tallies.adoptions.points())
    yield Family(FAILURES, tallies.failures.points())
    yield Family(STOPS, tallies.stops.points())
    yield Family(EVICTED, (point for point in tallies.stops.points() if point.labels[2] in EVICTIONS))
    yield Family(LOADS, tallies.loads.spreads())


def _states(controller: Controller) -> Iterator[Point]:
    """A model that only others run is ready if one of them is well."""
    fleet = controller.fleet
    for name, model in list(controller.declaration.models.items()):
        state = fleet.state_of(name)
        if state is ServerState.STOPPED and fleet.healthy_external(name, model) is not None:
            state = ServerState.READY
        for one in ServerState:
            yield Point((name, one.value), int(one is state))


def _variant_states(controller: Controller) -> Iterator[Point]:
    fleet = controller.fleet
    for name, model in list(controller.declaration.models.items()):
        server = fleet.server_of(name)
        healthy = {variant.name for variant in fleet.healthy_externals(name, model)}
        for variant in model.variants:
            if variant.external:
                state = ServerState.READY if variant.name in healthy else ServerState.STOPPED
            elif (
                server is not None
                and server.variant.name != variant.name
                and (name, variant.name) not in fleet.failures
            ):
                state = ServerState.STOPPED
            else:
                state = fleet.state_of(name, variant.name)
            yield Point((name, variant.name, state.value), 1)


def _ready(controller: Controller) -> Iterator[Point]:
    for name in list(controller.declaration.models):
        conditions = controller.fleet.conditions.get(name, ())
        found = next((one for one in conditions if one.type == "Ready"), None)
        ready = found is not None and found.status is Status.TRUE
        yield Point((name, found.reason if found is not None else ""), int(ready))


def _waiting(controller: Controller) -> Iterator[Point]:
    waiting = controller.fleet.waiting
    for name in list(controller.declaration.models):
        waiters = waiting.get(name)
        yield Point((name,), len(waiters.futures) if waiters is not None else 0)


def _waiting_since(controller: Controller) -> Iterator[Point]:
    waiting, now = controller.fleet.waiting, controller.clock.monotonic()
    for name in list(controller.declaration.models):
        waiters = waiting.get(name)
        yield Point((name,), round(max(0.0, now - waiters.since), 3) if waiters is not None else 0.0)


def _in_flight(controller: Controller) -> Iterator[Point]:
    fleet = controller.fleet
    found = Counter(fleet.external_in_flight)
    for server in fleet.servers.values():  # one that leaves, and the next, may be of the same variant
        found[server.model, server.variant.name] += server.in_flight
    return (Point(labels, requests) for labels, requests in found.items())


def _memory(controller: Controller, which: str) -> Iterator[Point]:
    names = names_of(controller.devices.devices)
    found: Counter[tuple[str, str, str]] = Counter()
    for server in controller.fleet.servers.values():
        amounts: dict[str, int] = getattr(server, which)
        for device, amount in amounts.items():
            found[server.model, server.variant.name, names.get(device, device)] += amount * MB
    return (Point(labels, amount) for labels, amount in found.items())


def _externals(controller: Controller) -> Iterator[Point]:
    for (model, variant, _), seen in list(controller.fleet.externals.items()):
        yield Point((model, variant), int(seen.healthy))
