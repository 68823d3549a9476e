"""A simulated life of a machine: days of trouble and of quiet, all of it from one seed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from random import Random
from typing import Any
from unittest import mock

import msgspec

from sidecar.core.manifest import Model
from sidecar.mechanism.calls import Threads
from tests.simulation import faults
from tests.simulation.audit import Audit
from tests.simulation.declared import Manifests, devices
from tests.simulation.loop import VirtualLoop
from tests.simulation.sidecar import RESYNC_S, Sidecar
from tests.simulation.traffic import Request, Tally, call
from tests.simulation.world import Habits, World

SETTLE_S = 45 * 60.0  # idle timeouts, the last backoffs, and servers that will not die
QUIET_S = 30 * 60.0
LONGEST_QUIET_S = 6 * 3600.0
CONTENTION_S = 60.0
PATIENT_S = 600.0
BIG_MB, MOST_MB = 8000, 20_000
HONEST_S = 22.0  # for an honest server to load, and for another to stop


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """What happens in a life. calm, contentions: the share of busy times in which callers alone make trouble."""

    faults: tuple[faults.Fault, ...] = faults.ALL
    calm: float = 0.2
    contentions: float = 0.15


EVERYTHING = Course()


class Result(msgspec.Struct, kw_only=True):
    """What a life came to. broken: the promise that was; empty if none was."""

    seed: int
    hours: float
    broken: str
    sidecars: int
    starts: int
    served: int
    checks: int


class Life:
    """Everything of one seed. sidecar: the one that runs, if any does."""

    def __init__(self, loop: VirtualLoop, seed: int, course: Course, say: Callable[[str], None]) -> None:
        self.course = course
        self.random = Random(seed)  # noqa: S311 - a simulation must be repeatable
        self.audit = Audit(loop.stop)
        self.world = self.audit.world = World(loop, self.random, self.audit, say)
        self.world.devices = devices()
        self.manifests = Manifests(self.world)
        self.tally = Tally()
        self.sidecar: Sidecar | None = None
        self.lives = 0
        self.down_s = 0.0  # how long the next end of the sidecar lasts
        self._up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def run(self, hours: float) -> None:
        """Trouble, then quiet, and so on, until the time is over."""
        self._keeper = asyncio.create_task(self._keep_running(), name="keeper")
        self._keeper.add_done_callback(self._kept)
        await self._up.wait()
        end = self.world.now + hours * 3600
        while self.world.now < end:
            await (self._contention() if self.random.random() < self.course.contentions else self._trouble())
            await self._quiet()
        self._keeper.cancel()
        if self.sidecar is not None:
            await self.sidecar.kill()

    async def up(self) -> Sidecar:
        """The sidecar, once there is one that has recovered."""
        await self._up.wait()
        if self.sidecar is None:
            raise RuntimeError("it is up and there is none")
        return self.sidecar

    async def _keep_running(self) -> None:
        """Start it again each time that it has ended."""
        while True:
            if self.manifests.unreadable:
                self.manifests.heal()  # it would not start without a directory
            sidecar = self.sidecar = Sidecar(self.world, self.manifests, self.random.getrandbits(32))
            self.lives += 1
            self.world.say(f"the sidecar starts ({self.lives})")
            sidecar.machine.fuse = self.random.randrange(10) if self.random.random() < 0.05 else None
            await sidecar.open()
            if not sidecar.machine.dead:
                self._up.set()
                await sidecar.died.wait()
            self._up.clear()
            await sidecar.kill()
            self.sidecar = None
            self.world.say(f"the sidecar is down for {self.down_s:.1f} s")
            await asyncio.sleep(self.down_s)
            self.down_s = 0.1

    def _kept(self, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled() and (error := keeper.exception()) is not None:
            self.world.loop.call_exception_handler({"message": "the keeper failed", "exception": error})

    async def _trouble(self) -> None:
        """Some minutes in which everything happens."""
        calm = self.audit.calm = self.random.random() < self.course.calm
        self.world.habits = self._honest if calm else self._habits
        if self.sidecar is not None:
            self.sidecar.losing_events = not calm and self.random.random() < self.course.calm
        for _ in range(self.random.randint(8, 24)):
            kind = self.random.choice(faults.CALM if calm else self.course.faults)
            self.world.say(f"--- {kind.__name__.strip('_')}")
            kind(self)
            await asyncio.sleep(self._pause_s())

    async def _contention(self) -> None:
        """Models that do not all fit are asked for without a pause: each must get its turn, again and again."""
        self.world.habits = self._honest
        self.audit.calm = True
        sidecar = await self.up()
        rivals = [name for name, one in sorted(self.manifests.good.items()) if _contends(one)]
        names = self.random.sample(rivals, min(len(rivals), self.random.choice((2, 3))))
        self.world.say(f"--- contention for {names}")
        self.manifests.make_patient(names, PATIENT_S)
        await asyncio.sleep(1.0)
        declared = [self.manifests.good[name] for name in names]
        hold_s = self.random.choice((2.0, 15.0))
        turn_s = max((one.max_wait + one.min_residency for one in declared), default=0.0) + hold_s + HONEST_S
        tallies = [Tally() for _ in names]
        bound_s = len(names) * turn_s
        until = self.world.now + bound_s + CONTENTION_S
        for name, tally in zip(names, tallies, strict=True):
            for _ in range(2):
                self._keep_asking(sidecar, Request(model=name, hold_s=hold_s), tally, until)
        await asyncio.sleep(2 * bound_s + CONTENTION_S)
        for name, tally in zip(names, tallies, strict=True):
            if tally.waited_s > bound_s:
                self.audit.fail(
                    "9", f"{name} had to wait for {tally.waited_s:.1f} s against {names}, of {turn_s:g} each"
                )

    def _keep_asking(self, sidecar: Sidecar, request: Request, tally: Tally, until: float) -> None:
        """A caller who asks again as soon as there is an answer."""

        def again() -> None:
            if self.world.now < until and sidecar is self.sidecar:
                self.world.loop.call_later(0.01 + self.random.random(), ask)

        def ask() -> None:
            call(sidecar, request, tally, again)

        ask()

    def _pause_s(self) -> float:
        """Mostly close together, so that one thing happens in the middle of another."""
        return self.random.choice((0.0, 0.05, 0.5, 3.0, 10.0, 30.0, 90.0)) * self.random.random()

    async def _quiet(self) -> None:
        """Everything is put right, and then nothing happens: it must settle, and stay settled."""
        self.world.say("--- quiet")
        faults.heal(self)
        self.world.habits = self._honest
        await asyncio.sleep(5.0)
        sidecar = await self.up()
        if sidecar.losing_events:
            sidecar.losing_events = False
            self.audit.quiet_since = self.world.now + RESYNC_S  # by then, what was lost has been made up for
        await asyncio.sleep(SETTLE_S)
        sidecar = await self.up()
        self.audit.declared(sidecar)
        acted = sidecar.controller.reconciler.acted
        await asyncio.sleep(QUIET_S + LONGEST_QUIET_S * self.random.random())
        if sidecar is self.sidecar:
            self.audit.settled(sidecar, acted)

    def _honest(self) -> Habits:
        return Habits(load_s=self.random.choice((0.5, 5.0, 20.0)), share=0.7 + 0.3 * self.random.random())

    def _habits(self) -> Habits:
        """How the next server will behave."""
        random = self.random
        habits = self._honest()
        habits.forks = random.random() < 0.3
        match random.randrange(12):
            case 0:
                habits.load_s = math.inf
            case 1:
                habits.crash_s = random.random() * habits.load_s
            case 2:
                habits.crash_s = random.random() * 600
            case 3:
                habits.term_s = math.inf
            case 4:
                habits.term_s, habits.kill_s = math.inf, random.random() * 120
            case 5:
                habits.leak = (random.random() * 300, random.choice((500, 3000)))
            case 6:
                habits.term_s = random.choice((1.0, 10.0, 15 * random.random())) + 0.2 * random.random()
            case 7:
                habits.share = 1.0
            case 8:
                habits.load_s = random.random() * 130
        return habits


def _contends(model: Model) -> bool:
    """Whether it wants much of what others want, too."""
    return any(BIG_MB <= amount <= MOST_MB for one in model.variants for _, amount in one.needs())


def simulate(seed: int, hours: float, say: Callable[[str], None] | None = None, course: Course = EVERYTHING) -> Result:
    """Live through it."""
    loop = VirtualLoop()
    failures: list[str] = []

    def failed(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not isinstance(context.get("exception"), asyncio.CancelledError):  # of one that was killed
            failures.append(f"{context['message']}: {context.get('exception')!r}")
            loop.stop()

    loop.set_exception_handler(failed)
    asyncio.set_event_loop(loop)
    told = (lambda text: say(f"{loop.now:12.3f} {text}")) if say else (lambda _: None)
    life = Life(loop, seed, course, told)
    with _without_threads(), _complaints(failures, loop.stop):
        task = loop.create_task(life.run(hours))
        try:
            loop.run_until_complete(task)
        except RuntimeError as error:
            if not (life.audit.broken or failures):
                failures.append(repr(error))
        except Exception as error:  # noqa: BLE001 - told with its seed, like a broken promise
            failures.append(repr(error))
        finally:
            if life.sidecar is not None:
                life.sidecar.machine.dead = True
            _abandon(loop)
    broken = str(life.audit.broken or "") or "; ".join(failures[:1])
    return Result(
        seed=seed,
        hours=loop.now / 3600,
        broken=broken,
        sidecars=life.lives,
        starts=life.world.starts,
        served=life.tally.served,
        checks=life.audit.checks,
    )


def _abandon(loop: VirtualLoop) -> None:
    """End what is still under way, without a word."""
    loop.set_exception_handler(lambda *_: None)
    for _ in range(3):
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.call_soon(loop.stop)
        loop.run_forever()
    asyncio.set_event_loop(None)
    loop.close()


@contextlib.contextmanager
def _without_threads() -> Iterator[None]:
    """Plugins are made on the spot: a thread would bring its own time."""

    def at_once(self: Threads, function: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function())
        return future

    with mock.patch.object(Threads, "submit", at_once):
        yield


class _Complaint(logging.Handler):
    """An exception that is logged is a bug, but for what the operating system may always say."""

    def __init__(self, failures: list[str], stop: Callable[[], None]) -> None:
        super().__init__(logging.ERROR)
        self._failures = failures
        self._stop = stop

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, OSError):
            self._failures.append(f"{record.getMessage()}: {self._text(record)}")
            self._stop()

    def _text(self, record: logging.LogRecord) -> str:
        return logging.Formatter().formatException(record.exc_info) if record.exc_info else ""


@contextlib.contextmanager
def _complaints(failures: list[str], stop: Callable[[], None]) -> Iterator[None]:
    logger = logging.getLogger("sidecar")
    handler = _Complaint(failures, stop)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    if level in (logging.NOTSET, logging.WARNING):
        logger.setLevel(logging.ERROR)
        logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
