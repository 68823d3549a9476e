"""What is known of each plugin: the values behind `sidecar plugin list` and `/-/plugins`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plugin_sdk.config import schema
from plugin_sdk.kinds import settings_of
from sidecar.control.generations import Generation
from sidecar.core.names import listed
from sidecar.mechanism.finding import place_of
from sidecar.mechanism.instance import Instance
from sidecar.mechanism.plugins import BALANCING, BUILTIN, BUILTIN_CHAIN, Loaded
from sidecar.mechanism.services import Counter, Distribution, Host
from sidecar.mechanism.versions import Version
from sidecar.surfaces.report import PluginReport, plugin


class PluginDetails(PluginReport, frozen=True, kw_only=True):
    """A plugin with all that is known of it.

    origin: how it was found. file, line: its code. generation: the one in which this instance came. runs: calls that
    went well, probes of devices and servers among them. p50_ms, p95_ms: of the latest of them. last_error: with its
    traceback. state: in words. config_schema: JSON Schema of its settings. counters, distributions: what it has counted
    and measured by itself (`self.metrics`); a distribution's buckets end at services.BUCKETS, the last one nowhere.
    """

    origin: str
    file: str
    line: int
    generation: int
    deadline_s: float
    on_error: str
    runs: int
    p50_ms: float | None
    p95_ms: float | None
    last_error: str
    state: str
    config_schema: dict[str, Any]
    counters: tuple[Counter, ...] = ()
    distributions: tuple[Distribution, ...] = ()


async def details(
    generation: Generation, host: Host, folder: Path, unread: Mapping[str, str]
) -> tuple[PluginDetails, ...]:
    """All plugins of a generation, by name. folder: of drop-in files. unread: device plugins whose last probe failed.

    Where the code of an installed plugin is has to be read from files, in a thread.
    """
    instances = sorted(generation.instances.values(), key=lambda instance: instance.name)
    found = [_of(instance, generation, folder, unread.get(instance.name, "")) for instance in instances]
    for values, _ in found:
        numbers = host.numbers(values["name"])
        values |= {"counters": numbers.counters(), "distributions": numbers.distributions()}
    return await asyncio.to_thread(lambda: tuple(_with_code(*one) for one in found))


def percentile_ms(durations_s: Sequence[float], share: float) -> float | None:
    """The duration that `share` of the calls did not exceed (the nearest rank); None without any."""
    if not durations_s:
        return None
    rank = max(1, math.ceil(share * len(durations_s)))
    return round(1000 * sorted(durations_s)[rank - 1], 3)


def _of(instance: Instance, generation: Generation, folder: Path, unread: str) -> tuple[dict[str, Any], Loaded | None]:
    loaded = instance.loaded
    short = plugin(instance, generation)
    durations = tuple(instance.durations_s)
    values = {name: getattr(short, name) for name in PluginReport.__struct_fields__}
    values |= {
        "origin": _origin(instance, generation, folder),
        "generation": generation.since[instance.name],
        "deadline_s": float(loaded.declaration.deadline) if loaded is not None else 0.0,
        "on_error": instance.on_error,
        "runs": instance.runs,
        "p50_ms": percentile_ms(durations, 0.50),
        "p95_ms": percentile_ms(durations, 0.95),
        "last_error": instance.last_error or unread,
        "state": _state(short, instance, unread, generation),
    }
    return values, loaded


def _with_code(values: dict[str, Any], loaded: Loaded | None) -> PluginDetails:
    file, line = place_of(loaded.cls, loaded.code) if loaded is not None else ("", 0)
    return PluginDetails(file=file, line=line, config_schema=_schema(loaded) if loaded is not None else {}, **values)


def _schema(loaded: Loaded) -> dict[str, Any]:
    try:
        return schema(settings_of(loaded.cls))
    except (TypeError, ValueError, NotImplementedError) as error:  # a type of the author's that JSON Schema cannot tell
        return {"description": f"cannot be described: {error}"}


def _origin(instance: Instance, generation: Generation, folder: Path) -> str:
    name, loaded = instance.name, instance.loaded
    if name in generation.declaration.plugins:
        return f"[plugins.{name}]"
    if loaded is None:
        return "unknown"
    if (BUILTIN | BUILTIN_CHAIN | BALANCING).get(name) == loaded.declaration.import_path:
        return "built-in"
    beside = isinstance(loaded.code, Version) and loaded.code.path.is_relative_to(folder)
    return "drop-in file" if beside else f"entry point of {loaded.distribution}"


def _state(short: PluginReport, instance: Instance, unread: str, generation: Generation) -> str:
    if short.behind:
        return f"the one before, since the new one cannot be used: {short.behind}"
    if instance.out:
        return short.problem
    if short.problem:
        return f"cannot be used: {short.problem}"
    return f"its devices are unknown: {unread}" if unread else "in force" + _models(short.name, generation)


def _models(name: str, generation: Generation) -> str:
    """What there is to say of the models that a route plugin lists."""
    listing = generation.supplied.listings.get(name)
    if listing is None:
        return ""
    hidden = generation.supplied.hidden(name)
    stale = f"; its list of models cannot be had anew: {listing.problem}" if listing.problem else ""
    others = f"; others have the names {listed(hidden)}" if hidden else ""
    return f", with {len(listing.models)} models of its own{others}{stale}"
