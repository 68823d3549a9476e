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
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from sidecar import __version__
from sidecar.mechanism.collector import Collector, CollectorError, address_of
from sidecar.mechanism.exports import CLOSE_S, Exporter, Exports, LimitsError, Recorded, SdkExporter, limits_of
from sidecar.mechanism.otlp import Encoder
from sidecar.mechanism.sampling import SamplerError, sampler_of
from sidecar.mechanism.spans import Stage
from sidecar.mechanism.traces import Offer, Traces

_GROUP = "opentelemetry_traces_exporter"
_SCOPE = InstrumentationScope("sidecar", __version__)


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
        self.tracer = provider.get_tracer(_SCOPE.name, _SCOPE.version)

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
        resource = _resource()
        try:
            sampler, limits = sampler_of(os.environ), limits_of(os.environ)
        except (SamplerError, LimitsError) as error:
            raise TelemetryError(str(error)) from None
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        sdk = [SdkExporter(each, resource, _SCOPE) if isinstance(each, SpanExporter) else each for each in exporters]
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


def _resource() -> Resource:
    """What the OTEL_* variables say about this service; `sidecar` where they do not name it."""
    said = OTELResourceDetector().detect()
    return Resource.create({SERVICE_NAME: "sidecar", SERVICE_VERSION: __version__, **said.attributes})


def _exporter(name: str) -> SpanExporter | Exporter:
    if name == "otlp":
        protocol = _protocol()
        if protocol == "http/protobuf":
            return _collector()
        name = "otlp_proto_grpc"
    found: list[EntryPoint] = list(entry_points(group=_GROUP, name=name))
    if not found:
        known = ", ".join(sorted({"none", "otlp", *(entry.name for entry in entry_points(group=_GROUP))}))
        extra = " (install opentelemetry-exporter-otlp-proto-grpc)" if name == "otlp_proto_grpc" else ""
        raise TelemetryError(f"OTEL_TRACES_EXPORTER: there is no exporter {name}{extra}; known: {known}")
    exporter: SpanExporter = found[0].load()()
    return exporter


def _protocol() -> str:
    told = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = told or "http/protobuf"
    if protocol not in ("http/protobuf", "grpc"):
        raise TelemetryError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol} is not one of http/protobuf, grpc")
    return protocol


def _collector() -> Collector:
    try:
        return Collector(address_of(os.environ), Encoder(_resource(), _SCOPE))
    except CollectorError as error:
        raise TelemetryError(str(error)) from None
