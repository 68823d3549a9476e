"""What happens to servers is counted, once each."""

from __future__ import annotations

import pytest

from sidecar.control.clock import Clock
from sidecar.control.fleet import Fleet
from sidecar.control.live import LiveServer
from sidecar.core.lifecycle import Cause
from sidecar.core.manifest import Variant
from sidecar.core.plan import Start
from sidecar.mechanism.metrics import Sums


@pytest.fixture
async def fleet() -> Fleet:
    return Fleet(Clock())


def begun(fleet: Fleet, *, adopted: bool = False) -> LiveServer:
    start = Start(model="m", variant="v", devices=("cpu",), reserved_mb={"cpu": 1})
    server = LiveServer(f"m-{fleet.events.last}", start, Variant(name="v"), fleet.clock)
    fleet.add(server, adopted=adopted, why="")
    return server


def served(fleet: Fleet) -> LiveServer:
    server = begun(fleet)
    fleet.move(server, Cause.BECAME_READY)
    return server


def told(sums: Sums) -> dict[tuple[str, ...], float]:
    return {point.labels: point.value for point in sums.points()}


async def test_a_server_that_is_evicted_is_a_start_and_a_stop(fleet: Fleet) -> None:
    server = served(fleet)
    assert fleet.try_stop(server, "Evicted")
    fleet.force_stop(server, "Requested")  # again, while it is going
    fleet.gone(server)
    assert told(fleet.tallies.starts) == {("m", "v", ""): 1}
    assert told(fleet.tallies.stops) == {("m", "v", "Evicted", ""): 1}
    assert not told(fleet.tallies.failures)
    assert not told(fleet.tallies.restarts)


async def test_a_server_that_is_drained_for_another_is_a_stop_with_that_reason(fleet: Fleet) -> None:
    server = served(fleet)
    fleet.drain(server, "TurnOver")
    fleet.try_stop(server, "Drained")
    assert told(fleet.tallies.stops) == {("m", "v", "TurnOver", ""): 1}


async def test_the_start_after_a_failure_is_a_restart(fleet: Fleet) -> None:
    server = served(fleet)
    fleet.failed(server, "Exited", "it died")
    fleet.force_stop(server, "Exited", cause=Cause.EXITED)
    fleet.failed(server, "Exited", "it died, once more told")
    fleet.gone(server)
    begun(fleet)
    assert told(fleet.tallies.failures) == {("m", "v", "Exited", ""): 1}
    assert told(fleet.tallies.starts) == {("m", "v", ""): 2}
    assert told(fleet.tallies.restarts) == {("m", "v", ""): 1}


async def test_a_server_that_is_taken_over_is_no_start(fleet: Fleet) -> None:
    begun(fleet, adopted=True)
    assert told(fleet.tallies.adoptions) == {("m", "v", ""): 1}
    assert not told(fleet.tallies.starts)
