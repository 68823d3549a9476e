"""What waiting for a lease leaves behind: bodies of many MB wait with their requests."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from plugin_sdk import Duration
from sidecar.control.activator import Activator
from sidecar.control.clock import Clock
from sidecar.control.events import Events
from sidecar.control.fleet import Fleet, Memories
from sidecar.control.leases import RefusedError
from sidecar.control.measurements import Measurements
from sidecar.core.manifest import Model, Variant
from tests.support import no_garbage, until

MODEL = Model(variants=(Variant(name="far", url="http://far:1"),), mode="chat")


@pytest.fixture
async def fleet() -> Fleet:
    clock = Clock()
    return Fleet(clock, Memories(events=Events(clock), measurements=Measurements(None), random=lambda: 0.5))


async def refused(fleet: Fleet) -> str:
    """Why there was no lease, when nobody could be asked."""
    waiting = asyncio.create_task(Activator(fleet).acquire("m", MODEL))
    await until(lambda: fleet.waiting, "it waits")
    fleet.refuse("m", RefusedError("connect", "http://far:1 does not answer", 2.0))
    try:
        await waiting
    except RefusedError as error:
        return str(error)
    finally:
        del waiting
    return ""


async def too_late(fleet: Fleet) -> str:
    """The same, when its turn did not come."""
    hurried = Model(variants=MODEL.variants, mode="chat", queue_timeout=Duration(0.001))
    try:
        await Activator(fleet).acquire("m", hurried)
    except RefusedError as error:
        return error.code
    return ""


async def left(fleet: Fleet) -> None:
    """Whoever asked has gone."""
    waiting = asyncio.create_task(Activator(fleet).acquire("m", MODEL))
    await until(lambda: fleet.waiting, "it waits")
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting


async def test_waits_in_vain_leave_nothing_to_the_garbage_collector(fleet: Fleet) -> None:
    assert await refused(fleet) == "http://far:1 does not answer"
    assert await too_late(fleet) == "queue_timeout"
    await left(fleet)
    assert not fleet.waiting
    with no_garbage():
        await refused(fleet)
    with no_garbage():
        await too_late(fleet)
    with no_garbage():
        await left(fleet)
