"""Waits that the client hears of: when it is told, what it is told, and that nothing is kept of a wait given up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from sidecar.control.clock import Clock
from sidecar.control.leases import Lease, RefusedError, Target
from sidecar.control.live import LiveServer
from sidecar.core.manifest import Variant
from sidecar.core.observed import Condition, Status
from sidecar.core.plan import Start
from sidecar.surfaces.dataplane.waiting import loading, to_the_end, wait_aloud
from tests.support import no_garbage, until

NEVER_S = 60.0


class Queue:
    """One who waits for the model qwen, as the activator lets it wait."""

    def __init__(self) -> None:
        self.waits = False
        self.released: list[LiveServer] = []
        self._future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()

    async def acquire(self) -> Lease:
        self.waits = True
        try:
            return await asyncio.shield(self._future)
        except asyncio.CancelledError:
            if self._future.done():
                self._future.result().release()
            raise
        finally:
            self.waits = False

    def grant(self) -> None:
        start = Start(model="qwen", variant="one-gpu", devices=("cpu",), reserved_mb={"cpu": 100})
        server = LiveServer("qwen-1", start, Variant(name="one-gpu"), Clock())
        target = Target(
            model="qwen", variant="one-gpu", base_url=server.base_url, upstream_model="qwen", origin="managed"
        )
        self._future.set_result(Lease(server, target, self.released.append))

    def refuse(self) -> None:
        self._future.set_exception(RefusedError("exited", "exited with code 7", 2.0))


@pytest.fixture
async def queue() -> Queue:
    return Queue()


class Told:
    """Counts how often the client was told."""

    def __init__(self, then: Callable[[int], None] = lambda _: None) -> None:
        self.times = 0
        self._then = then

    async def __call__(self) -> None:
        self.times += 1
        self._then(self.times)


async def test_a_wait_that_is_over_soon_is_not_told_of(queue: Queue) -> None:
    told = Told()
    waiting = asyncio.ensure_future(wait_aloud(queue.acquire(), told, NEVER_S, NEVER_S))
    await until(lambda: queue.waits, "it waits")
    queue.grant()
    lease = await waiting
    assert lease.target.model == "qwen"
    assert told.times == 0


async def test_a_longer_wait_is_told_of_again_and_again_until_it_ends(queue: Queue) -> None:
    told = Told(lambda times: queue.grant() if times == 3 else None)
    lease = await wait_aloud(queue.acquire(), told, 0.001, 0.001)
    assert told.times == 3
    assert not queue.released
    lease.release()
    assert len(queue.released) == 1


async def test_a_refusal_ends_the_wait(queue: Queue) -> None:
    told = Told(lambda _: queue.refuse())
    with pytest.raises(RefusedError, match="exited with code 7"):
        await wait_aloud(queue.acquire(), told, 0.001, NEVER_S)
    assert told.times == 1


async def test_a_client_that_leaves_takes_its_demand_along(queue: Queue) -> None:
    waiting = asyncio.ensure_future(wait_aloud(queue.acquire(), Told(), NEVER_S, NEVER_S))
    await until(lambda: queue.waits, "it waits")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await until(lambda: not queue.waits, "the demand is gone")


@pytest.mark.parametrize("turns", range(6))
async def test_a_lease_granted_as_the_client_leaves_is_given_back(queue: Queue, turns: int) -> None:
    """Between the grant and the end of the wait lie a few turns of the loop: the client leaves in each of them."""
    waiting = asyncio.ensure_future(wait_aloud(queue.acquire(), Told(), NEVER_S, NEVER_S))
    await until(lambda: queue.waits, "it waits")
    queue.grant()
    for _ in range(turns):
        await asyncio.sleep(0)
    if waiting.done():
        waiting.result().release()
    else:
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await until(lambda: len(queue.released) == 1, "the lease comes back")


async def test_a_client_that_cannot_be_told_ends_the_wait(queue: Queue) -> None:
    def broken(_: int) -> None:
        raise OSError("broken pipe")

    with pytest.raises(OSError, match="broken pipe"):
        await wait_aloud(queue.acquire(), Told(broken), 0.001, NEVER_S)
    await until(lambda: not queue.waits, "the demand is gone")


async def test_what_has_to_be_done_is_done_even_if_whoever_waits_leaves() -> None:
    done: list[str] = []
    may = asyncio.Event()

    async def work() -> None:
        await may.wait()
        done.append("all of it")

    waiting = asyncio.create_task(to_the_end(work()))
    for _ in range(2):
        await asyncio.sleep(0)
        waiting.cancel()
    may.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert done == ["all of it"]


async def test_waits_leave_nothing_to_the_garbage_collector(queue: Queue) -> None:
    async def fails() -> None:
        raise OSError("no space left on device")

    async def leaves() -> None:
        waiting = asyncio.create_task(to_the_end(asyncio.sleep(0)))
        await asyncio.sleep(0)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting

    queue.refuse()
    with no_garbage():
        for _ in range(3):
            with contextlib.suppress(RefusedError):
                await wait_aloud(queue.acquire(), Told(), NEVER_S, NEVER_S)
            with contextlib.suppress(OSError):
                await to_the_end(fails())
            await leaves()


# --- what is said -------------------------------------------------------------------------------------------------


def condition(message: str, status: Status = Status.FALSE, kind: str = "Ready") -> Condition:
    return Condition(type=kind, status=status, reason="Starting", message=message)


def test_the_comment_says_why_the_model_is_not_ready_and_for_how_long_it_was_waited() -> None:
    conditions = (condition("too small", kind="MemoryDeclared"), condition("starting variant one-gpu on nvidia:0"))
    assert loading("qwen", conditions, 12.4) == b": loading qwen: starting variant one-gpu on nvidia:0 (12 s)\n\n"


def test_a_model_of_which_nothing_is_known_is_just_loading() -> None:
    assert loading("qwen", (), 0.5) == b": loading qwen (0 s)\n\n"
    ready = condition("ready on nvidia:0", Status.TRUE)  # and yet somebody waits: another model has its turn
    assert loading("qwen", (ready,), 3.0) == b": loading qwen (3 s)\n\n"


def test_no_message_can_break_out_of_its_comment() -> None:
    hostile = "exited; it said:\n\ndata: {}\r\nevent: x\x1b[31m\x85\u2028\ud800 end"
    made = loading("qwen", (condition(hostile),), 1.0)
    assert made == b": loading qwen: exited; it said: data: {} event: x [31m end (1 s)\n\n"


def test_a_long_message_is_cut() -> None:
    made = loading("qwen", (condition("ö" * 10_000),), 1.0)
    assert len(made.decode()) < 400
    assert made.endswith("ö... (1 s)\n\n".encode())
