"""Servers are asked for their numbers when somebody wants to know, and never hold that up."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from plugin_sdk import Secret
from sidecar.control import engines
from sidecar.control.clock import Clock
from sidecar.control.engines import Engines
from sidecar.control.fleet import Fleet
from sidecar.core.manifest import Declaration, Model, Variant
from sidecar.core.observed import ExternalServer
from sidecar.mechanism.upstream import Client
from tests.support import until

METRICS = "vllm:num_requests_waiting 3\n"


class Engine(ThreadingHTTPServer):
    """Answers `/metrics` with `body`, once `go_on` is set. asked: keys that it was asked with."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body: bytes = METRICS.encode()
        self.status = 200
        self.asked: list[str] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients may leave."""


class _Handler(BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.path} {self.headers.get('authorization', '')}")
        self.server.go_on.wait(10)
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.go_on.set()
        server.shutdown()


class World:
    """A sidecar's view of one server, which somebody else runs. now: by its clock."""

    def __init__(self, engine: Engine, client: Client) -> None:
        self.now = 1000.0
        self.fleet = Fleet(Clock(monotonic=lambda: self.now))
        url = f"http://127.0.0.1:{engine.server_port}"
        variant = Variant(name="v", url=url + "/", api_key=Secret("sk-secret"))
        self.declared = Declaration(models={"m": Model(mode="chat", variants=(variant,))})
        self.fleet.externals["m", "v", url + "/"] = ExternalServer(model="m", variant="v", healthy=True)
        self.engines = Engines(self.fleet, client)

    async def waiting(self) -> float | None:
        """What it says that waits, if it says anything."""
        await self.engines.refresh(self.declared)
        found = self.engines.numbers()
        return found[0][2].waiting if found else None


@pytest.fixture
async def world(engine: Engine) -> AsyncIterator[World]:
    client = Client()
    made = World(engine, client)
    yield made
    await made.engines.close()
    await client.close()


async def test_what_is_fresh_is_not_asked_for_again(world: World, engine: Engine) -> None:
    assert [await world.waiting() for _ in range(3)] == [3, 3, 3]
    assert engine.asked == ["/metrics Bearer sk-secret"]
    engine.body = b"vllm:num_requests_waiting 5\n"
    world.now += engines.FRESH_S
    assert await world.waiting() == 5


async def test_a_server_that_does_not_tell_is_asked_again_after_a_while(world: World, engine: Engine) -> None:
    engine.status = 501
    assert await world.waiting() is None
    world.now += engines.FRESH_S
    assert await world.waiting() is None
    assert len(engine.asked) == 1
    engine.status = 200
    world.now += engines.AGAIN_S
    assert await world.waiting() == 3


@pytest.mark.parametrize("body", [b"", b"<html>", b"\xff\xfe\x00", b"process_cpu_seconds_total 1\n"])
async def test_what_tells_nothing_is_no_engine(world: World, engine: Engine, body: bytes) -> None:
    engine.body = body
    assert await world.waiting() is None


async def test_an_answer_that_has_no_end_is_broken_off(
    world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "MOST_BYTES", 1000)
    engine.body = METRICS.encode() + b"# more\n" * 10_000
    assert await world.waiting() is None


async def test_a_server_that_hangs_holds_nobody_up_and_is_told_as_it_was(
    world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "PATIENCE_S", 0.02)
    await until_told(world, 3)
    engine.go_on.clear()
    world.now += engines.FRESH_S
    began = time.monotonic()
    assert await world.waiting() == 3
    assert time.monotonic() - began < 5
    world.now += engines.FRESH_S
    await world.waiting()
    assert len(engine.asked) == 2  # not a second time while the first goes on
    world.now += engines.OLD_S
    assert await world.waiting() is None


async def test_a_server_that_has_gone_is_forgotten(world: World) -> None:
    await until_told(world, 3)
    world.fleet.externals.clear()
    assert await world.waiting() is None


async def until_told(world: World, waiting: float) -> None:
    """Ask until it has answered."""
    await world.waiting()
    await until(world.engines.numbers, "it has answered")
    assert await world.waiting() == waiting
