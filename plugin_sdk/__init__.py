"""What plugin authors import: the kinds, the messages, typed config and the errors. Nothing else is public.

Depends on msgspec and the standard library alone, never on `sidecar`.
"""

from plugin_sdk.config import ByteSize, Config, Duration, Secret
from plugin_sdk.errors import NotReady, PluginError, Reject
from plugin_sdk.kinds import Auth, Device, Interface, Plugin, Stats, device, inline
from plugin_sdk.messages import (
    ANONYMOUS,
    DeviceProcess,
    DeviceStatus,
    End,
    Endpoint,
    Headers,
    Outcome,
    Principal,
    Reply,
    Request,
    Upstream,
    Usage,
)

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
    "Headers",
    "Interface",
    "NotReady",
    "Outcome",
    "Plugin",
    "PluginError",
    "Principal",
    "Reject",
    "Reply",
    "Request",
    "Secret",
    "Stats",
    "Upstream",
    "Usage",
    "device",
    "inline",
]
