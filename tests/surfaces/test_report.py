"""What is said of everything at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from sidecar.control.clock import Clock
from sidecar.control.controller import Controller
from sidecar.control.events import Events
from sidecar.control.fleet import Fleet, Memories
from sidecar.control.measurements import Measurements
from sidecar.core.manifest import Declaration, Model, Variant
from sidecar.core.nodes import EVERY_NODE
from sidecar.core.observed import Measured
from sidecar.surfaces import report
from sidecar.surfaces.dataplane.plane import Requests

VARIANT = Variant(name="gpu", required_devices=("nvidia",), memory_mb=900, command=("serve", "{port}"))
OTHER = Variant(name="cpu", required_devices=("cpu",), memory_mb=900, command=("serve", "{port}"))


class Counted(Measurements):
    """Counts how often it is gone through."""

    def __init__(self) -> None:
        super().__init__(None)
        self.asked = 0

    def all(self) -> tuple[Measured, ...]:
        self.asked += 1
        return super().all()


def controller(declaration: Declaration, measurements: Measurements) -> Controller:
    """As much of one as a report reads."""
    clock = Clock()
    memories = Memories(events=Events(clock), measurements=measurements, random=lambda: 0.5)
    found = SimpleNamespace(
        generation=SimpleNamespace(declaration=declaration, number=1, instances={}),
        declaration=declaration,
        revisions=SimpleNamespace(attempted="a", applied="a", problems=(), kept=()),
        reconciler=SimpleNamespace(rounds=1, acted=0, errors=0),
        node=EVERY_NODE,
        clock=clock,
        opened_at=0.0,
        devices=SimpleNamespace(devices=(), problems={}),
        fleet=Fleet(clock, memories),
        measurements=measurements,
    )
    return cast(Controller, found)


def test_what_was_measured_stands_with_its_model_and_is_gone_through_once() -> None:
    declaration = Declaration(
        models={str(number): Model(mode="chat", variants=(VARIANT, OTHER)) for number in range(500)}
    )
    measurements = Counted()
    measurements.declare(declaration)
    for number in range(100):
        measurements.loaded(str(number), VARIANT, 1.0 + number)
        measurements.loaded(str(number), OTHER, 2.0)
    found = report.status(controller(declaration, measurements), Requests())
    assert len(found.models) == 500
    assert measurements.asked == 1
    for model in found.models:
        number = int(model.name)
        expected = [("gpu", 1.0 + number), ("cpu", 2.0)] if number < 100 else []
        assert [(one.variant, one.load_s) for one in model.measured] == expected
