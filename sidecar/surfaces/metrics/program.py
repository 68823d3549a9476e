"""Metrics of the sidecar itself: its rounds, its connections, and what it takes of the machine."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import msgspec

from sidecar import __version__
from sidecar.control.controller import Controller
from sidecar.control.tallies import ROUND_BOUNDS_S
from sidecar.mechanism.metrics import Family, Kind, Metric, Point
from sidecar.mechanism.own_usage import OwnUsage
from sidecar.surfaces.dataplane.plane import Plane

BUILD = Metric(
    name="sidecar.build",
    kind=Kind.INFO,
    help="The version of the sidecar, and of Python.",
    labels=("sidecar.version", "sidecar.python"),
)
GENERATION = Metric(
    name="sidecar.generation",
    kind=Kind.GAUGE,
    help="The number of the generation in force; it rises with each change of manifests or plugins.",
)
MODELS = Metric(name="sidecar.models", kind=Kind.GAUGE, unit="{model}", help="Models that are declared.")
ROUNDS = Metric(
    name="sidecar.reconcile.duration",
    kind=Kind.HISTOGRAM,
    unit="s",
    help="What rounds of the reconciler took: observe, plan, act.",
    bounds=ROUND_BOUNDS_S,
)
ACTED = Metric(
    name="sidecar.reconcile.acted",
    kind=Kind.COUNTER,
    unit="{round}",
    help="Rounds in which anything was done.",
)
ERRORS = Metric(
    name="sidecar.reconcile.errors",
    kind=Kind.COUNTER,
    unit="{error}",
    help="Rounds, and other standing tasks of the control floor, that failed and were tried again.",
)
ACCEPTED = Metric(
    name="sidecar.requests.accepted",
    kind=Kind.COUNTER,
    unit="{request}",
    help="Requests for inference, and for the list of models, that came in.",
)
IN_FLIGHT = Metric(
    name="sidecar.requests.in_flight",
    kind=Kind.GAUGE,
    unit="{request}",
    help="Of them, those that have not ended.",
)
UNSERVED = Metric(
    name="sidecar.requests.unserved",
    kind=Kind.COUNTER,
    unit="{request}",
    help="Those of which no model was asked: listed (for the list of models), refused_early (for how they were sent, or"
    " where to), abandoned (the client left before), malformed (no request, or not in time).",
    labels=("sidecar.reason",),
)
CONNECTIONS = Metric(
    name="sidecar.connections", kind=Kind.GAUGE, unit="{connection}", help="Connections of clients, now."
)
CONNECTIONS_REFUSED = Metric(
    name="sidecar.connections.refused",
    kind=Kind.COUNTER,
    unit="{connection}",
    help="Connections beyond max_connections.",
)
POOL_IDLE = Metric(
    name="sidecar.upstream.connections.idle",
    kind=Kind.GAUGE,
    unit="{connection}",
    help="Connections to servers that are kept for the next request.",
)
POOL_OPENED = Metric(
    name="sidecar.upstream.connections.opened",
    kind=Kind.COUNTER,
    unit="{connection}",
    help="Connections to servers that were made.",
)
POOL_FAILED = Metric(
    name="sidecar.upstream.connections.failed",
    kind=Kind.COUNTER,
    unit="{connection}",
    help="Connections to servers that could not be made.",
)
SPANS_LOST = Metric(
    name="sidecar.telemetry.spans.lost",
    kind=Kind.COUNTER,
    unit="{span}",
    help="Spans that were dropped, or could not be delivered.",
)
PUSHES_FAILED = Metric(
    name="sidecar.telemetry.exports.failed",
    kind=Kind.COUNTER,
    unit="{export}",
    help="Exports of metrics that came to nothing.",
)
EVENTS_DROPPED = Metric(
    name="sidecar.events.dropped",
    kind=Kind.COUNTER,
    unit="{event}",
    help="Events that did not come to disk.",
)
UPTIME = Metric(name="sidecar.uptime", kind=Kind.GAUGE, unit="s", help="Since the sidecar was started.")
CPU = Metric(
    name="process.cpu.time",
    kind=Kind.COUNTER,
    unit="s",
    help="CPU time of the sidecar, without its servers.",
    exposed="process_cpu_seconds",
)
RSS = Metric(
    name="process.memory.usage",
    kind=Kind.GAUGE,
    unit="By",
    help="Memory of the sidecar, without its servers.",
    exposed="process_resident_memory_bytes",
)
VIRTUAL = Metric(
    name="process.memory.virtual",
    kind=Kind.GAUGE,
    unit="By",
    help="Its address space.",
    exposed="process_virtual_memory_bytes",
)
FDS = Metric(
    name="process.open_file_descriptor.count",
    kind=Kind.GAUGE,
    unit="{file_descriptor}",
    help="Its open files and sockets.",
    exposed="process_open_fds",
)
MOST_FDS = Metric(
    name="process.open_file_descriptor.limit",
    kind=Kind.GAUGE,
    unit="{file_descriptor}",
    help="How many it may have.",
    exposed="process_max_fds",
)
THREADS = Metric(
    name="process.thread.count", kind=Kind.GAUGE, unit="{thread}", help="Its threads.", exposed="process_threads"
)
STARTED = Metric(
    name="process.start_time",
    kind=Kind.GAUGE,
    unit="s",
    help="When it was started, unix time.",
    exposed="process_start_time_seconds",
)
METRICS = (
    *(BUILD, GENERATION, MODELS, ROUNDS, ACTED, ERRORS),
    *(ACCEPTED, IN_FLIGHT, UNSERVED, CONNECTIONS, CONNECTIONS_REFUSED, POOL_IDLE, POOL_OPENED, POOL_FAILED),
    *(SPANS_LOST, PUSHES_FAILED, EVENTS_DROPPED, UPTIME, CPU, RSS, VIRTUAL, FDS, MOST_FDS, THREADS, STARTED),
)


class Losses(msgspec.Struct, frozen=True):
    """What telemetry has lost so far."""

    spans: int = 0
    exports: int = 0


def families(controller: Controller, plane: Plane, losses: Losses, usage: OwnUsage | None) -> Iterator[Family]:
    """As they stand. usage: None = the system does not tell."""
    yield from _control(controller)
    yield from _data(plane)
    yield _one(SPANS_LOST, losses.spans)
    yield _one(PUSHES_FAILED, losses.exports)
    yield _one(EVENTS_DROPPED, controller.events.dropped)
    yield _one(UPTIME, round(controller.clock.monotonic() - controller.opened_at, 3))
    if usage is not None:
        yield from _usage(usage)


def _control(controller: Controller) -> Iterator[Family]:
    reconciler = controller.reconciler
    yield Family(BUILD, [Point((__version__, platform.python_version()), 1)])
    yield _one(GENERATION, controller.generation.number)
    yield _one(MODELS, len(controller.declaration.models))
    yield Family(ROUNDS, [controller.fleet.tallies.rounds.spread()])
    yield _one(ACTED, reconciler.acted)
    yield _one(ERRORS, reconciler.errors)


def _data(plane: Plane) -> Iterator[Family]:
    requests = plane.requests
    yield _one(ACCEPTED, requests.accepted)
    yield _one(IN_FLIGHT, requests.in_flight)
    reasons = ("listed", "refused_early", "abandoned", "malformed")
    yield Family(UNSERVED, [Point((reason,), getattr(requests, reason)) for reason in reasons])
    yield _one(CONNECTIONS, requests.connections)
    yield _one(CONNECTIONS_REFUSED, requests.refused_connections)
    yield _one(POOL_IDLE, plane.pool.idle)
    yield _one(POOL_OPENED, plane.pool.opened)
    yield _one(POOL_FAILED, plane.pool.failed)


def _usage(usage: OwnUsage) -> Iterator[Family]:
    yield _one(CPU, usage.cpu_s)
    yield _one(RSS, usage.resident)
    yield _one(VIRTUAL, usage.virtual)
    yield _one(FDS, usage.files)
    if usage.most_files is not None:
        yield _one(MOST_FDS, usage.most_files)
    yield _one(THREADS, usage.threads)
    yield _one(STARTED, usage.started_unix)


def _one(metric: Metric, value: float) -> Family:
    return Family(metric, [Point((), value)])
