"""Asks the device plugins what there is. A plugin that hangs, raises or talks nonsense makes its devices *unknown*."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import msgspec

from plugin_sdk import Device as DevicePlugin
from plugin_sdk import DeviceStatus
from sidecar.core.observed import Device
from sidecar.mechanism.calls import Threads, bind
from sidecar.mechanism.instance import Instance

log = logging.getLogger(__name__)

PROBE_DEADLINE_S = 5.0


class Prober:
    """The last word of one device plugin, and how to get a newer one. instance: where its calls are counted."""

    def __init__(
        self, plugin: DevicePlugin[Any], deadline_s: float = PROBE_DEADLINE_S, instance: Instance | None = None
    ) -> None:
        self.plugin = plugin
        self.devices: tuple[Device, ...] = ()
        self.problem = ""  # why the last probe failed; "" when it did not
        self._threads = Threads(f"device-{plugin.name}", most=2)
        self._deadline_s = deadline_s
        self._instance = instance
        marker = instance.marker if instance is not None else None
        self._call: Callable[..., Awaitable[Any]] = bind(plugin.probe, deadline_s, self._threads, marker)

    async def probe(self) -> tuple[Device, ...]:
        """The devices as they are now; those seen before are unknown, with the reason, when the plugin fails."""
        began = perf_counter()
        try:
            statuses = _listed(await self._call(), self.plugin.provides or self.plugin.name)
        except TimeoutError as error:
            self._fail(f"the {self.plugin.name} probe did not answer within {self._deadline_s:g} s", error)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; it becomes the devices' problem
            self._fail(f"the {self.plugin.name} probe failed: {type(error).__name__}: {error}", error)
        else:
            if self._instance is not None:
                self._instance.ran(perf_counter() - began)
            if self.problem:
                log.info("the %s probe answers again", self.plugin.name)
            self.problem = ""
            self.devices = tuple(self._device(status) for status in statuses)
        return self.devices

    def close(self) -> None:
        """Let the plugin's threads end."""
        self._threads.close()

    def _fail(self, problem: str, error: Exception) -> None:
        if self._instance is not None:
            self._instance.went_wrong("probe", error)
        if problem != self.problem:
            log.warning("%s", problem)
        self.problem = problem
        self.devices = tuple(
            msgspec.structs.replace(device, status=msgspec.structs.replace(device.status, problem=problem))
            for device in self.devices
        )

    def _device(self, status: DeviceStatus) -> Device:
        provides = self.plugin.provides or self.plugin.name
        return Device(
            device_class=provides,
            status=status,
            host_memory=self.plugin.host_memory,
        )


async def probe_all(probers: list[Prober]) -> tuple[Device, ...]:
    """One look at every device, all plugins side by side."""
    found = await asyncio.gather(*(prober.probe() for prober in probers))
    return tuple(device for devices in found for device in devices)


def _listed(answer: Any, provides: str) -> list[DeviceStatus]:
    statuses = [answer] if isinstance(answer, DeviceStatus) else answer
    if not isinstance(statuses, list) or not all(isinstance(status, DeviceStatus) for status in statuses):
        raise TypeError(f"probe() must return a DeviceStatus or a list of them, got {type(answer).__name__}")
    statuses = [
        msgspec.structs.replace(_checked(status), id=status.id or provides, name=status.name or provides)
        for status in statuses
    ]
    for status in statuses:
        if not status.problem and not 0 <= status.free_mb <= status.total_mb:
            raise ValueError(f"expected 0 <= free_mb <= total_mb, got {status.free_mb} of {status.total_mb}")
    ids = [status.id for status in statuses]
    if len(set(ids)) != len(ids):
        raise ValueError(f"device ids are not unique: {ids}")
    return statuses


def _checked(status: DeviceStatus) -> DeviceStatus:
    """The status, if what it holds is of the types that it declares. Raises msgspec.ValidationError."""
    return msgspec.convert(msgspec.to_builtins(status), DeviceStatus)
