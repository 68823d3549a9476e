"""What the sidecar says about itself: the values behind `sidecar status` and `/-/status`."""

from __future__ import annotations

import msgspec

from plugin_sdk import DeviceStatus
from sidecar import __version__
from sidecar.control.controller import Controller
from sidecar.control.events import Event
from sidecar.control.generations import Generation
from sidecar.core.explain import Story
from sidecar.core.ledger import Ledger
from sidecar.core.manifest import Declaration, Model
from sidecar.core.observed import Condition, Device, Measured, Server
from sidecar.core.placement import Inventory
from sidecar.core.sourcing import SourceReport
from sidecar.mechanism import logs
from sidecar.mechanism.instance import Instance
from sidecar.mechanism.logs import LogCounts
from sidecar.surfaces.dataplane.plane import Requests
from sidecar.surfaces.progress import Progress, progress

STORY_EVENTS = 10
KEEP_ALIVE_S = 15.0  # between signs of life to those who follow events: sooner than proxies give up


class EventsReport(msgspec.Struct, frozen=True, kw_only=True):
    """Events, oldest first. last: what to ask after next. gap: some after the one asked for are no longer held."""

    events: list[Event]
    last: int
    gap: bool


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """One device. usable_mb: for servers, after headroom and cap. reserved_mb: by our servers. names: in manifests.

    foreign_mb: what processes hold that are not ours; None where that cannot be told. host_memory: it is the RAM.
    """

    device_class: str
    label: str
    status: DeviceStatus
    usable_mb: int | None = None
    reserved_mb: int = 0
    foreign_mb: int | None = None
    host_memory: bool = False
    names: tuple[str, ...] = ()


class ServerReport(msgspec.Struct, frozen=True, kw_only=True):
    """A server that exists. Memory by device id; a device missing from observed_mb is one that does not tell.

    loading: how far it has come, while it does.
    """

    id: str
    state: str
    variant: str
    devices: tuple[str, ...]
    port: int
    pid: int | None
    in_flight: int
    reserved_mb: dict[str, int]
    observed_mb: dict[str, int]
    loading: Progress | None = None


class ModelReport(msgspec.Struct, frozen=True, kw_only=True):
    """A declared model. state: where it is in its life (core.lifecycle). waiting: requests that wait for it.

    measured: what its variants took at most, and how long they load. pinned: by whom, "manifest" or "operator"; "" = it
    is not. drained: an operator has taken it out of service.
    """

    name: str
    aliases: tuple[str, ...]
    modes: tuple[str, ...]
    state: str
    waiting: int
    server: ServerReport | None
    conditions: tuple[Condition, ...]
    measured: tuple[Measured, ...] = ()
    pinned: str = ""
    drained: bool = False


class ModelStory(msgspec.Struct, frozen=True, kw_only=True):
    """A model, where each of its variants stands, and what has happened to it of late, the newest last."""

    model: ModelReport
    story: Story
    events: tuple[Event, ...] = ()


class PluginReport(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin in force. failed: calls that went wrong. dropped: outcomes that found the queue full.

    blocked: how often it held up the event loop for longer than it may.
    behind: why this is the one before, if a newer one cannot be loaded or opened.
    """

    name: str
    kind: str
    import_path: str
    problem: str
    failed: int
    dropped: int
    blocked: int = 0
    behind: str = ""


class ReloadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is in force after a reload. plugins: those that cannot be used, or are still those before, and why."""

    generation: int
    applied: str
    problems: tuple[str, ...]
    plugins: tuple[str, ...]


class StatusReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at a glance. kept: models that run in their last good form, since the new one has problems.

    labels: this node's. elsewhere: models that are for other nodes, and for which ones.
    """

    version: str
    uptime_s: float
    generation: int
    attempted: str
    applied: str
    problems: tuple[str, ...]
    kept: tuple[str, ...]
    devices: tuple[DeviceReport, ...]
    device_problems: dict[str, str]
    models: tuple[ModelReport, ...]
    plugins: tuple[PluginReport, ...]
    requests: Requests
    rounds: int
    acted: int
    errors: int
    labels: dict[str, str] = {}
    elsewhere: dict[str, str] = {}
    log: LogCounts = LogCounts()
    source: SourceReport | None = None


def devices(found: tuple[Device, ...], servers: tuple[Server, ...], declared: Declaration) -> tuple[DeviceReport, ...]:
    """The devices with what is reserved on them."""
    inventory = Inventory(found, declared.devices)
    ledger = Ledger(found, servers, inventory.caps, declared.settings.headroom_mb)
    return tuple(
        DeviceReport(
            device_class=device.device_class,
            label=device.label,
            status=device.status,
            usable_mb=ledger.usable.get(device.id),
            reserved_mb=sum(server.reserved_mb.get(device.id, 0) for server in servers),
            foreign_mb=ledger.foreign_mb(device.id) if device.id in ledger.devices else None,
            host_memory=device.host_memory,
            names=tuple(name for name, key in inventory.named.items() if key == device.id),
        )
        for device in found
    )


def status(controller: Controller, requests: Requests) -> StatusReport:
    """Everything, now."""
    generation = controller.generation
    revisions = controller.revisions
    reconciler = controller.reconciler
    measured = _measured(controller)
    return StatusReport(
        version=__version__,
        uptime_s=round(controller.clock.monotonic() - controller.opened_at, 1),
        generation=generation.number,
        attempted=revisions.attempted,
        applied=revisions.applied,
        problems=tuple(str(problem) for problem in revisions.problems),
        kept=revisions.kept,
        devices=live_devices(controller),
        device_problems=controller.devices.problems,
        models=tuple(
            _model(controller, name, model, measured.get(name, ()))
            for name, model in generation.declaration.models.items()
        ),
        plugins=_plugins(generation),
        requests=requests,
        rounds=reconciler.rounds,
        acted=reconciler.acted,
        errors=reconciler.errors,
        labels=controller.node.labels or {},
        elsewhere={name: one.nodes for name, one in generation.declaration.elsewhere.items()},
        log=logs.counts(),
    )


def live_devices(controller: Controller) -> tuple[DeviceReport, ...]:
    """The devices as last read, with the reservations of this moment."""
    servers = tuple(server.view() for server in controller.fleet.servers.values())
    return devices(controller.devices.devices, servers, controller.declaration)


def reload(controller: Controller) -> ReloadReport:
    """What came of a reload that has just been."""
    generation = controller.generation
    plugins = [f"{plugin.name}: {plugin.problem}" for plugin in _plugins(generation) if plugin.problem]
    return ReloadReport(
        generation=generation.number,
        applied=controller.revisions.applied,
        problems=tuple(str(problem) for problem in controller.revisions.problems),
        plugins=(*plugins, *(f"{name} stays as it was: {why}" for name, why in sorted(generation.behind.items()))),
    )


async def story(controller: Controller, name: str) -> ModelStory:
    """The whole story of a declared model."""
    model = controller.declaration.models[name]
    return ModelStory(
        model=_model(controller, name, model, _measured(controller).get(name, ())),
        story=await controller.explain(name),
        events=tuple(controller.events.newest(STORY_EVENTS, name)),
    )


def _measured(controller: Controller) -> dict[str, tuple[Measured, ...]]:
    """What is remembered, by model."""
    found: dict[str, tuple[Measured, ...]] = {}
    for one in controller.measurements.all():
        found[one.model] = (*found.get(one.model, ()), one)
    return found


def _model(controller: Controller, name: str, model: Model, measured: tuple[Measured, ...]) -> ModelReport:
    waiters = controller.fleet.waiting.get(name)
    return ModelReport(
        name=name,
        aliases=model.aliases,
        modes=model.modes,
        state=controller.fleet.state_of(name).value,
        waiting=len(waiters.futures) if waiters else 0,
        server=_server(controller, name),
        conditions=controller.fleet.conditions.get(name, ()),
        measured=measured,
        pinned=pinned_by(controller, name, model),
        drained=name in controller.fleet.overrides.drained,
    )


def pinned_by(controller: Controller, name: str, model: Model) -> str:
    """Who has pinned the model, in one word; "" if nobody has."""
    if model.pinned:
        return "manifest"
    return "operator" if name in controller.fleet.overrides.pinned else ""


def _server(controller: Controller, name: str) -> ServerReport | None:
    server = controller.fleet.server_of(name)
    if server is None:
        return None
    return ServerReport(
        id=server.id,
        state=server.state.value,
        variant=server.variant.name,
        devices=server.devices,
        port=server.port,
        pid=server.process.pid if server.process else None,
        in_flight=server.in_flight,
        reserved_mb=server.reserved_mb,
        observed_mb=server.observed_mb,
        loading=progress(server, controller.measurements, controller.clock.monotonic()),
    )


def _plugins(generation: Generation) -> tuple[PluginReport, ...]:
    instances = sorted(generation.instances.values(), key=lambda instance: instance.name)
    return tuple(plugin(instance, generation) for instance in instances)


def plugin(instance: Instance, generation: Generation) -> PluginReport:
    """A plugin of a generation, in short."""
    loaded = instance.loaded
    return PluginReport(
        name=instance.name,
        kind=loaded.kind if loaded else "unknown",
        import_path=loaded.declaration.import_path if loaded else "",
        problem=instance.problem,
        failed=instance.failed,
        dropped=instance.sink.dropped if instance.sink else 0,
        blocked=instance.marker.blocked,
        behind=generation.behind.get(instance.name, ""),
    )
