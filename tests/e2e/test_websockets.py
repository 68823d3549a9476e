"""WebSockets through one sidecar, from a real client to a real server, and to one whose every byte is a test's own."""

from __future__ import annotations

import json
import queue
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request, Response
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import Server, ServerConnection, serve
from websockets.typing import Subprotocol

from sidecar.builtin import usage
from tests.conformance.world import Client
from tests.e2e.conftest import free_block
from tests.e2e.harness import KEY, Sidecar, running, settings, until

AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
BIG = bytes(range(256)) * 4096  # 1 MiB
UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: here\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eDEyMzQ1Njc4OTAxMjM0NQ==\r\n{more}\r\n"
)
SWITCHED = b"HTTP/1.1 101 Come In\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Own: 1\r\n\r\n"
MODELS = """
[plugins.usage]
import = "sidecar.builtin.usage:Usage"

[models.live]
mode = ["realtime", "chat"]
chain = ["keys", "usage"]
variants = [{{ url = "http://127.0.0.1:{real}", model_name = "inner/live", api_key = {{ env = "UPSTREAM_KEY" }} }}]

[models.raw]
mode = "realtime"
chain = []
variants = [{{ url = "http://127.0.0.1:{raw}" }}]
"""


class Talker:
    """A server that sends back what it gets, until it is told to go. seen: the requests that it has got."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.stuck = Event()
        self._server: Server = serve(
            self._talk,
            "127.0.0.1",
            0,
            process_request=self._answer,
            select_subprotocol=lambda _, offered: Subprotocol("realtime") if "realtime" in offered else None,
            max_size=None,
        )
        self.port: int = self._server.socket.getsockname()[1]
        Thread(target=self._server.serve_forever, daemon=True).start()

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/health":
            return connection.respond(HTTPStatus.OK, "ok")
        self.seen.append(request)
        return connection.respond(HTTPStatus.IM_A_TEAPOT, "no talk") if "teapot" in request.path else None

    def _talk(self, connection: ServerConnection) -> None:
        for message in connection:
            if message == "go":
                return
            if message == "stop reading":
                assert self.stuck.wait(30)
            else:
                connection.send(message)

    def close(self) -> None:
        self.stuck.set()
        self._server.shutdown()


class Raw:
    """A server that is healthy, and for the rest nothing but sockets."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._asked: queue.Queue[tuple[socket.socket, bytes]] = queue.Queue()
        self._open: list[socket.socket] = []
        Thread(target=self._accept, daemon=True).start()

    def take(self) -> tuple[socket.socket, bytes]:
        """The next connection on which something was asked, and the head of that."""
        taken = self._asked.get(timeout=30)
        self._open.append(taken[0])
        return taken

    def hang_up(self) -> None:
        """Close all that was taken."""
        for sock in self._open:
            sock.close()
        self._open.clear()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed at the end
            while True:
                self._greet(self._listener.accept()[0])

    def _greet(self, sock: socket.socket) -> None:
        sock.settimeout(30)
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := sock.recv(1)):
                sock.close()
                return
            head += data
        if head.startswith(b"GET /health "):
            with sock:
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            self._asked.put((sock, head))


class Here:
    """The sidecar and its servers."""

    def __init__(self, folder: Path, sidecar: Sidecar, talker: Talker, raw: Raw) -> None:
        self.sidecar = sidecar
        self.talker = talker
        self.raw = raw
        self.port = int(sidecar.url.rpartition(":")[2])
        self._usage = folder / "state" / "usage.db"
        self._open: list[Client] = []

    def connect(self, path: str = "/v1/realtime?model=live", **options: Any) -> ClientConnection:
        """A WebSocket."""
        options = {"additional_headers": AUTHORIZED, "proxy": None, "max_size": None, "compression": None, **options}
        made: ClientConnection = connect(f"ws://127.0.0.1:{self.port}{path}", **options)
        return made

    def client(self) -> Client:
        """A client that speaks by hand."""
        client = Client(self.port)
        self._open.append(client)
        return client

    def hang_up(self) -> None:
        """Close whatever a test has opened by hand."""
        for client in self._open:
            client.close()
        self._open.clear()
        self.raw.hang_up()

    def ask(self, path: str, more: str = "") -> Client:
        """A client that has asked for a WebSocket by hand."""
        client = self.client()
        client.send(UPGRADE.format(path=path, more=more).encode())
        return client

    def last(self, count: int) -> dict[str, Any]:
        """The latest row of usage, once there are so many."""
        until(lambda: self._usage.exists() and len(usage.read(self._usage)) >= count, f"{count} rows are written")
        return usage.read(self._usage)[count - 1]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    folder, talker, raw = tmp_path_factory.mktemp("websockets"), Talker(), Raw()
    manifests = {
        "sidecar.toml": settings(folder / "state", free_block(), 'cors_origins = ["https://app.example"]'),
        "models.toml": MODELS.format(real=talker.port, raw=raw.port),
    }
    try:
        with running(folder, manifests, {"UPSTREAM_KEY": "sk-upstream"}) as sidecar:
            yield Here(folder, sidecar, talker, raw)
    finally:
        talker.close()
        raw.close()


@pytest.fixture
def here(shared: Here) -> Iterator[Here]:
    yield shared
    shared.hang_up()


def test_both_sides_talk_as_they_like_and_the_outcome_is_recorded(here: Here) -> None:
    with here.connect() as talk:
        for message in ("hello", b"\x00\xff", BIG, "x" * 100_000):
            talk.send(message)
            assert talk.recv(30) == message
        talk.send("go")
        with pytest.raises(ConnectionClosed):
            talk.recv(30)
        assert (talk.close_code, talk.response.headers["upgrade"] if talk.response else "") == (1000, "websocket")
    request = here.talker.seen[-1]
    assert request.path == "/v1/realtime?model=inner%2Flive"
    assert request.headers.get_all("authorization") == ["Bearer sk-upstream"]
    row = here.last(1)
    told = ("principal", "model", "path", "end", "status", "streamed")
    assert [row[key] for key in told] == ["tester", "live", "/v1/realtime", "ok", 101, 1]
    assert min(row["bytes_in"], row["bytes_out"]) > len(BIG)


def test_a_page_tells_its_key_among_the_subprotocols_and_it_goes_no_further(here: Here) -> None:
    offered = ["realtime", f"openai-insecure-api-key.{KEY}", "openai-beta.realtime-v1"]
    options: dict[str, Any] = {"additional_headers": {}, "subprotocols": offered, "compression": "deflate"}
    with here.connect(origin="https://app.example", **options) as talk:
        assert talk.subprotocol == "realtime"
        talk.send("x" * 1000)
        assert talk.recv(30) == "x" * 1000
    request = here.talker.seen[-1]
    assert KEY not in str(request.headers)
    assert request.headers["sec-websocket-protocol"] == "realtime, openai-beta.realtime-v1"
    with here.connect(origin=f"http://127.0.0.1:{here.port}", **options):
        pass
    before = len(here.talker.seen)
    with pytest.raises(InvalidStatus) as refused, here.connect(origin="https://evil.example", **options):
        pass
    assert json.loads(refused.value.response.body)["error"]["code"] == "origin_not_allowed"
    assert len(here.talker.seen) == before


def test_all_that_a_server_has_can_be_talked_to_and_its_refusals_are_passed_on(here: Here) -> None:
    with here.connect("/upstream/live/any/where?x=1") as talk:
        talk.send("hello")
        assert talk.recv(30) == "hello"
    assert here.talker.seen[-1].path == "/any/where?x=1"
    for path, headers, status, said in (
        ("/upstream/live/teapot", AUTHORIZED, 418, b"no talk"),
        ("/v1/realtime?model=live", {}, 401, b"missing_api_key"),
        ("/v1/realtime?model=none", AUTHORIZED, 404, b"model_not_found"),
        ("/v1/realtime", AUTHORIZED, 400, b"model_missing"),
        ("/v1/chat/completions?model=live", AUTHORIZED, 405, b"method_not_allowed"),
    ):
        with pytest.raises(InvalidStatus) as refused, here.connect(path, additional_headers=headers):
            pass
        assert refused.value.response.status_code == status
        assert said in refused.value.response.body


def test_every_byte_gets_through_also_early_ones_and_the_last(here: Here) -> None:
    client = here.ask("/v1/realtime?model=raw", "X-Own: kept\r\nSec-WebSocket-Extensions: a; b=1\r\n")
    client.send(b"\x00early GET / HTTP/1.1\r\n\r\n")
    server, head = here.raw.take()
    assert head.startswith(b"GET /v1/realtime?model=raw HTTP/1.1\r\n")
    lines = head.lower().split(b"\r\n")
    for line in (b"connection: upgrade", b"upgrade: websocket", b"x-own: kept", b"sec-websocket-extensions: a; b=1"):
        assert lines.count(line) == 1
    server.sendall(SWITCHED + b"\x00at once")
    client.until(b"\x00at once")
    assert client.received.startswith(b"HTTP/1.1 101 Come In\r\n")
    assert b"\r\nX-Own: 1\r\n" in client.received
    assert b"close" not in client.received.lower()
    client.received = b""
    client.send(b"later")
    expected = b"\x00early GET / HTTP/1.1\r\n\r\nlater"
    assert _exactly(server, len(expected)) == expected
    server.sendall(b"last")
    server.close()
    assert client.rest() == b"last"


def test_a_client_that_goes_takes_the_servers_side_along(here: Here) -> None:
    client, server = _switched(here)
    client.send(BIG)
    client.close()
    assert _exactly(server, len(BIG)) == BIG
    assert server.recv(1) == b""


def test_each_side_is_slowed_down_by_the_other(here: Here) -> None:
    client, server = _switched(here)
    for sender, reader in ((client.socket, server), (server, client.socket)):
        sender.settimeout(0.5)
        sent = 0
        with suppress(TimeoutError):
            while sent < 100 * len(BIG):
                sent += sender.send(BIG)
        assert sent < 40 * len(BIG)
        assert _exactly(reader, sent) == (BIG * (sent // len(BIG) + 1))[:sent]


def test_without_a_101_the_connection_goes_on_as_before(here: Here) -> None:
    client = here.ask("/v1/realtime?model=raw")
    client.send(f"GET /v1/models/raw HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
    server, _ = here.raw.take()
    server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nno\r\n")
    assert client.answer(b"GET").body == b"no\r\n"
    assert json.loads(client.answer(b"GET").body)["id"] == "raw"
    client.send(UPGRADE.format(path="/v1/realtime?model=raw", more="Content-Length: 2\r\n").encode() + b"{}")
    assert b"upgrade" not in here.raw.take()[1].lower()  # one with a body is no request for a WebSocket


def test_no_other_protocol_is_switched_to(here: Here) -> None:
    client = here.client()
    asked = UPGRADE.format(path="/v1/realtime?model=raw", more="").replace("websocket", "h2c")
    client.send(asked.encode())
    server, head = here.raw.take()
    assert b"upgrade" not in head.lower()
    server.sendall(SWITCHED.replace(b"websocket", b"h2c"))
    assert client.answer(b"GET").status == 502


def test_the_end_of_the_sidecar_waits_for_those_who_talk(tmp_path: Path, here: Here) -> None:
    manifests = {
        "sidecar.toml": settings(tmp_path / "state", free_block()),
        "models.toml": MODELS.format(real=here.talker.port, raw=here.raw.port),
    }
    with running(tmp_path, manifests, {"UPSTREAM_KEY": "k"}) as sidecar:
        there = Here(tmp_path, sidecar, here.talker, here.raw)
        with there.connect() as talk:
            sidecar.process.send_signal(signal.SIGTERM)
            until(lambda: any("draining" in line for line in sidecar.log), "it is told to end")
            talk.send("hello")
            assert talk.recv(30) == "hello"
            assert sidecar.process.poll() is None
        assert sidecar.process.wait(30) == 0


def _switched(here: Here) -> tuple[Client, socket.socket]:
    client = here.ask("/v1/realtime?model=raw")
    server, _ = here.raw.take()
    server.sendall(SWITCHED)
    client.until(b"\r\n\r\n")
    client.received = b""
    return client, server


def _exactly(sock: socket.socket, size: int) -> bytes:
    sock.settimeout(30)
    found = bytearray()
    while len(found) < size and (data := sock.recv(min(262144, size - len(found)))):
        found += data
    return bytes(found)
