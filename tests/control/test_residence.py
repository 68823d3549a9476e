"""Stats plugins hear which servers hold memory, as long as they do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest

from plugin_sdk import LoadedServer, Outcome, Stats, inline
from sidecar.control.clock import Clock
from sidecar.control.fleet import Fleet
from sidecar.control.generations import Generations
from sidecar.control.live import LiveServer
from sidecar.control.machine import Running
from sidecar.control.residence import Residence
from sidecar.core.lifecycle import Cause
from sidecar.core.manifest import Declaration, Model, Settings, Variant
from sidecar.core.plan import Start
from tests.support import catalog, plugin


class Ear(Stats):
    """Remembers what it is told."""

    heard: list[list[LoadedServer]]

    async def open(self) -> None:
        self.heard = []

    def record(self, outcome: Outcome) -> None:
        """Nothing of interest."""

    @inline
    def loaded(self, servers: Sequence[LoadedServer]) -> None:
        self.heard.append(list(servers))


class Deaf(Stats):
    """Is not interested."""

    def record(self, outcome: Outcome) -> None:
        """Nothing of interest."""


class Broken(Ear):
    def loaded(self, servers: Sequence[LoadedServer]) -> None:
        raise RuntimeError("no more")


class Slow(Ear):
    async def loaded(self, servers: Sequence[LoadedServer]) -> None:  # type: ignore[override] # as an author may write it
        await asyncio.Event().wait()


class World:
    """A fleet, and plugins that hear of it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.fleet = Fleet(self.clock)
        self.generations = Generations()
        self.residence = Residence(self.fleet, lambda: cast(Any, self.generations.current))

    async def declare(self, chain: tuple[str, ...], **chains: tuple[str, ...]) -> None:
        """Models with chains of their own, besides `m`, which has the default."""
        variants = (Variant(name="default", command=("x",), required_devices=("cpu",), memory_mb=1),)
        own: dict[str, tuple[str, ...] | None] = {"m": None, **chains}
        models = {name: Model(mode="chat", chain=of, variants=variants) for name, of in own.items()}
        loaded = [plugin(cls, cls.__name__.lower(), deadline_s=0.05) for cls in (Ear, Deaf, Broken, Slow)]
        declaration = Declaration(models=models, settings=Settings(chain=chain))
        await self.generations.adopt(declaration, catalog(*loaded))

    def start(self, model: str = "m", *, process: bool = True) -> LiveServer:
        start = Start(model=model, variant="default", devices=("cpu",), reserved_mb={"cpu": 7})
        server = LiveServer(f"{model}-{len(self.fleet.servers)}", start, Variant(name="default"), self.clock)
        server.process = cast(Running, object()) if process else None
        self.fleet.add(server, "it fits")
        return server

    def end(self, server: LiveServer) -> None:
        self.fleet.force_stop(server, "Requested")
        self.fleet.gone(server)

    def heard(self, name: str = "ear") -> list[list[LoadedServer]]:
        current = self.generations.current
        assert current is not None
        return cast(Ear, current.instances[name].plugin).heard


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.generations.close()


async def test_what_holds_memory_is_told_again_and_again_and_once_more_when_it_is_gone(world: World) -> None:
    await world.declare(("ear",))
    server = world.start()
    await world.residence.tell()
    await world.residence.tell()
    world.end(server)
    await world.residence.tell()
    await world.residence.tell()
    first, second, third, fourth = world.heard()
    assert [one.ended for told in (first, second, third) for one in told] == [False, False, True]
    assert fourth == []
    [one] = first
    assert (one.id, one.model, one.variant, one.reserved_mb) == ("m-0", "m", "default", {"cpu": 7})
    assert one.since_s == server.created_unix <= one.until_s <= second[0].until_s <= third[0].until_s


async def test_one_that_comes_and_goes_between_two_looks_is_told(world: World) -> None:
    await world.declare(("ear",))
    world.end(world.start())
    await world.residence.tell()
    assert [[(one.id, one.ended) for one in told] for told in world.heard()] == [[("m-0", True)]]


async def test_one_that_has_no_process_yet_or_never_had_holds_nothing(world: World) -> None:
    await world.declare(("ear",))
    server = world.start(process=False)
    await world.residence.tell()
    world.end(server)
    await world.residence.tell()
    assert world.heard() == [[], []]


async def test_one_that_was_taken_over_counts_since_it_was_started(world: World) -> None:
    await world.declare(("ear",))
    server = world.start()
    server.created_unix -= 5000.0  # as it is written down
    await world.residence.tell()
    [[one]] = world.heard()
    assert one.until_s - one.since_s >= 5000.0


async def test_a_clock_that_was_put_back_gives_no_negative_time(world: World) -> None:
    await world.declare(("ear",))
    world.start().created_unix += 5000.0
    await world.residence.tell()
    [[one]] = world.heard()
    assert one.until_s == one.since_s


async def test_a_plugin_hears_of_the_models_whose_chain_it_is_in(world: World) -> None:
    await world.declare(("deaf",), mine=("ear",), other=("deaf",))
    for model in ("m", "mine", "other", "gone"):
        world.start(model)
    await world.residence.tell()
    assert [[one.model for one in told] for told in world.heard()] == [["mine"]]
    await world.declare(("ear",), mine=("ear",), other=("deaf",))
    await world.residence.tell()
    assert [one.model for one in world.heard()[-1]] == ["m", "mine", "gone"]


async def test_one_whose_model_is_taken_out_is_told_to_whom_it_was_told_before(world: World) -> None:
    await world.declare(("deaf",), mine=("ear",))
    server = world.start("mine")
    await world.residence.tell()
    await world.declare(("deaf",), other=("ear",))  # so that it goes on to be listened to
    await world.residence.tell()
    world.end(server)
    await world.residence.tell()
    assert [[one.ended for one in told] for told in world.heard()] == [[False], [False], [True]]
    assert world.residence._chains == {"mine-0": ("ear",)}
    await world.residence.tell()
    assert world.residence._chains == {}


async def test_one_that_fails_or_hangs_keeps_it_from_nobody_else(world: World) -> None:
    await world.declare(("broken", "slow", "ear"))
    world.start()
    await world.residence.tell()
    assert [len(told) for told in world.heard()] == [1]
    current = world.generations.current
    assert current is not None
    assert "no more" in current.instances["broken"].last_error
    assert (current.instances["broken"].failed, current.instances["slow"].failed) == (1, 1)


async def test_a_server_that_was_put_down_for_its_failure_is_told(world: World) -> None:
    await world.declare(("ear",))
    server = world.start()
    world.fleet.move(server, Cause.BECAME_READY)
    world.fleet.failed(server, "Exited", "it exited")
    world.end(server)
    await world.residence.tell()
    assert [[one.ended for one in told] for told in world.heard()] == [[True]]
