"""Chains: auth that is broken in any way lets nobody in; statistics that are broken harm nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from plugin_sdk import ANONYMOUS, Auth, Config, Outcome, Plugin, Principal, Reject, Request, Stats, inline
from sidecar.mechanism import instance as instances
from sidecar.mechanism import sink
from sidecar.mechanism.chain import Chain, Instance
from tests.mechanism.conftest import Opened
from tests.support import PATIENCE_S, plugin, until

REQUEST = Request(method="POST", path="/v1/chat/completions")
OUTCOME = Outcome(model="m")

Make = Callable[..., Awaitable[Instance]]


@pytest.fixture
def made(opened: Opened) -> Make:
    """`await made(cls)` makes and opens an instance."""

    async def make(cls: type[Plugin[Any]], name: str = "door", **more: Any) -> Instance:
        return await opened(plugin(cls, name, **more))

    return make


class Door(Auth):
    """Lets everybody in, as "guest"."""

    @inline
    def authenticate(self, request: Request) -> Principal:
        return Principal("guest")


async def refusal(instance: Instance) -> Reject:
    """What a client hears, through a chain whose other plugins would let it in; at once where that can be."""
    chain = Chain([instance])
    with pytest.raises(Reject) as refused:
        chain.authenticate_now(REQUEST) if chain.auth_inline else await chain.authenticate(REQUEST)
    return refused.value


# --- auth ---------------------------------------------------------------------------------------------------------


async def test_without_auth_everybody_is_anonymous() -> None:
    empty = Chain([])
    assert await empty.authenticate(REQUEST) == ANONYMOUS
    assert not empty.has_auth


async def test_the_plugin_names_the_caller(made: Make) -> None:
    admitted = Chain([await made(Door)])
    assert admitted.has_auth
    assert await admitted.authenticate(REQUEST) == Principal("guest")


async def test_each_must_admit_and_the_last_one_names(made: Make) -> None:
    asked: list[str] = []

    class Named(Auth):
        async def authenticate(self, request: Request) -> Principal:
            asked.append(self.name)
            return Principal(self.name)

    class Closed(Auth):
        def authenticate(self, request: Request) -> Principal:
            raise Reject(403, "not today")

    one, two, closed = await made(Named, "one"), await made(Named, "two"), await made(Closed)
    assert await Chain([one, two]).authenticate(REQUEST) == Principal("two")
    assert asked == ["one", "two"]
    with pytest.raises(Reject, match="not today"):
        await Chain([closed, one]).authenticate(REQUEST)
    with pytest.raises(Reject, match="not today"):
        await Chain([one, closed]).authenticate(REQUEST)


async def test_where_nobody_waits_a_plain_call_names_the_caller_as_well(made: Make) -> None:
    class Named(Auth):
        @inline
        def authenticate(self, request: Request) -> Principal:
            return Principal(self.name)

    chain = Chain([await made(Named, "one"), await made(Named, "two")])
    assert chain.auth_inline
    assert chain.authenticate_now(REQUEST) == await chain.authenticate(REQUEST) == Principal("two")
    assert not Chain([await made(Named, "one"), await made(Late)]).auth_inline
    assert Chain([]).authenticate_now(REQUEST) == ANONYMOUS


async def test_a_refusal_reaches_the_client_as_it_was_meant(made: Make) -> None:
    class Closed(Auth):
        def authenticate(self, request: Request) -> Principal:
            raise Reject(402, "no credit", code="broke", retry_after_s=60, headers={"x-plan": "free"})

    instance = await made(Closed)
    refused = await refusal(instance)
    assert (refused.status, refused.message, refused.code, refused.retry_after_s) == (402, "no credit", "broke", 60)
    assert refused.headers == {"x-plan": "free"}
    assert instance.failed == 0


class Raises(Auth):
    def authenticate(self, request: Request) -> Principal:
        raise ConnectionError("password=hunter2")


class Exits(Auth):
    def authenticate(self, request: Request) -> Principal:
        raise SystemExit(0)


class Late(Auth):
    async def authenticate(self, request: Request) -> Principal:
        await asyncio.Event().wait()
        return Principal("too late")


class Blocks(Auth):
    release = threading.Event()

    def authenticate(self, request: Request) -> Principal:
        self.release.wait(PATIENCE_S)
        return Principal("too late")

    async def close(self) -> None:
        self.release.set()


class SaysTrue(Auth):
    def authenticate(self, request: Request) -> Any:
        return True


class SaysNothing(Auth):
    async def authenticate(self, request: Request) -> Any:
        return None


class SaysNothingAtOnce(Auth):
    @inline
    def authenticate(self, request: Request) -> Any:
        return None


class SaysAName(Auth):
    @inline
    def authenticate(self, request: Request) -> Any:
        return "admin"


class SaysAClass(Auth):
    @inline
    def authenticate(self, request: Request) -> Any:
        return Principal


class Asserts(Auth):
    @inline
    def authenticate(self, request: Request) -> Principal:
        raise AssertionError


class Mumbles(Auth):
    """Means to refuse, with what is no text."""

    @inline
    def authenticate(self, request: Request) -> Principal:
        try:
            raise OSError("password=hunter2")
        except OSError as error:
            raise Reject(401, error) from None  # type: ignore[arg-type] # what untyped plugins do


class RefusesEmptily(Auth):
    def authenticate(self, request: Request) -> Principal:
        class Mine(Reject):
            def __init__(self) -> None:
                """Set nothing."""

        raise Mine


class SaysANumber(Auth):
    @inline
    def authenticate(self, request: Request) -> Any:
        return Principal(7)  # type: ignore[arg-type] # as above


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Raises, "failed"),
        (Exits, "failed"),
        (Asserts, "failed"),
        (Late, "did not answer in time"),
        (Blocks, "did not answer in time"),
        (SaysTrue, "failed"),
        (SaysNothing, "failed"),
        (SaysNothingAtOnce, "failed"),
        (SaysAName, "failed"),
        (SaysAClass, "failed"),
        (SaysANumber, "failed"),
        (Mumbles, "failed"),
        (RefusesEmptily, "failed"),
    ],
)
async def test_auth_that_breaks_lets_nobody_in_and_says_nothing_about_why(
    made: Make, cls: type[Auth], words: str
) -> None:
    instance = await made(cls, deadline_s=0.05 if cls in (Late, Blocks) else PATIENCE_S)
    refused = await refusal(instance)
    assert refused.status == 503
    assert refused.code == "auth_unavailable"
    assert refused.retry_after_s == 5
    assert str(refused) == f'the auth plugin "door" {words}'
    assert instance.failed == 1
    with pytest.raises(Reject):  # no other plugin can make up for it, in whatever order
        await Chain([instance, await made(Door, "other")]).authenticate(REQUEST)
    with pytest.raises(Reject):
        await Chain([await made(Door, "another"), instance]).authenticate(REQUEST)


class BrokenOpen(Door):
    async def open(self) -> None:
        raise OSError("no database")


class BrokenConstructor(Door):
    def __init__(self, config: Config | None = None, *, name: str = "", **more: Any) -> None:
        raise RuntimeError("never made")


class HangingOpen(Door):
    async def open(self) -> None:
        await asyncio.Event().wait()


class HangingConstructor(Door):
    release = threading.Event()

    def __init__(self, config: Config | None = None, *, name: str = "", **more: Any) -> None:
        self.release.wait(PATIENCE_S)


LATE, REMEDY = "open failed: it did not end within 0.05 s", "give what it waits for a timeout of its own"


@pytest.mark.parametrize(
    ("cls", "problem"),
    [
        (BrokenOpen, "open failed: OSError: no database"),
        (BrokenConstructor, "open failed: RuntimeError: never made"),
        (HangingOpen, f"{LATE}: it was at {__file__}:{HangingOpen.open.__code__.co_firstlineno + 1}; {REMEDY}"),
        (HangingConstructor, f"{LATE}; {REMEDY}"),
    ],
)
async def test_auth_that_does_not_open_lets_nobody_in(
    made: Make, cls: type[Auth], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "OPEN_S", 0.05 if "Hanging" in cls.__name__ else PATIENCE_S)
    instance = await made(cls)
    if cls is HangingConstructor:
        HangingConstructor.release.set()
    assert instance.problem == problem
    assert str(await refusal(instance)) == 'the auth plugin "door" is not available'


async def test_a_plugin_that_exits_while_it_opens_does_not_take_the_program_along(made: Make) -> None:
    class Leaves(Door):
        async def open(self) -> None:
            raise SystemExit(3)

    try:
        instance = await made(Leaves)
    except SystemExit:
        pytest.fail("the plugin's exit got through")
    assert "SystemExit" in instance.problem


async def test_a_plugin_that_did_not_load_lets_nobody_in_whatever_it_was() -> None:
    missing = Instance("audit", None, "no such module")
    await missing.open()
    assert Chain([missing]).has_auth
    assert str(await refusal(missing)) == 'the auth plugin "audit" is not available'
    await missing.close()


async def test_a_request_that_is_cancelled_is_cancelled(made: Make) -> None:
    waiting = asyncio.create_task(Chain([await made(Late)]).authenticate(REQUEST))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_plugin_that_is_cancelled_from_within_lets_nobody_in_and_the_client_hears_of_it(made: Make) -> None:
    class Cancelled(Auth):
        async def authenticate(self, request: Request) -> Principal:
            future: asyncio.Future[Principal] = asyncio.get_running_loop().create_future()
            future.cancel()  # as a connection pool does with what it drops
            return await future

    try:
        await refusal(await made(Cancelled))
    except asyncio.CancelledError:
        pytest.fail("nobody cancelled the request")


# --- opening and closing ------------------------------------------------------------------------------------------


async def test_a_plugin_is_opened_once_and_closed_once() -> None:
    told: list[str] = []

    class Told(Door):
        async def open(self) -> None:
            told.append(f"open {self.name}")

        async def close(self) -> None:
            told.append("close")

    instance = Instance("door", plugin(Told, "door"))
    await instance.open()
    await Chain([instance]).authenticate(REQUEST)
    await instance.close()
    assert told == ["open door", "close"]


async def test_one_whose_open_failed_is_closed_too() -> None:
    closed = asyncio.Event()

    class Half(BrokenOpen):
        async def close(self) -> None:
            closed.set()

    instance = Instance("door", plugin(Half, "door"))
    await instance.open()
    await instance.close()
    assert closed.is_set()


@pytest.mark.parametrize("how", ["raises", "hangs"])
async def test_a_close_that_fails_is_the_plugins_own_trouble(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "CLOSE_S", 0.05)

    class Sticky(Door):
        async def close(self) -> None:
            if how == "raises":
                raise OSError
            await asyncio.Event().wait()

    instance = Instance("door", plugin(Sticky, "door"))
    await instance.open()
    await asyncio.wait_for(instance.close(), PATIENCE_S)
    assert instance.failed == 1


# --- stats --------------------------------------------------------------------------------------------------------


class Ledger(Stats):
    """Keeps what it is told, when it may."""

    def __init__(self, config: Config | None = None, *, name: str = "", **more: Any) -> None:
        super().__init__(config, name=name, **more)
        self.may = asyncio.Event()
        self.got: list[str] = []

    async def record(self, outcome: Outcome) -> None:
        await self.may.wait()
        self.got.append(outcome.model)


def ledger(instance: Instance) -> Ledger:
    assert isinstance(instance.plugin, Ledger)
    return instance.plugin


async def test_outcomes_arrive_in_order_and_off_the_hot_path(made: Make) -> None:
    instance = await made(Ledger)
    stats = Chain([instance])
    for number in range(5):
        stats.record(Outcome(model=str(number)))
    assert ledger(instance).got == []
    ledger(instance).may.set()
    await until(lambda: len(ledger(instance).got) == 5, "all arrive")
    assert ledger(instance).got == ["0", "1", "2", "3", "4"]
    assert not stats.has_auth


async def test_every_sink_is_told(made: Make) -> None:
    one, two = await made(Ledger, "one"), await made(Ledger, "two")
    Chain([one, two]).record(OUTCOME)
    for instance in (one, two):
        ledger(instance).may.set()
    await until(lambda: ledger(one).got == ledger(two).got == ["m"], "both arrive")


async def test_what_does_not_fit_is_dropped_and_counted(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "QUEUE", 3)
    instance = await made(Ledger)
    stats = Chain([instance])
    for number in range(10):
        stats.record(Outcome(model=str(number)))
    assert instance.sink is not None
    assert instance.sink.dropped == 7
    ledger(instance).may.set()
    await until(lambda: len(ledger(instance).got) == 3, "what fitted arrives")
    stats.record(Outcome(model="later"))
    await until(lambda: ledger(instance).got == ["0", "1", "2", "later"], "there is room again")


class Cancels(Stats):
    async def record(self, outcome: Outcome) -> None:
        raise asyncio.CancelledError


class Fails(Stats):
    def record(self, outcome: Outcome) -> None:
        raise ValueError


class Hangs(Stats):
    async def record(self, outcome: Outcome) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("cls", [Fails, Hangs, Cancels])
async def test_a_sink_that_fails_never_raises_and_is_asked_again(made: Make, cls: type[Stats]) -> None:
    instance = await made(cls, deadline_s=0.02 if cls is Hangs else PATIENCE_S)
    for _ in range(3):
        Chain([instance]).record(OUTCOME)
    await until(lambda: instance.failed == 3, "all three have failed", 2)


async def test_closing_delivers_what_is_queued() -> None:
    instance = Instance("ledger", plugin(Ledger, "ledger"))
    await instance.open()
    for _ in range(100):
        Chain([instance]).record(OUTCOME)
    ledger(instance).may.set()
    await instance.close()
    assert len(ledger(instance).got) == 100
    Chain([instance]).record(OUTCOME)  # a straggler is no error


@pytest.mark.parametrize("size", [1, 100])
async def test_a_sink_that_hangs_delays_the_close_only_so_long(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "CLOSE_S", 0.05)
    monkeypatch.setattr(sink, "QUEUE", size)
    instance = Instance("ledger", plugin(Ledger, "ledger"))
    await instance.open()
    for _ in range(3):
        Chain([instance]).record(OUTCOME)
    await asyncio.wait_for(instance.close(), PATIENCE_S)
    assert ledger(instance).got == []


async def test_a_sink_that_did_not_open_takes_nothing_and_refuses_nobody(made: Make) -> None:
    class Broken(Ledger):
        async def open(self) -> None:
            raise OSError

    instance = await made(Broken)
    stats = Chain([instance])
    stats.record(OUTCOME)
    assert await stats.authenticate(REQUEST) == ANONYMOUS
