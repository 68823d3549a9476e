"""Plugin generations: built aside, put in force whole, and let go when their last request is done."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plugin_sdk import (
    Auth,
    Config,
    DeviceStatus,
    Endpoint,
    Exchange,
    Filter,
    Interface,
    Principal,
    Reject,
    Reply,
    Request,
    Response,
    inline,
)
from plugin_sdk import Device as DevicePlugin
from sidecar.control import building, openings
from sidecar.control import generations as module
from sidecar.control.generations import Generation, Generations
from sidecar.control.revisions import in_force, take_over
from sidecar.core.manifest import Declaration, Model, PluginDeclaration, Settings
from sidecar.mechanism.loader import Loaded as Manifests
from sidecar.mechanism.loader import load
from sidecar.mechanism.plugins import Loaded
from sidecar.mechanism.source import read
from sidecar.mechanism.sources import Library
from sidecar.mechanism.watchdog import BLOCKED_S
from tests.support import PATIENCE_S, catalog, model, plugin, until, write

REQUEST = Request(method="POST", path="/v1/chat/completions")


class DoorConfig(Config):
    who: str = "x"
    broken: bool = False


class Door(Auth[DoorConfig]):
    """Admits everybody as its setting says, and tells when it is opened and closed."""

    told: list[str] = []  # noqa: RUF012 - cleared for each test

    async def open(self) -> None:
        self.told.append(f"open {self.config.who}")
        if self.config.broken:
            raise OSError("no database")

    async def close(self) -> None:
        self.told.append(f"close {self.config.who}")

    @inline
    def authenticate(self, request: Request) -> Principal:
        return Principal(self.config.who)


class OtherDoor(Door):
    """The same by another class."""


class Gate(Filter[DoorConfig]):
    """Lets everybody pass."""

    @inline
    def on_request(self, exchange: Exchange) -> None:
        """Nothing to change."""


class Speech(Interface):
    """A mode that is ready when it is asked."""

    provides = "speech"
    endpoints = (Endpoint("/v1/audio/speech", "speech"),)

    async def ready(self, upstream: Any) -> bool:
        return True


class Deaf(Speech):
    """A mode that does not open."""

    async def open(self) -> None:
        raise OSError("no ears")


class Npu(DevicePlugin):
    """One device."""

    provides = "npu"

    def probe(self) -> DeviceStatus:
        return DeviceStatus(total_mb=1, free_mb=1)


class Nowhere:
    """A server that is never asked."""

    async def get(self, path: str) -> Reply:
        raise AssertionError

    async def post(self, path: str, body: bytes) -> Reply:
        raise AssertionError


def declared(*chain: str, plugins: tuple[str, ...] = ("door",), **models: Model) -> Declaration:
    return Declaration(
        settings=Settings(chain=chain),
        plugins={name: PluginDeclaration(import_path="x:X") for name in plugins},
        models=models,
    )


def door(who: str = "x", **more: Any) -> Loaded:
    return plugin(Door, "door", who=who, **more)


async def caller(generation: Generation) -> str:
    return (await generation.default_chain.authenticate(REQUEST)).id


@pytest.fixture
async def generations() -> AsyncIterator[Generations]:
    Door.told.clear()
    made = Generations()
    yield made
    await made.close()


async def settled() -> None:
    """Until retiring tasks that can end have ended."""
    for _ in range(20):
        await asyncio.sleep(0)


# --- one generation -----------------------------------------------------------------------------------------------


async def test_models_are_found_by_name_and_alias(generations: Generations) -> None:
    qwen = Model(variants=(), mode="chat", aliases=("q", "gpt"))
    generation = await generations.adopt(declared(qwen=qwen, llama=Model(variants=(), mode="base")), catalog())
    assert generation.find("gpt") == ("qwen", qwen)
    assert generation.find("qwen") == ("qwen", qwen)
    assert generation.find("Qwen") is None
    assert generation.names() == ["gpt", "llama", "q", "qwen"]


async def test_a_model_has_its_own_chain_or_the_default_one(generations: Generations) -> None:
    plain = Model(variants=(), mode="chat")
    unguarded, lost = msgspec.structs.replace(plain, chain=()), msgspec.structs.replace(plain, chain=("nowhere",))
    declaration = declared("door", closed=plain, open=unguarded, lost=lost)
    generation = await generations.adopt(declaration, catalog(door()))
    assert not generation.chain("open").has_auth
    assert (await generation.chain("closed").authenticate(REQUEST)).id == "x"
    with pytest.raises(Reject, match='"nowhere" is not available'):
        await generation.chain("lost").authenticate(REQUEST)


async def test_the_mode_of_a_model_tells_when_it_is_ready(generations: Generations) -> None:
    generation = await generations.adopt(declared(), catalog(plugin(Speech, "tts")))
    health = generation.health(Model(variants=(), mode="speech"))
    assert await health.ready(Nowhere())
    assert await health.alive(Nowhere())
    assert list(generation.interfaces) == ["speech"]


@pytest.mark.parametrize(("mode", "why"), [("speech", "open failed: OSError: no ears"), ("chat", "no such mode")])
async def test_a_mode_that_is_not_available_makes_nothing_ready(generations: Generations, mode: str, why: str) -> None:
    generation = await generations.adopt(declared(), catalog(plugin(Deaf, "tts")))
    assert not generation.interfaces
    health = generation.health(Model(variants=(), mode=mode))
    for ask in (health.ready, health.alive):
        with pytest.raises(OSError, match=f"mode {mode} is not available: {why}"):
            await ask(Nowhere())


# --- reload -------------------------------------------------------------------------------------------------------


async def test_a_plugin_that_did_not_change_is_carried_over_open(generations: Generations) -> None:
    first = await generations.adopt(declared("door"), catalog(door()))
    second = await generations.adopt(declared("door", m=Model(variants=(), mode="chat")), catalog(door()))
    await settled()
    assert generations.current is second
    assert (first.number, second.number) == (1, 2)
    assert second.instances["door"] is first.instances["door"]
    assert Door.told == ["open x"]


@pytest.mark.parametrize("change", ["config", "class", "deadline"])
async def test_a_plugin_that_changed_is_built_anew_and_the_old_one_closed(
    generations: Generations, change: str
) -> None:
    await generations.adopt(declared("door"), catalog(door()))
    new = {
        "config": door("y"),
        "class": plugin(OtherDoor, "door", who="y"),
        "deadline": door("x", deadline_s=1.0),
    }[change]
    second = await generations.adopt(declared("door"), catalog(new))
    await until(lambda: len(Door.told) == 3, "the old one is closed")
    assert Door.told == ["open x", f"open {'x' if change == 'deadline' else 'y'}", "close x"]
    assert await caller(second) in ("x", "y")


async def test_the_new_one_opens_before_the_old_one_closes_and_meanwhile_the_old_one_serves(
    generations: Generations,
) -> None:
    first = await generations.adopt(declared("door"), catalog(door("old")))
    adopting = asyncio.create_task(generations.adopt(declared("door"), catalog(door("new"))))
    assert generations.current is first
    assert await caller(first) == "old"
    second = await adopting
    assert await caller(second) == "new"


async def test_a_new_one_that_does_not_open_leaves_the_old_one_in_force(generations: Generations) -> None:
    await generations.adopt(declared("door"), catalog(door("old")))
    second = await generations.adopt(declared("door"), catalog(door("new", broken=True)))
    await settled()
    assert await caller(second) == "old"
    assert Door.told == ["open old", "open new", "close new"]
    third = await generations.adopt(declared("door"), catalog(door("newer")))
    assert await caller(third) == "newer"
    await until(lambda: Door.told[-1] == "close old", "the old one is closed at last")


async def test_a_new_one_that_cannot_be_loaded_leaves_the_old_one_in_force(generations: Generations) -> None:
    await generations.adopt(declared("door"), catalog(door("old")))
    second = await generations.adopt(declared("door"), catalog(faults={"door": "no such module"}))
    await settled()
    assert await caller(second) == "old"
    assert Door.told == ["open old"]


@pytest.mark.parametrize("broken", [False, True])
async def test_a_plugin_that_has_become_another_kind_leaves_the_old_one_in_force(
    generations: Generations, broken: bool
) -> None:
    await generations.adopt(declared("door"), catalog(door("old", broken=broken)))
    for found in (catalog(plugin(Gate, "door")), catalog(faults={"door": "no such module"}), catalog()):
        generation = await generations.adopt(declared("door"), found)
        assert generation.default_chain.has_auth
    third = await generations.adopt(declared("door"), catalog(plugin(Gate, "door")))
    assert third.behind == {"door": "it is a filter plugin now, and was an auth plugin: give it a name of its own"}
    assert third.default_chain.has_auth
    fourth = await generations.adopt(declared("gate"), catalog(plugin(Gate, "gate")))  # a person has said so
    assert not fourth.default_chain.has_auth


async def test_one_that_never_opened_is_tried_again_with_every_revision(generations: Generations) -> None:
    first = await generations.adopt(declared("door"), catalog(door("x", broken=True)))
    with pytest.raises(Reject):
        await caller(first)
    second = await generations.adopt(declared("door"), catalog(door("x")))
    assert await caller(second) == "x"


async def test_one_that_never_loaded_refuses_with_its_name(generations: Generations) -> None:
    first = await generations.adopt(declared("door"), catalog(faults={"door": "no such module"}))
    assert first.instances["door"].problem == "no such module"
    with pytest.raises(Reject, match='the auth plugin "door" is not available'):
        await caller(first)


async def test_a_plugin_that_is_declared_no_more_is_closed(generations: Generations) -> None:
    await generations.adopt(declared("door"), catalog(door()))
    await generations.adopt(declared(plugins=()), catalog())
    await until(lambda: Door.told == ["open x", "close x"], "it is closed")


async def test_a_broken_manifest_of_the_keys_locks_nobody_out_and_lets_nobody_in(
    generations: Generations, tmp_path: Path
) -> None:
    keys = '[plugins.door]\nimport = "tests.control.test_generations:Door"\nconfig = { who = "team" }\n'
    before = None
    for text in (keys, "[plugins.door", keys + "deadlin = 1\n", keys.replace("Door", "Dor"), keys):
        write(tmp_path, {"s.toml": '[sidecar]\nchain = ["door"]\n', "keys.toml": text, "m.toml": model("m")})
        loaded = load(read(tmp_path), {}, before)
        before, _ = take_over(before, loaded)
        generation = await generations.adopt(before, loaded.catalog)
        assert await caller(generation) == "team"
    assert Door.told == ["open team"]


async def test_one_that_stays_as_it_was_is_told_with_the_reason(generations: Generations) -> None:
    await generations.adopt(declared("door"), catalog(door("old")))
    second = await generations.adopt(declared("door"), catalog(door("new", broken=True)))
    assert second.behind == {"door": "open failed: OSError: no database"}
    third = await generations.adopt(declared("door"), catalog(faults={"door": "no such module"}))
    assert third.behind == {"door": "no such module"}
    fourth = await generations.adopt(declared("door"), catalog(door("old")))
    assert fourth.behind == {}


async def test_of_what_is_found_only_what_a_chain_names_is_opened(generations: Generations) -> None:
    found = catalog(door(), plugin(Door, "back", who="y"), plugin(Speech, "speech"))
    generation = await generations.adopt(declared("back", plugins=()), found)
    assert generation.instances.keys() == {"back", "speech"}
    assert Door.told == ["open y"]


async def test_a_generation_that_is_given_up_while_it_opens_closes_what_it_opened(generations: Generations) -> None:
    class Slow(Door):
        async def open(self) -> None:
            await super().open()
            await asyncio.Event().wait()

    await generations.adopt(declared("door"), catalog(door("old")))
    both = catalog(door("new"), plugin(Slow, "slow", who="slow"))
    adopting = asyncio.create_task(generations.adopt(declared("door", plugins=("door", "slow")), both))
    await until(lambda: "open slow" in Door.told and "open new" in Door.told, "both open")
    adopting.cancel()
    await asyncio.gather(adopting, return_exceptions=True)
    assert sorted(Door.told) == ["close new", "close slow", "open new", "open old", "open slow"]
    assert generations.current is not None
    assert await caller(generations.current) == "old"


async def test_plugins_are_opened_side_by_side(generations: Generations) -> None:
    meeting = asyncio.Barrier(2)

    class Meeting(Door):
        async def open(self) -> None:
            await meeting.wait()

    await asyncio.wait_for(
        generations.adopt(declared(plugins=("a", "b")), catalog(plugin(Meeting, "a"), plugin(Meeting, "b"))), PATIENCE_S
    )


async def test_all_that_runs_is_marked_for_the_watchdog_in_new_and_old_generations_alike(
    generations: Generations,
) -> None:
    def look(what: str) -> None:
        Door.told.append(f"{what} {[marker.name for marker in generations.markers() if marker.entered]}")

    class Watched(Door):
        async def open(self) -> None:
            look("open")
            await self.keep(self.config.who, self.make, self.end)

        async def make(self) -> None:
            look("make")

        async def end(self, _: None) -> None:
            look("end")

        async def close(self) -> None:
            look("close")

        @inline
        def authenticate(self, request: Request) -> Principal:
            look("call")
            return Principal("x")

    first = await generations.adopt(declared("door"), catalog(plugin(Watched, "door", who="old")))
    first.enter()
    await generations.adopt(declared("door"), catalog(plugin(Watched, "door", who="new")))
    await caller(first)
    first.leave()
    await until(lambda: len(Door.told) == 7, "the old one is closed")
    assert Door.told == [f"{what} ['door']" for what in ("open", "make", "open", "make", "call", "close", "end")]
    assert generations.markers()[0].place == __file__
    await generations.adopt(declared(plugins=()), catalog())
    await until(lambda: generations.markers() == [], "nothing is left to be watched")


# --- opening ------------------------------------------------------------------------------------------------------


class Late(Door):
    """Opens when it may, or fails when it must."""

    may: asyncio.Event
    broken: bool

    async def open(self) -> None:
        await super().open()
        await self.may.wait()
        if Late.broken:
            raise OSError("no database yet")


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> type[Late]:
    """Late, and nobody has patience with it."""
    monkeypatch.setattr(building, "PATIENCE_S", 0.05)
    monkeypatch.setattr(openings, "RETRY_S", 0.02)
    Late.may, Late.broken = asyncio.Event(), False
    return Late


async def test_a_plugin_that_is_slow_to_open_refuses_until_it_is_open_and_holds_up_nobody(
    generations: Generations, late: type[Late], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = catalog(plugin(late, "door", who="late"), plugin(Door, "front", who="front"))
    declaration = declared("door", plugins=("door", "front"), m=Model(variants=(), mode="chat", chain=("front",)))
    first = await generations.adopt(declaration, both)
    assert (await first.chain("m").authenticate(REQUEST)).id == "front"
    assert first.instances["door"].problem == "it is still opening"
    with pytest.raises(Reject, match='"door" is not available'):
        await caller(first)
    monkeypatch.setattr(building, "PATIENCE_S", 3 * PATIENCE_S)  # whoever opens already is not waited for any more
    again = await asyncio.wait_for(generations.adopt(declaration, both), PATIENCE_S)
    assert not await generations.take_opened()
    late.may.set()
    await generations.opened.wait()
    assert await generations.take_opened()
    assert generations.current is not None
    assert await caller(generations.current) == "late"
    assert generations.current.instances["front"] is again.instances["front"] is first.instances["front"]
    assert Door.told == ["open late", "open front"]
    assert not await generations.take_opened()


async def test_the_one_before_serves_while_the_new_one_is_slow_to_open(
    generations: Generations, late: type[Late]
) -> None:
    await generations.adopt(declared("door"), catalog(door("old")))
    second = await generations.adopt(declared("door"), catalog(plugin(late, "door", who="new")))
    assert await caller(second) == "old"
    assert second.behind == {"door": "it is still opening"}
    late.may.set()
    await generations.opened.wait()
    await generations.take_opened()
    await until(lambda: Door.told == ["open old", "open new", "close old"], "the old one is closed")
    assert generations.current is not None
    assert generations.current.behind == {}


async def test_one_that_cannot_be_opened_is_tried_again_until_it_can(
    generations: Generations, late: type[Late]
) -> None:
    late.may.set()
    late.broken = True
    first = await generations.adopt(declared("door"), catalog(plugin(late, "door", who="x")))
    assert first.instances["door"].problem == "open failed: OSError: no database yet"
    await until(lambda: Door.told.count("close x") == 3, "it is tried again and again")
    late.broken = False
    await generations.opened.wait()
    await generations.take_opened()
    assert generations.current is not None
    assert await caller(generations.current) == "x"


async def test_one_that_opens_while_its_file_breaks_comes_in_all_the_same(
    generations: Generations, late: type[Late]
) -> None:
    await generations.adopt(declared("door"), catalog(plugin(late, "door", who="x")))
    for found in (catalog(faults={"door": "broken"}), catalog(plugin(Gate, "door"))):
        await generations.adopt(declared("door"), found)
    late.may.set()
    await generations.opened.wait()
    await generations.take_opened()
    assert generations.current is not None
    assert await caller(generations.current) == "x"
    assert "give it a name of its own" in generations.current.behind["door"]


async def test_one_that_is_given_up_while_it_opens_is_closed(generations: Generations, late: type[Late]) -> None:
    await generations.adopt(declared("door"), catalog(plugin(late, "door", who="x")))
    await generations.adopt(declared("door"), catalog(door("y")))
    await until(lambda: "close x" in Door.told, "it is closed")
    assert generations.markers()[0].name == "door"
    assert len(generations.markers()) == 1


async def test_one_that_blocks_the_loop_while_it_opens_is_not_tried_again(
    generations: Generations, late: type[Late], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openings, "STUCK_S", 0.0)

    class Blocks(late):  # type: ignore[misc, valid-type] # the class that the fixture has prepared
        async def open(self) -> None:
            await super().open()
            time.sleep(2 * BLOCKED_S)  # noqa: ASYNC251 - that is what is tested
            raise OSError

    late.may.set()
    await generations.adopt(declared("door"), catalog(plugin(Blocks, "door", who="x")))
    await asyncio.sleep(3 * openings.RETRY_S)
    assert Door.told == ["open x", "close x"]
    await generations.adopt(declared("door"), catalog(plugin(Blocks, "door", who="x")))  # but with a new revision
    assert Door.told == ["open x", "close x"] * 2


# --- services -----------------------------------------------------------------------------------------------------


class Pooled(Door):
    """Keeps a pool over reloads."""

    async def open(self) -> None:
        async def make() -> str:
            self.told.append("make")
            return f"pool of {self.config.who}"

        async def close(pool: str) -> None:
            self.told.append(f"close the {pool}")

        self.pool = await self.keep("pool", make, close)
        if self.config.broken:
            raise OSError("after all")

    async def close(self) -> None:
        """Nothing else is its own."""


async def test_what_a_plugin_keeps_survives_a_reload_and_ends_with_its_last_generation(
    generations: Generations,
) -> None:
    for who in ("x", "y", "z"):
        generation = await generations.adopt(declared("door"), catalog(plugin(Pooled, "door", who=who)))
        held = generation.instances["door"].plugin
        assert isinstance(held, Pooled)
        assert held.pool == "pool of x"
    await generations.adopt(declared("door"), catalog(plugin(Pooled, "door", who="bad", broken=True)))
    assert Door.told == ["make"]
    await generations.adopt(declared(plugins=()), catalog())
    await until(lambda: Door.told == ["make", "close the pool of x"], "it is closed with the last plugin")


async def test_what_a_plugin_keeps_is_closed_if_it_does_not_open(generations: Generations) -> None:
    generation = await generations.adopt(declared("door"), catalog(plugin(Pooled, "door", who="x", broken=True)))
    assert generation.instances["door"].problem
    await generations.adopt(declared(plugins=()), catalog())
    await until(lambda: Door.told == ["make", "close the pool of x"], "it is closed all the same")


# --- leases -------------------------------------------------------------------------------------------------------


async def test_a_generation_is_let_go_when_its_last_request_is_done(generations: Generations) -> None:
    first = await generations.adopt(declared("door"), catalog(door("old")))
    first.enter()
    first.enter()
    await generations.adopt(declared("door"), catalog(door("new")))
    await settled()
    assert await caller(first) == "old"
    first.leave()
    await settled()
    assert "close old" not in Door.told
    first.leave()
    await until(lambda: Door.told[-1] == "close old", "the old one is closed")


async def test_a_plugin_shared_by_generations_is_closed_after_the_last_of_them(generations: Generations) -> None:
    first = await generations.adopt(declared("door"), catalog(door()))
    first.enter()
    second = await generations.adopt(declared("door", m=Model(variants=(), mode="chat")), catalog(door()))
    second.enter()
    await generations.adopt(declared(plugins=()), catalog())
    second.leave()
    await settled()
    assert Door.told == ["open x"]
    first.leave()
    await until(lambda: Door.told == ["open x", "close x"], "it is closed")


async def test_a_request_that_never_ends_keeps_an_old_generation_only_so_long(
    generations: Generations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.02)
    first = await generations.adopt(declared("door"), catalog(door("old")))
    first.enter()
    await generations.adopt(declared("door"), catalog(door("new")))
    await until(lambda: "close old" in Door.told, "the old one is closed all the same")


async def test_reloads_leave_nothing_behind(generations: Generations) -> None:
    for number in range(50):
        await generations.adopt(declared("door"), catalog(door(str(number))))
    await until(lambda: len(Door.told) == 99, "all but the last are closed")
    assert sorted(Door.told) == sorted([f"open {n}" for n in range(50)] + [f"close {n}" for n in range(49)])
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("retire")]


LEAKY = """
import asyncio, logging, threading
from plugin_sdk import Auth, Config, Principal

log = logging.getLogger(__name__)

class Settings(Config):
    number: int = {number}

class Door(Auth[Settings]):
    async def open(self):
        self.file = open(__file__)
        self.pool = await self.keep("pool", self.make, self.end)

    async def make(self):
        return open(__file__)

    async def end(self, pool):
        pool.close()

    def authenticate(self, request):
        return Principal(str(self.config.number))

    async def close(self):
        self.file.close()
"""


HALVES = """
from plugin_sdk import Auth, Filter, Principal, Response, inline

VERSION = {version}

class Gate(Auth):
    @inline
    def authenticate(self, request):
        return Principal(VERSION)

class Tag(Filter):
    async def open(self):
        {opening}

    @inline
    def on_{hook}(self, exchange):
        return Response(body=VERSION.encode())
"""


async def test_the_plugins_of_a_file_change_together_or_not_at_all(generations: Generations, tmp_path: Path) -> None:
    library = Library()

    async def reload(version: str, opening: str = "...", hook: str = "request", config: str = "") -> tuple[str, str]:
        code = HALVES.format(version=repr(version), opening=opening, hook=hook)
        write(tmp_path, {"plugins/both.py": code, "s.toml": '[sidecar]\nchain = ["gate", "label"]\n'})
        write(tmp_path, {"label.toml": f'[plugins.label]\nimport = "both:Tag"\n{config}\n'})
        loaded = load(read(tmp_path), {}, before[-1].declaration if before else None, library)
        declaration, _ = take_over(before[-1].declaration if before else None, loaded)
        before.append(in_force(before[-1] if before else None, loaded, declaration))
        generation = await generations.adopt(declaration, before[-1].catalog)
        passage = generation.default_chain.passage("chat", 1000)
        assert passage is not None
        answer = await passage.request(REQUEST)
        assert isinstance(answer, Response)
        return await caller(generation), answer.body.decode()

    before: list[Manifests] = []
    assert await reload("one") == ("one", "one")
    for fault in ({"opening": "raise OSError('no')"}, {"hook": "reqest"}, {"config": "on_err = 1"}):
        assert await reload("two", **fault) == ("one", "one")
        assert generations.current is not None
        assert generations.current.behind["gate"] == "it stays with label, which is of the same file"
    assert await reload("three") == ("three", "three")


async def test_two_hundred_reloads_of_a_file_leave_nothing_behind(generations: Generations, tmp_path: Path) -> None:
    library = Library()

    async def reload(number: int) -> None:
        write(tmp_path, {"plugins/doors.py": LEAKY.replace("{number}", str(number)), "s.toml": "[sidecar]\n"})
        write(tmp_path, {"s.toml": '[sidecar]\nchain = ["door"]\n'})
        loaded = load(read(tmp_path), {}, library=library)
        assert loaded.problems == ()
        assert await caller(await generations.adopt(loaded.declaration, loaded.catalog)) == str(number)
        await until(
            lambda: not [task for task in asyncio.all_tasks() if "retire" in task.get_name()], "the old one goes"
        )

    def census() -> dict[str, int]:
        gc.collect()
        return {
            "modules": sum("@" in name for name in sys.modules),
            "loggers": sum("@" in name for name in logging.root.manager.loggerDict),
            "threads": threading.active_count(),
            "files": len(list(Path("/proc/self/fd").iterdir())),
            "tasks": len(asyncio.all_tasks()),
            "kept": len(generations.host.kept()),
        }

    for number in range(3):
        await reload(number)
    before = census()  # what is on its way out still counts, so that there may be less in the end
    for number in range(3, 203):
        await reload(number)
    await until(lambda: all(count <= before[what] for what, count in census().items()), "no more than before is left")
    classes = [one for one in gc.get_objects() if isinstance(one, type) and str(one.__module__).startswith("doors@")]
    assert len(classes) <= 2 * 130  # typing remembers the latest 128 of `Auth[Settings]`, whatever becomes of them


async def test_closing_closes_every_plugin_once_also_those_of_old_generations() -> None:
    Door.told.clear()
    generations = Generations()
    first = await generations.adopt(declared("door"), catalog(door("old")))
    first.enter()
    await generations.adopt(declared("door"), catalog(door("new")))
    await asyncio.wait_for(generations.close(), PATIENCE_S)
    assert sorted(Door.told) == ["close new", "close old", "open new", "open old"]


async def test_closing_before_the_first_generation_is_nothing() -> None:
    await Generations().close()


# --- probers ------------------------------------------------------------------------------------------------------


async def test_a_device_plugin_has_one_prober_for_as_long_as_it_does_not_change(generations: Generations) -> None:
    assert generations.probers() == {}
    await generations.adopt(declared(), catalog(plugin(Npu, "npu"), door()))
    first = generations.probers()
    assert list(first) == ["npu"]
    await generations.adopt(declared(), catalog(plugin(Npu, "npu"), door()))
    assert generations.probers() == first
    await generations.adopt(declared(), catalog(plugin(Npu, "npu", deadline_s=1.0)))
    assert generations.probers()["npu"] is not first["npu"]
    await generations.adopt(declared(), catalog())
    assert generations.probers() == {}


async def test_a_device_plugin_that_does_not_open_has_no_prober(generations: Generations) -> None:
    class Dead(Npu):
        async def open(self) -> None:
            raise OSError

    await generations.adopt(declared(), catalog(plugin(Dead, "npu")))
    assert generations.probers() == {}
