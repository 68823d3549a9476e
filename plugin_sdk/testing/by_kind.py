"""Which checks there are for each kind, and those of devices and interfaces.

Each raises Fault with what is wrong and the remedy.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from plugin_sdk.errors import NotReady, PluginError, Reject
from plugin_sdk.kinds import Filter, Plugin, Route, Stats
from plugin_sdk.messages import DeviceStatus, Endpoint, Usage
from plugin_sdk.testing import samples
from plugin_sdk.testing.common import Deaf
from plugin_sdk.testing.of_callers import (
    anybody_is_admitted_or_rejected,
    fifty_callers_at_once_are_told_apart,
    tokens_are_never_told,
)
from plugin_sdk.testing.of_outcomes import OF_HOOKS, any_outcome_can_be_recorded
from plugin_sdk.testing.of_passing import (
    cuts_of_the_stream_do_not_matter,
    fifty_at_once_are_not_mixed_up,
    finished_takes_any_outcome,
    models_are_listed_and_found,
    requests_go_to_a_target,
)
from plugin_sdk.testing.subject import SHOWN, Fault, Live, Subject, raised

PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
PROBES = 8

Check = Callable[[Subject], Awaitable[None]]


def checks_of(plugin: type[Plugin[Any]]) -> tuple[Check, ...]:
    """The checks that concern a plugin of this kind, and with these hooks."""
    if issubclass(plugin, Filter) and (plugin.on_chunk, plugin.on_event) == (Filter.on_chunk, Filter.on_event):
        return (fifty_at_once_are_not_mixed_up,)
    if issubclass(plugin, Route) and plugin.models is not Route.models:
        return (*CHECKS["route"], models_are_listed_and_found)
    if issubclass(plugin, Stats):
        return (
            *CHECKS["stats"],
            *(check for name, check in OF_HOOKS.items() if getattr(plugin, name) is not getattr(Stats, name)),
        )
    return CHECKS.get(plugin.kind, ())


# --- devices ----------------------------------------------------------------------------------------------------


async def memory_adds_up_and_ids_are_stable(subject: Subject) -> None:
    """0 <= used <= total, and the same devices under the same names whoever asks, also at once."""
    async with subject.alive() as live:
        first = await _probe(live)
        for device in first:
            _check_memory(device)
        ids = [device.id for device in first]
        if len(set(ids)) != len(ids):
            raise Fault(f"several devices have the id {ids[0]!r}: give each one of its own, a UUID or a serial number")
        for again in await asyncio.gather(*(_probe(live) for _ in range(PROBES))):
            if sorted(device.id for device in again) != sorted(ids):
                remedy = "an id must be the same at each probe, or the memory of running servers is lost sight of"
                raise Fault(f"ids were {ids}, then {[device.id for device in again]}: {remedy}")


async def _probe(live: Live) -> list[DeviceStatus]:
    try:
        found = await live.call("probe")
    except PluginError:
        return []
    except Exception as error:
        remedy = "raise PluginError with what a person should know, or return [] where there is no such device"
        raise raised("probe", error, remedy) from error
    devices = found if isinstance(found, list) else [found]
    for device in devices:
        if not isinstance(device, DeviceStatus):
            raise Fault(f"probe gave a {type(device).__name__}: return a DeviceStatus, or a list of them")
    return devices


def _check_memory(device: DeviceStatus) -> None:
    used = device.total_mb - device.free_mb if device.used_mb is None else device.used_mb
    if device.problem:
        return  # it cannot be read, and says so
    if not (0 <= used <= device.total_mb and 0 <= device.free_mb <= device.total_mb):
        figures = f"total_mb={device.total_mb} free_mb={device.free_mb} used_mb={device.used_mb}"
        raise Fault(f"a device cannot have {figures}: figures are MB of 2^20 bytes, and used is at most the total")


# --- interfaces -------------------------------------------------------------------------------------------------


async def endpoints_are_well_formed(subject: Subject) -> None:
    """Absolute paths without queries, each once, with a method and an operation."""
    endpoints: Any = getattr(subject.plugin, "endpoints", ())
    if not isinstance(endpoints, tuple) or not endpoints:
        raise Fault('it has no endpoints: endpoints = (Endpoint("/v1/NAME", "NAME"),)')
    for one in endpoints:
        if not isinstance(one, Endpoint) or not PATH.fullmatch(one.path):
            raise Fault(f'{one!r} is no endpoint: expected Endpoint("/v1/NAME", "NAME"), a path without query')
        if not one.operation or not one.method.isalpha() or not one.method.isupper():
            raise Fault(f'{one!r} needs an operation, such as "chat", and a method such as "POST"')
    if len({(one.method, one.path) for one in endpoints}) != len(endpoints):
        raise Fault("an endpoint stands there twice: name each path once")


async def usage_survives_garbage(subject: Subject) -> None:
    """Bodies that are cut off, of another shape, or no text at all: then there is no usage to read."""
    async with subject.alive() as live:
        for tail in samples.TAILS:
            for streamed in (True, False):
                try:
                    found = await live.call("usage", tail, streamed, on_loop=True)
                except Exception as error:
                    remedy = "return None for what cannot be read"
                    raise raised(f"usage({tail[:SHOWN]!r}, streamed={streamed})", error, remedy) from error
                if found is not None and not isinstance(found, Usage):
                    raise Fault(f"usage gave a {type(found).__name__}: return a Usage, or None")


async def errors_stand_on_one_line(subject: Subject) -> None:
    """Also inside a stream; and requests are refused by Reject alone."""
    bodies = (b"", b"\xff", b"[]", b"null", b'{"model": 7}')
    async with subject.alive() as live:
        error = await live.call("error", 503, "busy", 'try "again"\nlater', on_loop=True)
        if not isinstance(error, bytes) or b"\n" in error:
            raise Fault("error must return bytes on one line: encode it with msgspec.json.encode")
        event = await live.call("error_event", error, on_loop=True)
        if not isinstance(event, bytes) or not event.endswith(b"\n\n"):
            raise Fault("error_event must return bytes that end an event, with an empty line")
        for body in bodies:
            try:
                await live.call("validate", msgspec.structs.replace(subject.request, body=body), on_loop=True)
            except Reject:
                continue
            except Exception as raised_by:
                raise raised(f"validate of the body {body!r}", raised_by, "raise Reject(400, reason)") from raised_by


async def servers_that_fail_are_not_ready(subject: Subject) -> None:
    """False, NotReady or OSError while the server does not answer as it should."""
    async with subject.alive() as live:
        for method in ("ready", "alive"):
            try:
                found = await live.call(method, Deaf())
            except (NotReady, OSError):
                continue
            except Exception as error:
                raise raised(
                    f"{method} of a server that answers 503", error, "raise NotReady with the reason"
                ) from error
            if found is not False:
                remedy = "return False, or raise NotReady with the reason"
                raise Fault(f"{method} gave {found!r} for a server that answers 503: {remedy}")


CHECKS: dict[str, tuple[Check, ...]] = {
    "device": (memory_adds_up_and_ids_are_stable,),
    "auth": (anybody_is_admitted_or_rejected, tokens_are_never_told, fifty_callers_at_once_are_told_apart),
    "filter": (cuts_of_the_stream_do_not_matter, fifty_at_once_are_not_mixed_up),
    "route": (requests_go_to_a_target, finished_takes_any_outcome),
    "stats": (any_outcome_can_be_recorded,),
    "interface": (
        endpoints_are_well_formed,
        usage_survives_garbage,
        errors_stand_on_one_line,
        servers_that_fail_are_not_ready,
    ),
}
