"""What a new declaration changes about servers that run."""

from __future__ import annotations

import msgspec
import pytest

from plugin_sdk import Duration
from sidecar.control.changes import renamed_models, take_over_changes
from sidecar.control.clock import Clock
from sidecar.control.events import Events
from sidecar.control.fleet import Fleet, Memories
from sidecar.control.live import LiveServer
from sidecar.control.measurements import Measurements
from sidecar.core.manifest import Declaration, Model, Variant
from sidecar.core.plan import Start

MODEL = Model(variants=(Variant(name="one", command=("serve",)),), mode="chat", auto_start=True)


@pytest.fixture
async def fleet() -> Fleet:
    """One model, and its server."""
    clock = Clock()
    fleet = Fleet(clock, Memories(events=Events(clock), measurements=Measurements(None), random=lambda: 0.5))
    start = Start(model="m", variant="one", devices=("cpu",), reserved_mb={"cpu": 1})
    fleet.add(LiveServer("m-1", start, MODEL.variants[0], clock), "it fits")
    return fleet


def edited(fleet: Fleet, model: Model) -> None:
    take_over_changes(fleet, Declaration(models={"m": MODEL}), Declaration(models={"m": model}))


async def test_a_server_that_goes_on_is_not_started_by_itself_again_when_it_is_stopped_later(fleet: Fleet) -> None:
    edited(fleet, msgspec.structs.replace(MODEL, idle_timeout=Duration(1)))
    assert "m" in fleet.auto_started


async def test_a_server_that_must_restart_starts_by_itself_again(fleet: Fleet) -> None:
    edited(fleet, msgspec.structs.replace(MODEL, variants=(Variant(name="one", command=("serve", "other")),)))
    assert "m" not in fleet.auto_started


async def test_models_are_called_otherwise_with_servers_or_without(fleet: Fleet) -> None:
    idle = Model(variants=(Variant(name="one", command=("other",)),), mode="chat")
    before = Declaration(models={"m": MODEL, "idle": idle, "twin": idle, "stays": idle})
    after = Declaration(models={"n": MODEL, "still": idle, "stays": idle})
    assert renamed_models(fleet, before, after) == {"m": "n", "idle": "still"}
    assert renamed_models(fleet, before, before) == {}
    assert renamed_models(fleet, before, Declaration(models={"m": MODEL})) == {}
