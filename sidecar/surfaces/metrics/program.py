"""Metrics of the sidecar itself: its rounds, its connections, and what it takes of the machine."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import msgspec

from sidecar import __version__
from sidecar.control.controller import Controller
from sidecar.control.tallies import ROUND_BOUNDS_S
from sidecar.mechanism import logs
from sidecar.mechanism.metrics import Family, Metric, Point, counter, gauge, histogram, info
from sidecar.mechanism.own_usage import OwnUsage
from sidecar.surfaces.dataplane.plane import Plane

BUILD = info("sidecar.build", "The version of the sidecar, and of Python.", ("sidecar.version", "sidecar.python"))
GENERATION = gauge(
    "sidecar.generation",
    "",
    "The number of the generation in force; it rises with each change of manifests or plugins.",
)
MODELS = gauge("sidecar.models", "{model}", "Models that are declared.")
ROUNDS = histogram(
    "sidecar.reconcile.duration", "s", "What rounds of the reconciler took: observe, plan, act.", bounds=ROUND_BOUNDS_S
)
ACTED = counter("sidecar.reconcile.acted", "{round}", "Rounds in which anything was done.")
ERRORS = counter(
    "sidecar.reconcile.errors",
    "{error}",
    "Rounds, and other standing tasks of the control floor, that failed and were tried again.",
)
ACCEPTED = counter(
    "sidecar.requests.accepted", "{request}", "Requests for inference, and for the list of models, that came in."
)
IN_FLIGHT = gauge("sidecar.requests.in_flight", "{request}", "Of them, those that have not ended.")
UNSERVED = counter(
    "sidecar.requests.unserved",
    "{request}",
    "Those of which no model was asked: listed (for the list of models), refused_early (for how they were sent, or"
    " where to), abandoned (the client left before), malformed (no request, or not in time).",
    ("sidecar.reason",),
)
CONNECTIONS = gauge("sidecar.connections", "{connection}", "Connections of clients, now.")
CONNECTIONS_REFUSED = counter("sidecar.connections.refused", "{connection}", "Connections beyond max_connections.")
POOL_IDLE = gauge(
    "sidecar.upstream.connections.idle", "{connection}", "Connections to servers that are kept for the next request."
)
POOL_OPENED = counter("sidecar.upstream.connections.opened", "{connection}", "Connections to servers that were made.")
POOL_FAILED = counter(
    "sidecar.upstream.connections.failed", "{connection}", "Connections to servers that could not be made."
)
SPANS_LOST = counter("sidecar.telemetry.spans.lost", "{span}", "Spans that were dropped, or could not be delivered.")
PUSHES_FAILED = counter("sidecar.telemetry.exports.failed", "{export}", "Exports of metrics that came to nothing.")
EVENTS_DROPPED = counter("sidecar.events.dropped", "{event}", "Events that did not come to disk.")
LOG_LOST = counter(
    "sidecar.log.lost", "{line}", "Lines of the sidecar's own log that could not be written, or not fast enough."
)
LOG_SUPPRESSED = counter(
    "sidecar.log.suppressed", "{line}", "Lines of it that were left out, since there were too many of the same kind."
)
UPTIME = gauge("sidecar.uptime", "s", "Since the sidecar was started.")
CPU = counter("process.cpu.time", "s", "CPU time of the sidecar, without its servers.", exposed="process_cpu_seconds")
RSS = gauge(
    "process.memory.usage", "By", "Memory of the sidecar, without its servers.", exposed="process_resident_memory_bytes"
)
VIRTUAL = gauge("process.memory.virtual", "By", "Its address space.", exposed="process_virtual_memory_bytes")
FDS = gauge(
    "process.open_file_descriptor.count", "{file_descriptor}", "Its open files and sockets.", exposed="process_open_fds"
)
MOST_FDS = gauge(
    "process.open_file_descriptor.limit", "{file_descriptor}", "How many it may have.", exposed="process_max_fds"
)
THREADS = gauge("process.thread.count", "{thread}", "Its threads.", exposed="process_threads")
STARTED = gauge("process.start_time", "s", "When it was started, unix time.", exposed="process_start_time_seconds")
METRICS = (
    *(BUILD, GENERATION, MODELS, ROUNDS, ACTED, ERRORS),
    *(ACCEPTED, IN_FLIGHT, UNSERVED, CONNECTIONS, CONNECTIONS_REFUSED, POOL_IDLE, POOL_OPENED, POOL_FAILED),
    *(SPANS_LOST, PUSHES_FAILED, EVENTS_DROPPED, LOG_LOST, LOG_SUPPRESSED),
    *(UPTIME, CPU, RSS, VIRTUAL, FDS, MOST_FDS, THREADS, STARTED),
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
    told = logs.counts()
    yield _one(LOG_LOST, told.lost)
    yield _one(LOG_SUPPRESSED, told.suppressed)
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
