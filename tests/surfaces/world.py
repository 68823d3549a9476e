"""A data plane in this process between a test's own sockets: the real one, in front of a server that does as told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import uvicorn
import uvloop
from opentelemetry.trace import NoOpTracer
from uvicorn.server import ServerState

from plugin_sdk import Outcome
from sidecar.control.controller import Controller
from sidecar.control.generations import Generation
from sidecar.control.machine import Outside
from sidecar.mechanism.lock import StateDir
from sidecar.mechanism.machine import LocalMachine
from sidecar.mechanism.manifests import Manifests
from sidecar.mechanism.source import read
from sidecar.mechanism.sources import Library
from sidecar.mechanism.traces import Traces
from sidecar.mechanism.upstream import Client as Upstreams
from sidecar.surfaces.dataplane.plane import Plane
from sidecar.surfaces.dataplane.protocol import EdgeProtocol, factory
from tests.support import PATIENCE_S, declare, until

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Does = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]


def ask(body: bytes = b'{"model": "m"}', *lines: bytes, path: bytes = b"/v1/chat/completions") -> bytes:
    """A request, as its client sends it."""
    head = [b"POST " + path + b" HTTP/1.1", b"Host: here", b"Content-Length: %d" % len(body), *lines]
    return b"\r\n".join([*head, b"", b""]) + body


def get(path: bytes, *lines: bytes) -> bytes:
    """A request without a body."""
    return b"\r\n".join([b"GET " + path + b" HTTP/1.1", b"Host: here", *lines, b"", b""])


def chunk(data: bytes) -> bytes:
    """As it is sent in chunks."""
    return b"%x\r\n%b\r\n" % (len(data), data)


async def message(reader: asyncio.StreamReader, *, bodiless: bool = False) -> tuple[bytes, bytes]:
    """The next head and body; raises IncompleteReadError where there is no whole one."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    if bodiless:
        return head, b""
    if b"transfer-encoding: chunked" in lower:
        body = b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
        return head, body
    if b"content-length: " in lower:
        length = int(lower.split(b"content-length: ")[1].split(b"\r\n")[0])
        return head, await reader.readexactly(length)
    return head, b"" if head.startswith((b"GET", b"HEAD")) else await reader.read()


def status(head: bytes) -> int:
    """Of an answer."""
    return int(head.split(b" ")[1])


class Server:
    """An inference server that is always healthy, and answers as `does` says. seen: heads of requests.

    left: how often somebody hung up in the middle of an answer.
    """

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.bodies: list[bytes] = []
        self.accepted = 0
        self.open = 0
        self.does: Does = answers(OK)
        self.url = ""
        self._listener: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20)
        self.url = f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._tasks.add(task)
        probe = False
        self.open += 1
        try:
            while True:
                head, body = await message(reader)
                if probe := head.startswith(b"GET /health"):
                    writer.write(OK)
                    continue
                self.seen.append(head)
                self.bodies.append(body)
                await self.does(reader, writer, head)
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            self.open -= 1
            self.accepted += not probe
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()
            self._tasks.discard(task)


def answers(*pieces: bytes, close: bool = False) -> Does:
    """Answer with these bytes, each written by itself."""

    async def does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.close()

    return does


async def application(scope: Any, receive: Any, send: Any) -> None:
    """What is not inference: answers with the path that was asked for, and the size of what was sent."""
    size, more = 0, True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        size, more = size + len(event.get("body", b"")), event.get("more_body", False)
    said = f"{scope['path']} {size}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
    await send({"type": "http.response.body", "body": said})


class Recording(Plane):
    """Keeps the outcomes as well."""

    def __init__(self, controller: Controller, traces: Traces) -> None:
        super().__init__(controller, traces)
        self.outcomes: list[Outcome] = []

    def count(self, outcome: Outcome, operation: str) -> None:
        super().count(outcome, operation)
        self.outcomes.append(outcome)


class World:
    """outcomes: of all requests so far, the oldest first. server: where the model "m" is."""

    def __init__(self, controller: Controller, plane: Recording, server: Server, port: int) -> None:
        self.controller = controller
        self.plane = plane
        self.server = server
        self.port = port
        self.outcomes = plane.outcomes
        self.uvicorns = ServerState()
        self._clients: list[asyncio.StreamWriter] = []
        self._runner: asyncio.Runner | None = None

    @property
    def generation(self) -> Generation:
        return self.controller.generation

    @property
    def connections(self) -> list[EdgeProtocol]:
        return cast("list[EdgeProtocol]", list(self.plane._connections))

    async def connection(self) -> EdgeProtocol:
        """The only one that there is."""
        await until(lambda: len(self.plane._connections) == 1, "one client")
        return self.connections[0]

    async def connect(self, *, receive_buffer: int = 0) -> Streams:
        """A client's connection."""
        client = socket.socket()
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(("127.0.0.1", self.port))
        client.setblocking(False)
        limit = 2**20 if not receive_buffer else 1024
        reader, writer = await asyncio.open_connection(sock=client, limit=limit)
        self._clients.append(writer)
        return reader, writer

    async def ask(self, request: bytes, *, bodiless: bool = False) -> tuple[bytes, bytes]:
        """The answer to a request on a connection of its own."""
        reader, writer = await self.connect()
        writer.write(request)
        async with asyncio.timeout(PATIENCE_S):
            found = await message(reader, bodiless=bodiless)
        writer.close()
        return found

    async def outcome(self) -> Outcome:
        """The next one."""
        await until(lambda: self.outcomes, "an outcome")
        return self.outcomes.pop(0)

    async def asked(self, times: int = 1) -> None:
        """Until the server has got so many requests in all."""
        await until(lambda: len(self.server.seen) >= times, "the server was asked")

    def pass_time(self, seconds: float) -> None:
        """Look after the connections as if it were so much later."""
        now = self.plane.loop.time() + seconds
        for connection in self.connections:
            connection.look_after(now, self.controller.declaration.settings)

    async def rest(self) -> None:
        """Let go of all clients; then nothing may be held any more."""
        for writer in self._clients:
            writer.close()
        self._clients.clear()
        try:
            await until(lambda: not self.plane._connections, "all clients have gone", 3.0)
        finally:
            for connection in self.connections:
                connection.transport.abort()  # for the tests that follow
            await asyncio.sleep(0)
        await until(lambda: self.generation.leases == 0, "no request is in flight")
        self.server.does = answers(OK)
        self.server.seen.clear()
        self.server.bodies.clear()
        self.outcomes.clear()

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        """Do it all, in the loop that the world is in."""

        async def bounded() -> None:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await scenario
            finally:
                await self.rest()

        assert self._runner is not None
        self._runner.run(bounded())


def manifest(url: str, settings: str = "", more: str = "", chain: str = "", model: str = "") -> str:
    """One model on the server. The arguments are further lines; "URL" in them is the server's."""
    return f"""
[sidecar]
chain = [{chain}]
{settings}
{more}
[models.m]
mode = "chat"
{model}
[[models.m.variants]]
url = "{url}"
"""


@asynccontextmanager
async def world(folder: Path, **lines: str) -> AsyncIterator[World]:
    """A data plane with these lines in its manifest."""
    server = Server()
    await server.start()
    loaded = declare(folder / "manifests", {"sidecar.toml": manifest(server.url, **lines).replace("URL", server.url)})
    assert not loaded.problems, loaded.problems
    upstreams, state = Upstreams(), StateDir(folder / "state")
    source = Manifests(folder / "manifests", {}, read(folder / "manifests"), Library())
    outside = Outside(machine=LocalMachine(state), source=source, client=upstreams, tracer=NoOpTracer())
    controller = Controller(folder / "manifests", outside)
    await controller.open(loaded)
    plane = Recording(controller, Traces())
    config = uvicorn.Config(cast(Any, application), lifespan="off", log_config=None, ws="none")
    config.load()
    uvicorns, make = ServerState(), factory(plane)
    listener = await plane.loop.create_server(
        lambda: make(config=config, server_state=uvicorns, app_state={}), "127.0.0.1", 0
    )
    made = World(controller, plane, server, listener.sockets[0].getsockname()[1])
    made.uvicorns = uvicorns
    externals = controller.fleet.externals
    try:
        await until(lambda: externals and all(one.healthy for one in externals.values()), "the server is healthy")
        yield made
    finally:
        listener.close()
        await plane.close()
        await controller.close()
        await upstreams.close()
        await server.stop()
        state.close()


@contextmanager
def running(folder: Path, **lines: str) -> Iterator[World]:
    """The same on uvloop, as in the program, for tests that `run` in it."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack = world(folder, **lines)
        made = runner.run(stack.__aenter__())
        made._runner = runner
        try:
            yield made
        finally:
            runner.run(stack.__aexit__(None, None, None))


def inside(test: Callable[[World], Coroutine[Any, Any, None]]) -> Callable[[World], None]:
    """A test that runs in the world that its module's fixture `here` gives."""

    def run(here: World) -> None:
        here.run(test(here))

    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    return run
