"""What the fleet remembers of servers that went wrong."""

from __future__ import annotations

import math

import pytest

from sidecar.control.clock import Clock
from sidecar.control.fleet import ATTEMPTS, Fleet, LiveServer
from sidecar.core.manifest import Variant
from sidecar.core.observed import ServerState
from sidecar.core.plan import Start

EXIT = "the server exited with code 1 while it was serving"
TOLD = f"{EXIT}; the last lines of its output:\nboom"


@pytest.fixture
async def fleet() -> Fleet:
    return Fleet(Clock())


def crash(fleet: Fleet) -> LiveServer:
    """A server that got ready and died at once."""
    start = Start(model="m", variant="default", devices=("cpu",), reserved_mb={"cpu": 1})
    server = LiveServer("m-1", start, Variant(name="default"), fleet.clock)
    fleet.move(server, ServerState.READY)
    fleet.failed(server, "Exited", EXIT)
    return server


async def test_the_first_crash_is_forgiven_and_the_next_ones_cost_more_each_time(fleet: Fleet) -> None:
    delays = []
    for _ in range(5):
        crash(fleet)
        delays.append(round(fleet.failures["m"].retry_at - fleet.clock.monotonic()))
    assert delays == [0, 2, 4, 8, 16]


async def test_a_crash_loop_ends_and_goes_on_saying_so_when_its_last_words_are_known(fleet: Fleet) -> None:
    for _ in range(ATTEMPTS):
        server = crash(fleet)
    fleet.explain(server, TOLD)
    failure = fleet.failures["m"]
    assert failure.retry_at == math.inf
    assert (
        failure.message
        == f"given up after {ATTEMPTS} attempts, until its manifest changes or somebody starts it: {TOLD}"
    )


async def test_last_words_are_not_put_to_the_failure_of_another_attempt(fleet: Fleet) -> None:
    server = crash(fleet)
    fleet.explain(server, "the server was killed by SIGKILL while it was serving; the last lines of its output:\nx")
    assert fleet.failures["m"].message == EXIT
    assert server.told.is_set()
