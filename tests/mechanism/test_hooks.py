"""A hook run at once: marked, timed and counted, whatever the plugin does."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
import weakref
from typing import Any

import pytest

from plugin_sdk import Auth, Principal, Reject, Request, inline
from sidecar.mechanism import results
from sidecar.mechanism import watchdog as watchdog_module
from sidecar.mechanism.calls import at_once
from sidecar.mechanism.hooks import Hook
from sidecar.mechanism.instance import Instance
from sidecar.mechanism.watchdog import BLOCKED_S, Watchdog
from tests.support import PATIENCE_S, plugin

REQUEST = Request(method="POST", path="/")


class Door(Auth):
    """Does what it is told."""

    does: Any = None

    @inline
    def authenticate(self, request: Request) -> Principal:
        return self.does()  # type: ignore[no-any-return] # untyped plugins return anything


async def hook(does: Any) -> Hook[Principal]:
    instance = Instance("door", plugin(Door))
    await instance.open()
    assert isinstance(instance.plugin, Door)
    instance.plugin.does = does
    return Hook(instance, "authenticate", results.principal)


def refuses() -> Principal:
    raise Reject(401, "no")


async def test_every_call_that_goes_well_is_counted_and_timed() -> None:
    found = await hook(lambda: Principal("a"))
    for _ in range(20):
        assert found.now(REQUEST) == Principal("a")
    instance = found.instance
    assert (instance.runs, instance.failed, len(instance.durations_s)) == (20, 0, 20)
    assert all(0 < took < PATIENCE_S for took in instance.durations_s)


@pytest.mark.parametrize("does", [lambda: Principal("a"), refuses, lambda: 5, lambda: sys.exit(3)])
async def test_afterwards_it_is_marked_no_more(does: Any) -> None:
    marked = []

    def seen() -> Any:
        marked.append(found.instance.marker.entered)
        return does()

    found = await hook(seen)
    with contextlib.suppress(Reject):
        found.now(REQUEST)
    assert marked[0] > 0
    assert found.instance.marker.entered == 0.0


async def test_a_refusal_leaves_nothing_to_the_garbage_collector() -> None:
    class Refusal(Reject):
        """One that is seen to go."""

    gone: list[weakref.ref[Refusal]] = []

    def refuses_visibly() -> Principal:
        raise Refusal(401, "no")

    def awaited(request: Request) -> object:
        return at_once(found(request))

    found = await hook(refuses_visibly)
    gc.disable()
    try:
        for ask in (found.now, awaited):
            try:
                ask(REQUEST)
            except Refusal as error:
                gone.append(weakref.ref(error))
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("does", [lambda: Principal("a"), refuses])
async def test_one_that_blocks_is_counted_without_anybody_looking(does: Any) -> None:
    def blocks() -> Any:
        time.sleep(2 * BLOCKED_S)
        return does()

    found = await hook(blocks)
    with contextlib.suppress(Reject):
        found.now(REQUEST)
    assert found.instance.marker.blocked == 1
    assert found.instance.marker.longest_s > BLOCKED_S


async def test_one_that_does_not_stop_blocking_is_stopped_and_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog_module, "STUCK_S", 0.3)
    found = await hook(lambda: time.sleep(PATIENCE_S))
    watchdog = Watchdog(lambda: (found.instance.marker,))
    watchdog.start()
    began = time.monotonic()
    with pytest.raises(Reject, match="failed"):
        found.now(REQUEST)
    watchdog.close()
    assert time.monotonic() - began < PATIENCE_S
    assert (found.instance.failed, found.instance.marker.blocked, found.instance.marker.entered) == (1, 1, 0.0)
    assert "BlockedError" in found.instance.last_error
