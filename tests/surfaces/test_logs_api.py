"""Servers' logs over HTTP: what is asked, and what those hear who follow."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from plugin_sdk import Secret
from sidecar.control.clock import Clock
from sidecar.control.events import Events
from sidecar.control.fleet import Fleet, Memories
from sidecar.control.measurements import Measurements
from sidecar.control.serverlogs import FOLLOWERS, ServerLogs, TooManyFollowersError
from sidecar.core.manifest import Declaration, Model, Variant
from sidecar.mechanism import logreader
from sidecar.mechanism.lock import StateDir
from sidecar.mechanism.logreader import LINES_MOST, Place
from sidecar.mechanism.machine import LocalMachine
from sidecar.mechanism.redaction import Redactor
from sidecar.mechanism.serverlog import ServerLog
from sidecar.surfaces import logs_api
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.logs_api import follow, log_of, moment, question, stream


class World:
    """A server that writes, and somebody who may follow."""

    def __init__(self, folder: Path) -> None:
        self.events = Events(Clock())
        memories = Memories(events=self.events, measurements=Measurements(None), random=lambda: 0.5)
        self.fleet = Fleet(Clock(), memories)
        self.declared = Declaration()
        self.state = StateDir(folder)
        self.logs = self.kept_in(folder)
        self.log = ServerLog(folder / "logs", "m")
        self.err: BinaryIO | None = None

    def kept_in(self, state: Path | None) -> ServerLogs:
        hide = Redactor({"HF_TOKEN": "hf_of_the_sidecar"})
        return ServerLogs(self.fleet, lambda: self.declared, LocalMachine(self.state), state, hide)

    def starts(self) -> None:
        """The server, anew."""
        self.stops()
        out, self.err = self.log.open()
        out.close()

    def says(self, text: str) -> None:
        assert self.err is not None
        self.err.write(text.encode())

    def stops(self) -> None:
        if self.err is not None:
            self.err.close()

    def follow(self, **asked: str) -> AsyncIterator[Any]:
        """What somebody hears."""
        return follow(self.logs, self.log, question({**asked, "follow": "true"}, None), self.events, 0.05)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(logs_api, "POLL_S", 0.01)
    world = World(tmp_path)
    yield world
    world.stops()
    world.state.close()


def declaring(*names: str) -> Declaration:
    variants = (Variant(name="one", command=("serve",)),)
    return Declaration(models={name: Model(variants=variants, mode="chat") for name in names})


async def hear(messages: AsyncIterator[Any], count: int) -> list[str]:
    """The next lines, or names of events; signs of life are passed over."""
    heard: list[str] = []
    async with asyncio.timeout(10):
        while len(heard) < count:
            message = await anext(messages)
            if message.event:
                heard.append(message.event)
            elif message.data:
                heard.append(json.loads(message.data)["text"])
    return heard


def test_a_question_is_read_as_it_stands_in_the_address() -> None:
    asked = question({"tail": "5", "since": "10m", "grep": "a+", "stream": "err", "follow": "true"}, None, now=1000.0)
    assert (asked.wanted.tail, asked.wanted.since, asked.wanted.pattern, asked.wanted.stream) == (5, 400.0, "a+", "err")
    assert asked.follow
    assert question({}, None).wanted.tail == 200
    assert question({"since": "1h"}, None).wanted.tail == LINES_MOST


def test_who_comes_back_goes_on_where_the_connection_was_lost() -> None:
    assert question({"after": "1.2.3", "follow": "true"}, "1.5.6").after == Place(1, (5, 6))
    assert question({"after": "1.2.3"}, "").after == Place(1, (2, 3))


@pytest.mark.parametrize(
    ("text", "unix"),
    [
        ("10m", 9_400.0),
        ("1h30m", 4_600.0),
        ("1234.5", 1234.5),
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-01T02:00:10+02:00", 10.0),
        ("1970-01-01T02:00:10 02:00", 10.0),
        ("1970-01-01T00:00:10", 10.0),
        ("1970-01-02", 86_400.0),
    ],
)
def test_a_moment_is_told_in_many_ways(text: str, unix: float) -> None:
    assert moment(text, 10_000.0) == unix


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"tail": "-1"}, "Expected `int` >= 0 - at `$.tail`"),
        ({"tail": "99999"}, "Expected `int` <= 10000 - at `$.tail`"),
        ({"since": "yesterday"}, "since: expected 10m, or 2026-01-31T12:00:00Z, or unix seconds, got 'yesterday'"),
        ({"since": "nan"}, "since: expected"),
        ({"since": "9" * 500}, "since: expected"),
        ({"grep": "("}, "grep: missing ): (; patterns are RE2's"),
        ({"stream": "log"}, "Invalid enum value 'log' - at `$.stream`"),
        ({"after": "here"}, "'here' is no place in a log"),
        ({"previous": "true", "follow": "true"}, "nothing comes after the run before"),
        ({"tial": "1"}, "Object contains unknown field `tial`"),
    ],
)
def test_a_faulty_question_is_told(parameters: dict[str, str], why: str) -> None:
    with pytest.raises(ApiError) as caught:
        question(parameters, None)
    assert caught.value.status == 400
    assert caught.value.message.startswith(f"the lines asked for: {why}")


async def test_who_follows_hears_what_there_is_and_then_what_comes_over_restarts(world: World) -> None:
    world.starts()
    world.says("one\ntwo\n")
    messages = world.follow(tail="1")
    assert await hear(messages, 1) == ["two"]
    world.says("three\nfo")
    assert await hear(messages, 1) == ["three"]
    world.says("ur\n")
    world.starts()
    world.says("anew\n")
    assert await hear(messages, 2) == ["four", "anew"]


async def test_who_follows_a_model_that_never_ran_waits_for_it(world: World) -> None:
    messages = world.follow(grep="error")
    alive = await anext(messages)
    assert (alive.data, alive.id) == (None, "0.0.0")
    world.starts()
    world.says("fine\nan error\nfine\n")
    assert await hear(messages, 1) == ["an error"]


async def test_who_lost_the_connection_goes_on_behind_the_last_line(world: World) -> None:
    world.starts()
    world.says("one\n")
    messages = world.follow()
    await hear(messages, 1)
    world.says("two\nthree\n")
    message = await anext(messages)
    while not message.data:
        message = await anext(messages)
    assert await hear(world.follow(after=message.id), 1) == ["three"]


async def test_followers_are_let_go_when_the_sidecar_ends_whatever_the_server_does(world: World) -> None:
    world.starts()
    messages = world.follow()

    async def listen() -> int:
        count = 0
        async for message in messages:
            if message.data:
                count += 1
                world.says("and another\n")
        return count

    world.says("one\n")
    listening = asyncio.create_task(listen())
    await asyncio.sleep(0.1)
    world.events.end_followers()
    assert await asyncio.wait_for(listening, 5) > 1
    assert world.logs.followers == 0


async def test_a_log_that_cannot_be_read_is_told_and_tried_again(world: World) -> None:
    world.starts()
    world.says("one\n")
    times = world.log.now.times.path
    content = times.read_bytes()
    times.unlink()
    times.mkdir()
    messages = world.follow()
    assert await hear(messages, 1) == ["error"]
    times.rmdir()
    times.write_bytes(content)
    while (heard := await hear(messages, 1)) == ["error"]:
        pass
    assert heard == ["one"]


async def test_a_search_that_takes_long_goes_on_though_nothing_is_written_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.starts()
    world.says("nothing\n" * 50 + "an error\n")
    monkeypatch.setattr(logreader, "SEARCH_S", 0.0)
    assert await hear(world.follow(grep="error"), 1) == ["an error"]


async def test_who_follows_a_model_that_gets_another_name_goes_on(world: World) -> None:
    world.starts()
    world.says("one\n")
    messages = world.follow()
    assert await hear(messages, 1) == ["one"]
    world.declared = declaring("new")
    world.says("two\n")
    await world.logs.rename({"m": "new"})
    assert await hear(messages, 1) == ["two"]
    world.log = ServerLog(world.log.out.parent, "new")
    world.starts()
    world.says("three\n")
    assert await hear(messages, 1) == ["three"]
    [old] = [log for log in [world.logs.of("m")] if log is not None]
    assert old.err == world.log.err  # by the name that it had as well, until another model has that
    world.declared = declaring("new", "m")
    assert [log.name for log in [world.logs.of("m")] if log is not None] == ["m"]


async def test_those_who_follow_share_what_is_known_of_a_log(world: World) -> None:
    first, second = world.logs.of("m"), world.logs.of("m")
    assert first is second
    variant = Variant(name="one", command=("serve",), env={"HF_TOKEN": "hf_of_the_server"})
    world.declared = Declaration(models={"m": Model(variants=(variant,), mode="chat")})
    assert world.logs.of("m") is not first  # or it would be shown


async def test_logs_of_models_that_are_long_gone_are_deleted(world: World) -> None:
    world.starts()
    for path in world.log.now.all():
        if path.exists():
            os.utime(path, (1000, 1000))
    world.declared = declaring("m")
    await world.logs.forget()
    assert world.log.now.exist()
    world.declared = declaring("other")
    await world.logs.forget()
    assert not world.log.now.exist()
    await world.kept_in(None).forget()


async def test_names_may_go_round(world: World) -> None:
    for old, new in (("a", "b"), ("b", "c"), ("c", "a")):
        await world.logs.rename({old: new})
    assert [log.name for log in map(world.logs.of, "abc") if log is not None] == ["a", "a", "a"]


async def test_keys_that_only_the_manifest_gives_to_a_server_are_not_shown_either(world: World) -> None:
    world.starts()
    world.says("hf_of_the_sidecar hf_of_the_server sk-of-the-upstream\n")
    variant = Variant(
        name="one", command=("x",), env={"HF_TOKEN": "hf_of_the_server"}, api_key=Secret("sk-of-the-upstream")
    )
    world.declared = Declaration(models={"m": Model(variants=(variant,), mode="chat")})
    log = world.logs.of("m")
    assert log is not None
    [line] = (await world.logs.read(log, question({}, None).wanted)).lines
    assert line.text == "[redacted] [redacted] [redacted]"


async def test_only_so_many_may_follow(world: World) -> None:
    world.logs.followers = FOLLOWERS
    with pytest.raises(ApiError, match="64 follow") as caught:
        stream(world.logs, world.log, question({"follow": "true"}, None), world.events)
    assert caught.value.status == 429
    with pytest.raises(TooManyFollowersError):
        await anext(world.follow())


async def test_a_model_that_is_no_longer_declared_has_its_log_still(world: World) -> None:
    def known(requested: str) -> str:
        if requested == "new":
            return "new"
        raise ApiError(404, "model_not_found", f"no {requested}")

    world.starts()
    asked = question({}, None)
    assert (await log_of(world.logs, "m", known, asked)).err == world.log.err
    with pytest.raises(ApiError, match="no never"):
        await log_of(world.logs, "never", known, asked)
    with pytest.raises(ApiError, match="no run of a server of new"):
        await log_of(world.logs, "new", known, asked)
    assert await log_of(world.logs, "new", known, question({"follow": "true"}, None))
    with pytest.raises(ApiError, match="keeps no state"):
        await log_of(world.kept_in(None), "new", known, asked)
