"""One real sidecar between a client and a server that are nothing but sockets, so that every byte is a test's own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.conformance.judge import Judgement, Message, Pairs, responses
from tests.conformance.upstream import PATIENCE_S, Exchange, Upstream
from tests.e2e.harness import KEY, Sidecar, running, settings

MAX_BODY = 65536
UPSTREAM_KEY = "sk-upstream-own"
BATCH = 100  # connections at a time, where each is cut at a place of its own

# What speaks of one connection, or is the sidecar's business: it need not be on the other side as it was on this.
HOP_BY_HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
        *(b"proxy-authenticate", b"proxy-authorization"),
    )
)
OWN = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"authorization",
    b"x-api-key",
    b"traceparent",
    b"tracestate",
}

_RESET = struct.pack("ii", 1, 0)


def end_to_end(headers: Pairs, own: frozenset[bytes] = OWN) -> Pairs:
    """The headers that must be the same on both sides."""
    return tuple(pair for pair in headers if pair[0].lower() not in own)


def body_of(model: str = "plain", rest: str = "") -> bytes:
    """The smallest request body."""
    return f'{{"model":"{model}"{rest}}}'.encode()


def post(
    body: bytes | None = None,
    *lines: str,
    path: str = "/v1/chat/completions",
    length: bool = True,
    version: str = "1.1",
) -> bytes:
    """A request, with further header lines."""
    body = body_of() if body is None else body
    head = [f"POST {path} HTTP/{version}", "Host: here", *lines]
    if length:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def chunked(*chunks: bytes, trailers: bytes = b"") -> bytes:
    """A body in chunks."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailers + b"\r\n"


def answer(body: bytes = b'{"ok":1}', *lines: str, status: str = "200 OK", length: bool = True) -> bytes:
    """A response, with further header lines."""
    head = [f"HTTP/1.1 {status}", *lines, *([f"Content-Length: {len(body)}"] if length else [])]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


class Client:
    """A connection to the sidecar."""

    def __init__(self, port: int, receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""  # and not yet taken
        self.ended = False  # the sidecar has closed the connection
        self.was_reset = False

    def send(self, data: bytes) -> None:
        """These bytes, now. A sidecar that has closed the connection already is no error."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def receive(self) -> bytes:
        """What comes next; b"" at the end."""
        try:
            data = self.socket.recv(262144)
        except ConnectionResetError:
            self.was_reset = True
            data = b""
        self.ended = not data
        self.received += data
        return data

    def answer(self, method: bytes = b"POST") -> Message:
        """The next answer, which must be whole."""
        message, error = self._next(method)
        assert message is not None, f"no whole answer ({error}): {self.received!r}"
        assert message.whole, f"the answer broke off: {error}"
        return message

    def interim(self, method: bytes = b"POST") -> tuple[list[Message], Message]:
        """The interim answers before the next one, and that one."""
        interim: list[Message] = []
        message, error = self._next(method, interim)
        assert message is not None and message.whole, f"no whole answer ({error}): {self.received!r}"
        return interim, message

    def broken(self, method: bytes = b"POST") -> Message | None:
        """What came of an answer that was cut off, as it must have been; None if nothing did."""
        message, _ = self._next(method)
        assert message is None or not message.whole, f"it looks whole: {message}"
        assert self.ended
        return message

    def whole_or_broken(self, method: bytes = b"POST") -> Message | None:
        """What came of an answer, however it ended."""
        return self._next(method)[0]

    def until(self, wanted: bytes) -> bytes:
        """What has come by the time that the bytes are among it."""
        while wanted not in self.received:
            assert self.receive(), f"{wanted!r} never came: {self.received!r}"
        return self.received

    def rest(self) -> bytes:
        """All that comes until the sidecar closes the connection."""
        while not self.ended:
            self.receive()
        return self.received

    def closed(self) -> bool:
        """Whether the sidecar closes the connection without another byte."""
        return self.rest() == b""

    def close(self, *, reset: bool = False) -> None:
        """Leave."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.socket.close()

    def _next(self, method: bytes, interim: list[Message] | None = None) -> tuple[Message | None, str]:
        while True:
            found = responses(self.received, (method,), eof=self.ended)
            if self._is_enough(found):
                if found.messages and found.messages[0].whole:
                    self.received = found.rest
                if interim is not None:
                    interim += found.interim
                return (found.messages[0] if found.messages else None), found.error
            self.receive()

    def _is_enough(self, found: Judgement) -> bool:
        whole = bool(found.messages) and found.messages[0].whole
        if whole and self.was_reset and _is_close_delimited(found.messages[0]):
            raise AssertionError("a reset is no end")
        return whole or self.ended


def _is_close_delimited(message: Message) -> bool:
    framed = message.values(b"content-length") or message.values(b"transfer-encoding")
    return not framed and message.status not in (204, 304)


class World:
    """The sidecar, its upstream, and clients of it."""

    def __init__(self, sidecar: Sidecar, upstream: Upstream, spare: Upstream) -> None:
        self.sidecar = sidecar
        self.upstream = upstream
        self.spare = spare
        self.port = int(sidecar.url.rpartition(":")[2])
        self.hangs = False
        self._clients: list[Client] = []
        self._prober = Client(self.port)

    def connect(self, receive_buffer: int = 0) -> Client:
        """Another client."""
        client = Client(self.port, receive_buffer)
        self._clients.append(client)
        return client

    def ask(self, data: bytes) -> tuple[Client, Exchange]:
        """A client that has sent this, and what of it has reached the upstream."""
        client = self.connect()
        client.send(data)
        while not self.upstream.waiting():
            if select.select([client.socket], [], [], 0.01)[0]:
                client.receive()
                assert client.received.startswith(b"HTTP/1.1 100 "), f"it did not get there: {client.received!r}"
        return client, self.upstream.take()

    def barrier(self) -> None:
        """Return once the sidecar has seen everything that was sent to it before this."""
        try:
            answered = self._probe() or self._probe()  # it may have closed the connection, which was idle
        except TimeoutError:
            answered = False
        if not answered:
            self.hangs = True
            raise AssertionError("the sidecar does not answer any more")

    def _probe(self) -> bool:
        if self._prober.ended:
            self._prober.close()
            self._prober = Client(self.port)
        self._prober.send(b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return bool(self._prober.receive()) and self._prober.answer(b"GET").status == 200

    def quiet(self) -> list[Exchange]:
        """All that has reached the upstream, once nothing more is under way."""
        self.barrier()
        return self.upstream.settle()

    def leave(self, client: Client) -> None:
        """The client goes; return once the upstream has nothing of it any more."""
        client.close()
        self._clients.remove(client)
        self.quiet()

    def reset(self) -> None:
        """As if nothing had been."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        self.barrier()
        self.upstream.reset()
        self.spare.reset()
        self.barrier()

    def end(self) -> None:
        """Let go of everything. A sidecar that hangs would not stop, either."""
        if self.hangs:
            self.sidecar.process.kill()
            self.sidecar.process.wait()
        else:
            self.reset()
        for client in (*self._clients, self._prober):
            client.close()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The sidecar sees nothing of what happens in here, and then all of it at once."""
        pid = self.sidecar.process.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            stat = Path(f"/proc/{pid}/stat")
            while stat.read_text().rpartition(")")[2].split()[0] != "T":
                time.sleep(0.001)
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    # --- fragments ----------------------------------------------------------------------------------------------

    def requests_cut_everywhere(self, data: bytes) -> list[tuple[Exchange, Message]]:
        """What reaches the upstream of a request that comes in two parts, and its answer: for each place of the cut."""
        found = []
        for cuts in _batches(range(1, len(data))):
            clients = [self.connect() for _ in cuts]
            self.barrier()
            for client, cut in zip(clients, cuts, strict=True):
                client.send(data[:cut])
            self.barrier()
            for client, cut in zip(clients, cuts, strict=True):
                client.send(data[cut:])
            exchanges = [self.upstream.take() for _ in cuts]
            for exchange in exchanges:
                exchange.send(answer())
            found += [(exchange, client.answer()) for exchange, client in zip(exchanges, clients, strict=True)]
            self._done(clients)
        return found

    def answers_cut_everywhere(self, data: bytes, *, close: bool = False) -> Iterator[Client]:
        """Clients whose answer reached the sidecar in two parts, for each place of the cut.

        close: and then the upstream closes the connection.
        """
        for cuts in _batches(range(1, len(data))):
            clients = [self.connect() for _ in cuts]
            for client in clients:
                client.send(post())
            exchanges = [self.upstream.take() for _ in cuts]
            for exchange, cut in zip(exchanges, cuts, strict=True):
                exchange.send(data[:cut])
            self.barrier()
            for exchange, cut in zip(exchanges, cuts, strict=True):
                with contextlib.suppress(ConnectionError):  # the sidecar has seen enough
                    exchange.send(data[cut:])
                if close:
                    exchange.close()
            yield from clients
            self._done(clients)

    def _done(self, clients: Sequence[Client]) -> None:
        for client in clients:
            client.close()
            self._clients.remove(client)


def _batches(cuts: range) -> Iterator[range]:
    for start in range(0, len(cuts), BATCH):
        yield cuts[start : start + BATCH]


def manifest(upstream: int, spare: int) -> str:
    """Models on scripted servers.

    plain: untouched. keyed: a key is asked for, and another put in; it is called otherwise there. pair: two servers.
    """
    url, other = f"http://127.0.0.1:{upstream}", f"http://127.0.0.1:{spare}"
    return f"""
[models.plain]
mode = ["chat", "messages", "base"]
chain = []
variants = [{{ url = "{url}" }}]

[models.keyed]
mode = ["chat", "messages"]
aliases = ["also-keyed"]
variants = [{{ url = "{url}", model_name = "org/inner", api_key = {{ env = "UPSTREAM_KEY" }} }}]

[models.pair]
mode = "chat"
chain = []
variants = [{{ name = "first", url = "{other}" }}, {{ name = "second", url = "{url}" }}]
"""


@contextlib.contextmanager
def world(folder: Path, ports: str, extra: str = "", max_body: int = MAX_BODY, models: str = "") -> Iterator[World]:
    """A world of its own. extra: further lines of `[sidecar]`. models: further ones, at `{upstream}`."""
    upstream, spare = Upstream(), Upstream()
    manifests = {
        "sidecar.toml": settings(folder / "state", ports, f'max_body = "{max_body}B"\n{extra}'),
        "models.toml": manifest(upstream.port, spare.port),
        "more.toml": models.replace("{upstream}", f"http://127.0.0.1:{upstream.port}"),
    }
    try:
        with running(folder, manifests, {"UPSTREAM_KEY": UPSTREAM_KEY}) as sidecar:
            made = World(sidecar, upstream, spare)
            try:
                yield made
            finally:
                made.end()
    finally:
        upstream.stop()
        spare.stop()


AUTHORIZED = f"Authorization: Bearer {KEY}"
