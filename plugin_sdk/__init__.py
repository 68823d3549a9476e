"""What plugin authors import: the kinds, the messages, typed config and the errors. Nothing else is public.

Depends on msgspec and the standard library alone, never on `sidecar`.
"""

from plugin_sdk.config import ByteSize, Config, Duration, Secret
from plugin_sdk.decorators import auth, device, on_chunk, on_end, on_event, on_request, on_response, route, stats
from plugin_sdk.errors import NotReady, PluginError, Reject
from plugin_sdk.kinds import Auth, Device, Filter, Interface, Plugin, Route, Stats, inline
from plugin_sdk.messages import (
    ANONYMOUS,
    DeviceProcess,
    DeviceStatus,
    End,
    Endpoint,
    Event,
    Exchange,
    Headers,
    ModelInfo,
    Outcome,
    Principal,
    Reply,
    Request,
    Response,
    Target,
    Upstream,
    Usage,
)
from plugin_sdk.reports import LoadedServer, UsageQuery, UsageReport, UsageRow
from plugin_sdk.services import Metrics

__all__ = [
    "ANONYMOUS",
    "Auth",
    "ByteSize",
    "Config",
    "Device",
    "DeviceProcess",
    "DeviceStatus",
    "Duration",
    "End",
    "Endpoint",
    "Event",
    "Exchange",
    "Filter",
    "Headers",
    "Interface",
    "LoadedServer",
    "Metrics",
    "ModelInfo",
    "NotReady",
    "Outcome",
    "Plugin",
    "PluginError",
    "Principal",
    "Reject",
    "Reply",
    "Request",
    "Response",
    "Route",
    "Secret",
    "Stats",
    "Target",
    "Upstream",
    "Usage",
    "UsageQuery",
    "UsageReport",
    "UsageRow",
    "auth",
    "device",
    "inline",
    "on_chunk",
    "on_end",
    "on_event",
    "on_request",
    "on_response",
    "route",
    "stats",
]
