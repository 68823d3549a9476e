"""Tracing: which exporter, from the standard OTEL_* variables; none by default, and then spans cost next to nothing.

The spans of requests are recorded by `traces`; all others (`reconcile`, `server start`, those of plugins) by the SDK's
tracer. Both go to the same exporters, by the same sampler.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter

from sidecar.mechanism.collector import Collector, CollectorError, address_of, protocol_of
from sidecar.mechanism.exports import CLOSE_S, Exporter, Exports, LimitsError, Recorded, SdkExporter, limits_of
from sidecar.mechanism.otlp import Encoder
from sidecar.mechanism.sampling import SamplerError, sampler_of
from sidecar.mechanism.service import SCOPE, service
from sidecar.mechanism.spans import Stage
from sidecar.mechanism.traces import Offer, Traces

_GROUP = "opentelemetry_traces_exporter"


class TelemetryError(Exception):
    """The OTEL_* variables ask for something that is not there."""


class Telemetry:
    """traces: of requests. tracer: for all other spans."""

    def __init__(self, exporters: Sequence[SpanExporter | Exporter]) -> None:
        """Raises TelemetryError, if variables for the sampler or for batches are wrong."""
        self._provider: TracerProvider | None = None
        self._exports: tuple[Exports, ...] = ()
        self.traces = Traces()
        provider: trace.TracerProvider = trace.NoOpTracerProvider()
        if exporters:
            provider = self._provider = self._record(exporters)
        self.tracer = provider.get_tracer(SCOPE.name, SCOPE.version)

    @classmethod
    def from_environment(cls) -> Telemetry:
        """Exporters as OTEL_TRACES_EXPORTER names them (`none`, `console`, `otlp`). Raises TelemetryError."""
        disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        told = "none" if disabled else os.environ.get("OTEL_TRACES_EXPORTER", "none")
        names = [name.strip() for name in told.split(",")]
        return cls([_exporter(name) for name in names if name not in ("", "none")])

    @property
    def lost(self) -> int:
        """Spans that were dropped, or could not be delivered."""
        return sum(exports.lost for exports in self._exports)

    def close(self, deadline_s: float = CLOSE_S) -> None:
        """Export what is left, within the deadline. Blocks: keep it off the event loop. May be repeated."""
        if self._provider is not None:
            self._provider.shutdown()
        until = time.monotonic() + deadline_s
        for exports in self._exports:
            exports.close(max(0.0, until - time.monotonic()))

    def _record(self, exporters: Sequence[SpanExporter | Exporter]) -> TracerProvider:
        resource = service()
        try:
            sampler, limits = sampler_of(os.environ), limits_of(os.environ)
        except (SamplerError, LimitsError) as error:
            raise TelemetryError(str(error)) from None
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        sdk = [SdkExporter(each, resource, SCOPE) if isinstance(each, SpanExporter) else each for each in exporters]
        self._exports = tuple(Exports(exporter, limits) for exporter in sdk)
        self.traces = Traces(sampler, _offer_to(self._exports))
        provider.add_span_processor(Recorded(self._exports))
        return provider


def _offer_to(exports: tuple[Exports, ...]) -> Offer:
    if len(exports) == 1:
        return exports[0].offer

    def offer(spans: Sequence[Stage]) -> None:
        for each in exports:
            each.offer(spans)

    return offer


def _exporter(name: str) -> SpanExporter | Exporter:
    if name == "otlp":
        try:
            if protocol_of(os.environ, "traces") == "http/protobuf":
                return Collector(address_of(os.environ), Encoder(service(), SCOPE))
        except CollectorError as error:
            raise TelemetryError(str(error)) from None
        name = "otlp_proto_grpc"
    found: list[EntryPoint] = list(entry_points(group=_GROUP, name=name))
    if not found:
        known = ", ".join(sorted({"none", "otlp", *(entry.name for entry in entry_points(group=_GROUP))}))
        extra = " (install opentelemetry-exporter-otlp-proto-grpc)" if name == "otlp_proto_grpc" else ""
        raise TelemetryError(f"OTEL_TRACES_EXPORTER: there is no exporter {name}{extra}; known: {known}")
    exporter: SpanExporter = found[0].load()()
    return exporter
