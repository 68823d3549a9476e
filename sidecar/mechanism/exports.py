"""Hands ended spans to an exporter in batches, from a thread of its own; no request waits for it.

What the exporter cannot take is dropped, counted, and told in the log at most once a minute.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from sidecar.mechanism.spans import Stage

log = logging.getLogger(__name__)

CLOSE_S = 5.0
TELL_EVERY_S = 60.0

Ended = Stage | ReadableSpan


class ExportError(Exception):
    """The spans could not be delivered."""


class LimitsError(ValueError):
    """An OTEL_BSP_* variable is no number that is of use."""


class Exporter(Protocol):
    """Where spans go. Called by one thread."""

    def export(self, spans: Sequence[Ended]) -> None:
        """Deliver them. Raises ExportError, or whatever it likes."""

    def stop(self) -> None:
        """Closing has begun: an `export` that waits, to try again, gives up. Called by another thread."""

    def close(self) -> None:
        """Give back what it holds."""


class BatchLimits(msgspec.Struct, frozen=True):
    """OTEL_BSP_*: spans that may wait, spans exported at once, and how long a span waits for others.

    queue: more than the SDK's 2048, as one request is several spans.
    """

    queue: int = 8192
    batch: int = 512
    delay_s: float = 5.0


class Exports:
    """A bounded queue, and the thread that empties it. lost: spans that were dropped, or could not be delivered."""

    def __init__(self, exporter: Exporter, limits: BatchLimits) -> None:
        self.lost = 0
        self._exporter = exporter
        self._limits = limits
        self._queue: deque[Ended] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._telling = threading.Lock()
        self._tell_at = 0.0  # monotonic seconds
        self._thread = threading.Thread(target=self._run, name="sidecar-traces", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Spans that wait."""
        return len(self._queue)

    def offer(self, spans: Sequence[Ended]) -> None:
        """Take them if there is room for them. Never waits."""
        waiting = len(self._queue) + len(spans)
        if waiting > self._limits.queue:
            self._lose(len(spans), "the exporter does not keep up")
            return
        self._queue.extend(spans)
        if waiting >= self._limits.batch and not self._wake.is_set():
            self._wake.set()

    def close(self, deadline_s: float = CLOSE_S) -> None:
        """Export what is left, and stop. Blocks, and no longer than the deadline. May be repeated."""
        self._closing = True
        self._wake.set()
        self._exporter.stop()
        self._thread.join(deadline_s)
        if self._thread.is_alive():
            log.warning("the trace exporter does not end: at least %d spans are lost", len(self._queue))

    # --- in the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        closing = False
        while not closing:
            full = self._wake.wait(self._limits.delay_s)
            closing = self._closing  # before the queue is emptied: whatever was offered before closing is in it
            self._wake.clear()
            least = self._limits.batch if full and not closing else 1
            while len(self._queue) >= least:
                self._export()
        try:
            self._exporter.close()
        except Exception:
            log.exception("the trace exporter failed to close")

    def _export(self) -> None:
        batch = [self._queue.popleft() for _ in range(min(self._limits.batch, len(self._queue)))]
        try:
            self._exporter.export(batch)
        except Exception as error:  # noqa: BLE001 - an exporter may raise anything; it is told in the log
            self._lose(len(batch), str(error) or type(error).__name__)

    def _lose(self, spans: int, why: str) -> None:
        with self._telling:
            self.lost += spans
            now = time.monotonic()
            if now < self._tell_at:
                return
            self._tell_at = now + TELL_EVERY_S
        log.warning("spans are lost, %d so far: %s", self.lost, why)


class Recorded(SpanProcessor):
    """Takes the spans that the SDK's tracer recorded to where those of requests go."""

    def __init__(self, exports: Sequence[Exports]) -> None:
        self._exports = exports

    def on_end(self, span: ReadableSpan) -> None:
        """Take it, if it is sampled and not only recorded."""
        context = span.get_span_context()
        if context is not None and context.trace_flags.sampled:
            for exports in self._exports:
                exports.offer((span,))


class SdkExporter:
    """An exporter of the SDK, which wants the SDK's spans."""

    def __init__(self, exporter: SpanExporter, resource: Resource, scope: InstrumentationScope) -> None:
        self._exporter = exporter
        self._resource = resource
        self._scope = scope

    def export(self, spans: Sequence[Ended]) -> None:
        """Deliver them. Raises ExportError, and what the exporter raises."""
        built = [span if isinstance(span, ReadableSpan) else self._built(span) for span in spans]
        if self._exporter.export(built) is not SpanExportResult.SUCCESS:
            raise ExportError("the exporter failed")

    def stop(self) -> None:
        """The SDK has no word for it."""

    def close(self) -> None:
        """Shut it down."""
        self._exporter.shutdown()

    def _built(self, stage: Stage) -> ReadableSpan:
        context = stage.get_span_context()
        return ReadableSpan(
            name=stage.name,
            context=context,
            parent=_parent_of(stage, context),
            resource=self._resource,
            attributes=stage.attributes or {},
            events=[Event(note.name, note.attributes, note.at_ns) for note in stage.notes],
            links=stage.links,
            kind=stage.kind,
            status=_status_of(stage),
            start_time=stage.started_ns,
            end_time=stage.ended_ns,
            instrumentation_scope=self._scope,
        )


def _parent_of(stage: Stage, context: SpanContext) -> SpanContext | None:
    if not stage.parent_id:
        return None
    remote = stage.parent_id == stage.origin.parent_id
    flags = TraceFlags(stage.origin.flags)
    return SpanContext(context.trace_id, stage.parent_id, remote, flags, context.trace_state)


def _status_of(stage: Stage) -> Status:
    if stage.failed:
        return Status(StatusCode.ERROR, stage.message or None)
    return Status(StatusCode.OK if stage.succeeded else StatusCode.UNSET)


def limits_of(environment: Mapping[str, str]) -> BatchLimits:
    """OTEL_BSP_MAX_QUEUE_SIZE, OTEL_BSP_MAX_EXPORT_BATCH_SIZE and OTEL_BSP_SCHEDULE_DELAY (ms). Raises LimitsError."""
    default = BatchLimits()
    queue = _number(environment, "OTEL_BSP_MAX_QUEUE_SIZE", default.queue)
    batch = _number(environment, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", min(default.batch, queue))
    delay_ms = _number(environment, "OTEL_BSP_SCHEDULE_DELAY", int(default.delay_s * 1000))
    if batch > queue:
        raise LimitsError("OTEL_BSP_MAX_EXPORT_BATCH_SIZE must not be above OTEL_BSP_MAX_QUEUE_SIZE")
    return BatchLimits(queue, batch, delay_ms / 1000)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    told = environment.get(name, "").strip()
    if not told:
        return default
    if not told.isdecimal() or int(told) == 0:
        raise LimitsError(f"{name}: {told} is not a number above 0")
    return int(told)
