"""What `sidecar top` shows, in one answer that is cheap enough to be asked for every second, however many models."""

from __future__ import annotations

import os

import msgspec

from sidecar import __version__
from sidecar.control.controller import Controller
from sidecar.core.holders import Holders, holders
from sidecar.core.ledger import Ledger
from sidecar.core.manifest import Model
from sidecar.core.observed import Server
from sidecar.core.placement import Inventory
from sidecar.mechanism.request_meter import Total
from sidecar.surfaces.dataplane.plane import Plane
from sidecar.surfaces.progress import Progress, progress
from sidecar.surfaces.report import pinned_by


class TopDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A device. holders: of its memory; None = it cannot be read, and problem says why."""

    label: str
    name: str
    holders: Holders | None = None
    problem: str = ""
    utilisation_pct: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


class TopModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model. requests, tokens_in, tokens_out: since the sidecar has started; rates are the difference of two answers.

    state: as in core.lifecycle; "elsewhere": served by what others run, "unhealthy": it would be, but is not.
    because: why it is not ready, on one line. devices: labels. in_flight: on its server, and on those elsewhere.
    """

    name: str
    state: str
    because: str = ""
    variant: str = ""
    devices: tuple[str, ...] = ()
    port: int = 0
    memory_mb: int | None = None
    reserved_mb: int = 0
    in_flight: int = 0
    waiting: int = 0
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    pinned: str = ""
    drained: bool = False
    loading: Progress | None = None


class TopReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at this moment. pid: of the sidecar, so that one is told from the next. at: unix seconds.

    clock: seconds since it has started, to divide differences by. last_event: after which to ask for more.
    """

    version: str
    pid: int
    at: float
    clock: float
    revision: str
    problems: int
    connections: int
    last_event: int
    devices: tuple[TopDevice, ...] = ()
    models: tuple[TopModel, ...] = ()


def top(controller: Controller, plane: Plane) -> TopReport:
    """Everything at this moment."""
    clock, servers = controller.clock, tuple(server.view() for server in controller.fleet.servers.values())
    counted = plane.meter.by_model()
    labels = {device.id: device.label for device in controller.devices.devices}
    return TopReport(
        version=__version__,
        pid=os.getpid(),
        at=clock.unix(),
        clock=clock.monotonic() - controller.opened_at,
        revision=controller.revisions.applied,
        problems=len(controller.revisions.problems),
        connections=plane.requests.connections,
        last_event=controller.events.last,
        devices=_devices(controller, servers),
        models=tuple(
            _model(controller, name, model, counted, labels) for name, model in controller.declaration.models.items()
        ),
    )


def _devices(controller: Controller, servers: tuple[Server, ...]) -> tuple[TopDevice, ...]:
    found, declared = controller.devices.devices, controller.declaration
    ledger = Ledger(found, servers, Inventory(found, declared.devices).caps, declared.settings.headroom_mb)
    return tuple(
        TopDevice(
            label=device.label,
            name=device.status.name,
            holders=holders(ledger, device.id, servers),
            problem=device.unknown,
            utilisation_pct=device.status.utilisation_pct,
            temperature_c=device.status.temperature_c,
            power_w=device.status.power_w,
        )
        for device in found
    )


def _model(
    controller: Controller, name: str, model: Model, counted: dict[str, Total], labels: dict[str, str]
) -> TopModel:
    fleet = controller.fleet
    conditions = fleet.conditions.get(name, ())
    waiters = fleet.waiting.get(name)
    elsewhere = sum(fleet.external_in_flight.get((name, one.name), 0) for one in model.variants if one.external)
    server = fleet.server_of(name)
    total = counted.get(name) or Total()
    told = TopModel(
        name=name,
        state=fleet.state_of(name).value if server is not None else _without_server(controller, name, model),
        because=conditions[0].message.partition("\n")[0] if conditions else "",
        in_flight=elsewhere,
        waiting=len(waiters.futures) if waiters else 0,
        requests=total.requests,
        tokens_in=total.input,
        tokens_out=total.output,
        pinned=pinned_by(controller, name, model),
        drained=name in fleet.overrides.drained,
    )
    if server is None:
        return told
    return msgspec.structs.replace(
        told,
        variant=server.variant.name,
        devices=tuple(labels.get(device, device) for device in server.devices),
        port=server.port,
        memory_mb=sum(server.observed_mb.values()) if server.observed_mb else None,
        reserved_mb=sum(server.reserved_mb.values()),
        in_flight=server.in_flight + elsewhere,
        loading=progress(server, controller.measurements, controller.clock.monotonic()),
    )


def _without_server(controller: Controller, name: str, model: Model) -> str:
    """The state of a model of which we run no server; of one that others run, too."""
    if controller.fleet.healthy_external(name, model) is not None:
        return "elsewhere"
    if all(variant.external for variant in model.variants):
        return "unhealthy"
    return controller.fleet.state_of(name).value
