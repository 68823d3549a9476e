"""Who tells what OpenTelemetry is told: this service, as the OTEL_* variables call it."""

from __future__ import annotations

from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from sidecar import __version__

SCOPE = InstrumentationScope("sidecar", __version__)


def service() -> Resource:
    """What the variables say about it; `sidecar` where they do not name it."""
    said = OTELResourceDetector().detect()
    return Resource.create({SERVICE_NAME: "sidecar", SERVICE_VERSION: __version__, **said.attributes})
