"""What a manifest must obey beyond types: names that exist, memory that is declared, commands that can be started."""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from plugin_sdk import Filter, Interface
from plugin_sdk.config import AbsentSecret
from sidecar.core import nodes
from sidecar.core.manifest import DeviceDeclaration, DeviceMatch, Model, PortRange, Settings
from sidecar.core.names import did_you_mean, listed
from sidecar.core.nodes import EVERY_NODE, Node, Patterns
from sidecar.mechanism import placeholders
from sidecar.mechanism.filters import unfit
from sidecar.mechanism.instance import on_error_of
from sidecar.mechanism.places import Path as Place
from sidecar.mechanism.plugins import BUILTIN_CHAIN, CHAIN_KINDS, STRATEGIES, Catalog
from sidecar.mechanism.variant_rules import Fault, check_variant, fill_in

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^\s/?#@A-Z]+")


class Known(msgspec.Struct, frozen=True):
    """The names that a model may use, and whether it needs an auth plugin in its chain.

    guards: filters that must not be left out. unparsed_modes: those whose answers no filter can read as events.
    balancers: the plugins that are the built-in `balance`.
    """

    modes: frozenset[str]
    device_classes: frozenset[str]
    device_names: frozenset[str]
    plugins: frozenset[str]
    kinds: dict[str, str]
    unset: dict[str, str]
    guards: dict[str, type[Filter[Any]]]
    unparsed_modes: frozenset[str]
    balancers: frozenset[str]
    settings: Settings
    exposed: bool

    @classmethod
    def of(
        cls, settings: Settings, bound: str, catalog: Catalog, plugins: Iterable[str], devices: Iterable[str]
    ) -> Known:
        """Faulty plugins and devices count as known: their own problem is told once, at their own place.

        bound: the address that is listened on already, "" if none is. A new one takes effect at the next start.
        """
        hosts = [_host(address) for address in (settings.listen, bound) if address]
        kinds = {name: plugin.kind for name, plugin in catalog.loaded.items()}
        return cls(
            modes=frozenset(catalog.providing("interface")),
            device_classes=frozenset(catalog.providing("device")),
            device_names=frozenset(devices),
            plugins=frozenset(plugins) | frozenset(catalog.loaded) | frozenset(catalog.faults),
            unset=catalog.unset,
            guards={
                name: plugin.cls
                for name, plugin in catalog.loaded.items()
                if issubclass(plugin.cls, Filter) and on_error_of(plugin) == "deny"
            },
            unparsed_modes=frozenset(
                mode
                for mode, plugin in catalog.providing("interface").items()
                if issubclass(plugin.cls, Interface) and not plugin.cls.events
            ),
            balancers=frozenset(
                name
                for name, plugin in catalog.loaded.items()
                if plugin.declaration.import_path == BUILTIN_CHAIN["balance"]
            ),
            kinds=kinds,
            settings=settings,
            exposed=not all(is_loopback(host) for host in hosts) and not settings.insecure,
        )


# --- [sidecar] ----------------------------------------------------------------------------------------------------


def check_settings(settings: Settings, known: Known) -> Iterator[Fault]:
    """The faults of `[sidecar]`."""
    try:
        listen_address(settings.listen)
    except ValueError as error:
        yield Fault(("listen",), str(error))
    try:
        Path(settings.state_dir).expanduser()
    except RuntimeError as error:
        yield Fault(("state_dir",), str(error))
    try:
        PortRange.parse(settings.ports)
    except ValueError as error:
        yield Fault(("ports",), str(error))
    for position, origin in enumerate(settings.cors_origins):
        if not _ORIGIN.fullmatch(origin):
            message = (
                'expected "*" or an origin as browsers write it, such as "https://app.example:8443", without a path'
            )
            yield Fault(("cors_origins", position), message)
    if settings.headroom_mb < 0:
        yield Fault(("headroom_mb",), "expected 0 or more")
    yield from _check_chain(settings.chain, known)
    if known.exposed and not _has_auth(settings.chain, known):
        yield Fault(
            ("listen",),
            "it can be reached from other machines, and the default chain has no auth plugin: "
            "add one, listen on 127.0.0.1, or set insecure = true",
        )


def listen_address(text: str) -> tuple[str, int]:
    """Host and port of `listen`. Raises ValueError if it is not "HOST:PORT"."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f'expected "HOST:PORT", such as "127.0.0.1:8080", got "{text}"')
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. A name other than localhost may stand for anything."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _has_auth(chain: Iterable[str], known: Known) -> bool:
    """A plugin that failed to load counts: its requests are refused, which is no open door."""
    return any(known.kinds.get(name, "auth") == "auth" for name in chain if name in known.plugins)


def _check_chain(chain: tuple[str, ...], known: Known) -> Iterator[Fault]:
    for position, name in enumerate(chain):
        if name not in known.plugins:
            hint = did_you_mean(name, known.plugins)
            message = f'unknown plugin "{name}"{hint}; declare it as [plugins.{name}]'
            if name in known.unset:
                how = f'import = "{known.unset[name]}" and config'
                message = f'the plugin "{name}" needs settings: declare it as [plugins.{name}] with {how}'
            yield Fault(("chain", position), message)
        elif (kind := known.kinds.get(name, "auth")) not in CHAIN_KINDS:
            yield Fault(("chain", position), f'"{name}" is a plugin of kind {kind}, which does not go into a chain')
        elif name in chain[:position]:
            yield Fault(("chain", position), f'"{name}" stands in the chain twice')


# --- [models.*] ---------------------------------------------------------------------------------------------------


class Here(msgspec.Struct, frozen=True):
    """The machine that models are completed for. What is for other nodes may use variables that are not set here."""

    environment: Mapping[str, str]
    node: Node = EVERY_NODE

    @property
    def foreign(self) -> bool:
        """Whether all is for another machine."""
        return isinstance(self.environment, placeholders.ForeignEnvironment)

    def is_for(self, *selectors: Patterns) -> bool:
        """Whether what has these selectors is for this very machine, so that variables and secrets must be there."""
        return not self.foreign and self.node.fits(*selectors)

    def values(self, *selectors: Patterns) -> dict[str, str]:
        """The values of `{env.NAME}` for what has these selectors."""
        here = self.is_for(*selectors)
        return placeholders.environment(self.environment if here else placeholders.ForeignEnvironment(self.environment))


def complete(name: str, model: Model, known: Known, here: Here) -> tuple[Model, list[Fault]]:
    """The model with names and placeholders filled in, and its faults."""
    found = list(_check_model(name, model, known))
    at_load = {
        "model": name,
        "state_dir": _expanded(known.settings.state_dir),
        "python": sys.executable,
    }
    variants = []
    for index, written in enumerate(model.variants):
        variant = msgspec.structs.replace(written, name=written.name or _default_name(model, index))
        filled, unset = fill_in(variant, here.values(model.nodes, variant.nodes) | at_load)
        inner = [*check_variant(variant, filled.url, known), *unset, *_check_nodes(variant.nodes)]
        if isinstance(variant.api_key, AbsentSecret) and here.is_for(model.nodes, variant.nodes):
            inner.append(Fault(("api_key",), variant.api_key.problem))
        found += [Fault(("variants", index, *fault.where), fault.message) for fault in inner]
        variants.append(filled)
    names = [variant.name for variant in variants]
    for index, variant_name in enumerate(names):
        if variant_name in names[:index]:
            found.append(Fault(("variants", index, "name"), f'a variant "{variant_name}" stands further up'))
    return msgspec.structs.replace(model, variants=tuple(variants)), found


def alias_clashes(models: Mapping[str, Model], names: Iterable[str]) -> list[tuple[str, Fault]]:
    """(model, fault) for each alias that is another model's name or alias: the model that stands later has to yield.

    Of two that are never for the same node, either may have the other's name or alias as an alias.
    """
    names = frozenset(names)
    owners: dict[str, list[str]] = {}
    clashes = []
    for name, model in models.items():
        for position, alias in enumerate(model.aliases):
            others = owners.setdefault(alias, [alias] if alias in names else [])
            owner = next((other for other in others if other != name and _may_meet(model, models.get(other))), None)
            if owner is not None:
                clashes.append((name, Fault(("aliases", position), f'"{alias}" means the model {owner} already')))
            elif name not in others:
                others.append(name)
    return clashes


def _may_meet(model: Model, other: Model | None) -> bool:
    """Whether there may be a node that both are for; one that is faulty may be for any."""
    return other is None or any(nodes.may_meet(one, two) for one in model.selectors() for two in other.selectors())


def _check_nodes(selector: Patterns) -> Iterator[Fault]:
    for key, message in nodes.faults(selector):
        yield Fault(("nodes", key), message)


def _check_model(name: str, model: Model, known: Known) -> Iterator[Fault]:
    if not _NAME.fullmatch(name):
        yield Fault((), f'"{name}" is no model name: letters, digits and ._:/@+- only, starting with a letter or digit')
    if not model.variants:
        yield Fault(("variants",), "no variants: say how it runs in [[models.NAME.variants]]")
    if not model.modes:
        yield Fault(("mode",), "expected at least one mode")
    if model.max_queue < 1:
        yield Fault(("max_queue",), "expected 1 or more: a request that may not wait cannot start a cold model")
    for mode in model.modes:
        if mode not in known.modes:
            hint = did_you_mean(mode, known.modes)
            yield Fault(("mode",), f'unknown mode "{mode}"{hint}; known: {listed(known.modes)}')
    yield from _check_nodes(model.nodes)
    yield from _check_guards(model, known)
    yield from _check_balance(model, known)
    if model.chain is None:
        return  # it has the default chain, whose faults are told at [sidecar]
    yield from _check_chain(model.chain, known)
    if known.exposed and not _has_auth(model.chain, known):
        yield Fault(("chain",), "no auth plugin, and the sidecar can be reached from other machines")


def _check_guards(model: Model, known: Known) -> Iterator[Fault]:
    """A guard that cannot run must not silently be none."""
    chain = known.settings.chain if model.chain is None else model.chain
    guards = [(position, name, known.guards[name]) for position, name in enumerate(chain) if name in known.guards]
    for position, name, guard in guards:
        for mode in model.modes:
            why_not = unfit(guard, mode, events=mode not in known.unparsed_modes)
            if why_not:
                where: Place = ("mode",) if model.chain is None else ("chain", position)
                remedy = f'give the model a chain without it, or set on_error = "skip" in [plugins.{name}]'
                yield Fault(where, f'the filter "{name}" is a guard, and cannot guard this model: {why_not}; {remedy}')


def _check_balance(model: Model, known: Known) -> Iterator[Fault]:
    if not model.balance:
        return
    if model.balance not in STRATEGIES:
        hint = did_you_mean(model.balance, STRATEGIES)
        yield Fault(("balance",), f'unknown strategy "{model.balance}"{hint}; known: {listed(STRATEGIES)}')
    if sum(variant.external for variant in model.variants) < 2:
        message = "means nothing for a model with fewer than two url variants: there is nothing to share the load"
        yield Fault(("balance",), message)
    chain = known.settings.chain if model.chain is None else model.chain
    for name in chain:
        if name in known.balancers:
            message = f'its chain has the route plugin "{name}", which would choose first; leave one of them out'
            yield Fault(("balance",), message)


def check_device(declaration: DeviceDeclaration, catalog: Catalog) -> Iterator[Fault]:
    """The faults of `[devices.NAME]`."""
    if declaration.memory_mb is not None and declaration.memory_mb < 0:
        yield Fault(("memory_mb",), "expected 0 or more")
    wanted, classes = declaration.match.device_class, catalog.providing("device")
    if wanted is not None and wanted not in classes:
        message = f'unknown device class "{wanted}"{did_you_mean(wanted, classes)}; known: {listed(classes)}'
        yield Fault(("match", "class"), message)
    if declaration.match == DeviceMatch():
        yield Fault(("match",), "expected at least one of class, uuid, name and index")


def _host(address: str) -> str:
    try:
        return listen_address(address)[0]
    except ValueError:
        return "127.0.0.1"  # told already


def _expanded(path: str) -> str:
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        return path  # told already


def _default_name(model: Model, index: int) -> str:
    return "default" if len(model.variants) == 1 else f"variant-{index}"
