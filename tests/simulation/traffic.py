"""Callers: they ask for a model, wait, hold a server for a while, and sometimes leave before they are through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from sidecar.control.leases import Lease, RefusedError
from tests.simulation.sidecar import Sidecar
from tests.simulation.world import Group, World


class Request(msgspec.Struct, kw_only=True):
    """hold_s: how long the answer takes. patience_s: after which the caller leaves, waiting or served."""

    model: str
    hold_s: float
    patience_s: float = 1e9


class Tally(msgspec.Struct):
    """What became of requests; code: of refusals. waited_s: the longest that anybody has waited for a lease."""

    served: int = 0
    cut: int = 0
    left: int = 0
    refused: dict[str, int] = {}
    waited_s: float = 0.0


def call(sidecar: Sidecar | None, request: Request, tally: Tally, done: Callable[[], None] | None = None) -> None:
    """Send a request; nobody waits for it here."""
    if sidecar is None or not sidecar.recovered or sidecar.machine.dead:
        return
    task = sidecar.task(_call(sidecar, request, tally), f"request for {request.model}")
    if done is not None:
        task.add_done_callback(lambda _: done())


async def _call(sidecar: Sidecar, request: Request, tally: Tally) -> None:
    try:
        async with asyncio.timeout(request.patience_s):
            lease = await _lease(sidecar, request.model, tally)
            if lease is not None:
                await _served(sidecar.world, lease, request, tally)
    except TimeoutError:
        tally.left += 1


async def _lease(sidecar: Sidecar, name: str, tally: Tally) -> Lease | None:
    controller = sidecar.controller
    found = controller.generation.find(name)
    if found is None:
        tally.refused["model_not_found"] = tally.refused.get("model_not_found", 0) + 1
        return None
    began = sidecar.world.now
    try:
        return controller.activator.try_acquire(*found) or await controller.activator.acquire(*found)
    except RefusedError as error:
        tally.refused[error.code] = tally.refused.get(error.code, 0) + 1
        return None
    finally:
        waited_s = sidecar.world.now - began
        tally.waited_s = max(tally.waited_s, waited_s)
        if waited_s > found[1].queue_timeout + 0.1 and not sidecar.machine.dead:
            sidecar.world.audit.fail("9", f"a request for {name} was kept waiting for {waited_s:.1f} s")


async def _served(world: World, lease: Lease, request: Request, tally: Tally) -> None:
    group = _behind(world, lease)
    if group is None:
        lease.release()
        return
    world.audit.granted(group.server, lease.target.model)
    world.busy[group.server] = world.busy.get(group.server, 0) + 1
    try:
        await _hold(world, group, request.hold_s, tally)
    finally:
        world.busy[group.server] = world.busy.get(group.server, 1) - 1
        lease.release()


async def _hold(world: World, group: Group, hold_s: float, tally: Tally) -> None:
    ends = world.now + hold_s
    while group.exit is None and (left_s := ends - world.now) > 0:
        await asyncio.wait([world.news_of(group)], timeout=left_s)
    if group.exit is None:
        tally.served += 1
    else:
        tally.cut += 1


def _behind(world: World, lease: Lease) -> Group | None:
    """The server that the lease is about; None for one of somebody else's, or one that has just ended."""
    if lease.target.origin != "managed":
        return None
    port = int(lease.target.base_url.rpartition(":")[2])
    return next((one for one in world.groups.values() if one.port == port and one.exit is None), None)
