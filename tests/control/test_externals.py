"""Servers that somebody else runs are asked how they are, and none is waited for at the others' cost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from plugin_sdk import Upstream
from sidecar.control import externals
from sidecar.control.clock import Clock
from sidecar.control.externals import ExternalWatch
from sidecar.control.fleet import Fleet
from sidecar.core.manifest import Model, Variant
from sidecar.mechanism.upstream import Client

Answer = bool | Exception | asyncio.Event


class Said:
    """What a server of a mode says, one answer after another (Health). An event: it hangs until that is set."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def ready(self, upstream: Upstream) -> bool:
        return await self._say("ready")

    async def alive(self, upstream: Upstream) -> bool:
        return await self._say("alive")

    async def _say(self, what: str) -> bool:
        self.asked.append(what)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, bool) else await answer.wait()


def far(*names: str) -> dict[str, Model]:
    """Models with a server each, which is elsewhere."""
    return {name: Model(mode=name, variants=(Variant(name="far", url=f"http://{name}:1"),)) for name in names}


@pytest.fixture
def fleet() -> Fleet:
    return Fleet(Clock(monotonic=lambda: 1.0))


@pytest.fixture
async def watch(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ExternalWatch]:
    monkeypatch.setattr(externals, "AGAIN_S", 0.0)
    client = Client()
    made = ExternalWatch(fleet, client)
    yield made
    await made.close()
    await client.close()


async def test_how_a_server_is_is_told_in_one_line(watch: ExternalWatch, caplog: pytest.LogCaptureFixture) -> None:
    failure = OSError("it answered 500:\n<html>")
    said = Said(True, True, failure, failure, False)
    caplog.set_level(logging.INFO, "sidecar.control.externals")
    while said.answers:
        await watch.probe_all(far("qwen"), lambda _: said)
    assert caplog.messages == [
        "qwen: external server http://qwen:1 is healthy",
        "qwen: external server http://qwen:1 is unhealthy: it answered 500: <html>",
        "qwen: external server http://qwen:1 is unhealthy",
    ]


async def test_one_that_was_ready_is_only_asked_whether_it_is_alive(watch: ExternalWatch) -> None:
    said = Said(OSError("not yet"), True, True, OSError("gone"), OSError("gone"), True)
    while said.answers:
        await watch.probe_all(far("qwen"), lambda _: said)
    assert said.asked == ["ready", "ready", "alive", "alive", "alive", "ready"]


async def test_one_lost_answer_says_nothing_of_a_server_that_has_been_well(watch: ExternalWatch, fleet: Fleet) -> None:
    said = Said(True, OSError("the connection was lost"), True)
    while said.answers:
        await watch.probe_all(far("qwen"), lambda _: said)
        assert [seen.healthy for seen in fleet.externals.values()] == [True]


async def test_one_that_hangs_delays_the_news_of_no_other_and_is_asked_again_when_it_has_answered(
    watch: ExternalWatch, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(externals, "PATIENCE_S", 0.05)
    late = asyncio.Event()
    said = {"hung": Said(late, True), "prompt": Said(True, False, False)}
    for healthy in (True, False):
        await watch.probe_all(far(*said), lambda model: said[model.modes[0]])
        assert {seen.model: seen.healthy for seen in fleet.externals.values()} == {"prompt": healthy}
    late.set()
    monkeypatch.setattr(externals, "PATIENCE_S", 1.0)
    said["prompt"].answers = [True, True]
    for _ in range(2):
        await watch.probe_all(far(*said), lambda model: said[model.modes[0]])
    assert {seen.model: seen.healthy for seen in fleet.externals.values()} == {"hung": True, "prompt": True}
    assert said["hung"].asked == ["ready", "alive"]


async def test_one_that_is_no_longer_declared_is_forgotten_also_while_it_is_asked(
    watch: ExternalWatch, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(externals, "PATIENCE_S", 0.01)
    late = asyncio.Event()
    said = Said(True, late)
    for _ in range(2):
        await watch.probe_all(far("qwen"), lambda _: said)
    await watch.probe_all({}, lambda _: said)
    late.set()
    await watch.probe_all({}, lambda _: said)
    assert fleet.externals == {}
    assert said.asked == ["ready", "alive"]
