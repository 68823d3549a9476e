"""A server whose every byte is a test's own: it keeps what arrives, and answers nothing but what it is told to."""

from __future__ import annotations

import contextlib
import queue
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import h11

from tests.conformance.judge import MOST_HEAD, Message, Pairs

PATIENCE_S = 5.0

T = TypeVar("T")

_HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
_LINGER_NOT = struct.pack("ii", 1, 0)  # closing sends a reset


class Exchange:
    """A request as it arrived, perhaps not yet to its end. `raw`: its very bytes so far."""

    def __init__(self, connection: Connection, head: h11.Request) -> None:
        self.connection = connection
        self.method = bytes(head.method)
        self.target = bytes(head.target)
        self.headers: Pairs = tuple((bytes(name), bytes(value)) for name, value in head.headers.raw_items())
        self.body = bytearray()
        self.trailers: Pairs = ()
        self.raw = b""
        self.whole = False
        self.settled = threading.Event()  # it is whole, or will never be

    def values(self, name: bytes) -> list[bytes]:
        """All values of a header, whichever way it is written."""
        return [value for given, value in self.headers if given.lower() == name]

    def message(self) -> Message:
        """As the judge would say it."""
        return Message(
            method=self.method,
            target=self.target,
            headers=self.headers,
            body=bytes(self.body),
            trailers=self.trailers,
            whole=self.whole,
        )

    def send(self, data: bytes) -> None:
        """These bytes, now."""
        self.connection.socket.sendall(data)

    def stall(self) -> None:
        """Read nothing more of it."""
        self.connection.stall()

    def go_on(self) -> None:
        """Read on."""
        self.connection.go_on()

    def close(self) -> None:
        """An orderly end of the connection."""
        self.connection.close()

    def reset(self) -> None:
        """As when the server is killed with bytes unread."""
        self.connection.close(reset=True)

    def wait_gone(self) -> float:
        """When the sidecar let go of the connection (monotonic clock)."""
        assert self.connection.gone.wait(PATIENCE_S), "the sidecar keeps the connection"
        return self.connection.gone_at


class Connection:
    """One connection of the sidecar's. gone: the sidecar has ended it. error: what it sent is no HTTP."""

    def __init__(self, upstream: Upstream, sock: socket.socket) -> None:
        self.socket = sock
        self.gone = threading.Event()
        self.gone_at = 0.0
        self.error = ""
        self.received = bytearray()
        self._upstream = upstream
        self._current: Exchange | None = None
        self._begin(b"")

    def _begin(self, data: bytes) -> None:
        self._reader = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEAD)
        self._raw = bytearray(data)
        if data:
            self._reader.receive_data(data)

    def stall(self) -> None:
        """Do not read it any more, and have the system take little in its stead."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self._upstream.do(lambda: self._upstream.watch(self, False))

    def go_on(self) -> None:
        """Read it again."""
        self._upstream.do(lambda: self._upstream.watch(self, True))

    def close(self, *, reset: bool = False) -> None:
        """Close it from our side."""
        self._upstream.do(lambda: self._upstream.drop(self, reset=reset))

    def readable(self) -> None:
        """Take in what has arrived."""
        try:
            data = self.socket.recv(262144)
        except TimeoutError:
            return
        except OSError:
            data = b""
        if not data:
            self.gone_at = time.monotonic()
            self._upstream.drop(self)
            self.gone.set()
            return
        self.received += data
        self._raw += data
        self._reader.receive_data(data)
        try:
            self._read()
        except h11.RemoteProtocolError as error:
            self.error = str(error)
            self._upstream.errors.append(f"{error}: {bytes(self._raw)!r}")
            self._upstream.drop(self, reset=True)

    def settle(self) -> None:
        """Nothing more will come."""
        if self._current is not None:
            self._current.settled.set()

    def _read(self) -> None:
        while True:
            event = self._reader.next_event()
            if isinstance(event, h11.Request):
                self._current = Exchange(self, event)
                if event.target != b"/health":
                    self._upstream.arrived(self._current)
            elif isinstance(event, h11.Data) and self._current is not None:
                self._current.body += event.data
            elif isinstance(event, h11.EndOfMessage) and self._current is not None:
                rest = self._reader.trailing_data[0]
                exchange, self._current = self._current, None
                exchange.trailers = tuple((bytes(name), bytes(value)) for name, value in event.headers.raw_items())
                exchange.raw = bytes(self._raw[: len(self._raw) - len(rest)])
                self._begin(rest)
                self._complete(exchange)
            else:
                return

    def _complete(self, exchange: Exchange) -> None:
        exchange.whole = True
        exchange.settled.set()
        answer = _HEALTHY if exchange.target == b"/health" else self._upstream.answer
        if answer is not None:
            with contextlib.suppress(OSError):  # the sidecar has given it up
                self.socket.sendall(answer)
            if exchange.target == b"/health":
                self._upstream.drop(self)


class Upstream:
    """The server, in a thread. answer: what every whole request gets at once; None = what the test sends.

    errors: what arrived and is no HTTP. seen: all requests since the last reset.
    """

    def __init__(self) -> None:
        self.answer: bytes | None = None
        self.errors: list[str] = []
        self.seen: list[Exchange] = []
        self._queue: queue.Queue[Exchange] = queue.Queue()
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._connections: set[Connection] = set()
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._woken, selectors.EVENT_READ, self._on_wake)
        self._ends = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    # --- for tests ----------------------------------------------------------------------------------------------

    def take(self, what: str = "a request") -> Exchange:
        """The next request, to its end."""
        exchange = self.take_head(what)
        assert exchange.settled.wait(PATIENCE_S), f"only a part of {what} arrived: {exchange.raw!r}"
        return exchange

    def take_head(self, what: str = "a request") -> Exchange:
        """The next request as soon as its head is there."""
        try:
            return self._queue.get(timeout=PATIENCE_S)
        except queue.Empty:
            raise AssertionError(f"{what} never arrived") from None

    def waiting(self) -> bool:
        """Whether there is a request to take."""
        return not self._queue.empty()

    def settle(self) -> list[Exchange]:
        """Everything that has arrived by now, since the last reset."""
        return self.do(self._read_all)

    def reset(self) -> None:
        """Close all connections, and forget what was."""
        self.do(self._forget)

    def forget(self) -> None:
        """Forget what was; connections stay."""
        self.do(self._clear)

    def refuse(self) -> None:
        """Listen no more: connections are refused."""
        self.do(self._stop_listening)

    def stop(self) -> None:
        """End the thread."""
        self._ends = True
        self.reset()
        self._thread.join(PATIENCE_S)
        for one in (self._wake, self._woken, self._listener):
            if one is not None:
                one.close()
        self._selector.close()

    # --- in the thread ------------------------------------------------------------------------------------------

    def do(self, work: Callable[[], T]) -> T:
        """Do it in the thread, and wait for it."""
        if threading.current_thread() is self._thread:
            return work()
        done: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._tasks.put(lambda: done.put(work()))
        self._wake.send(b".")
        return done.get(timeout=PATIENCE_S)

    def arrived(self, exchange: Exchange) -> None:
        """A request's head is there."""
        self.seen.append(exchange)
        self._queue.put(exchange)

    def watch(self, connection: Connection, wanted: bool) -> None:
        """Read what comes, or let it be."""
        is_watched = connection.socket in self._selector.get_map()
        if wanted and not is_watched:
            self._selector.register(connection.socket, selectors.EVENT_READ, connection.readable)
        elif is_watched and not wanted:
            self._selector.unregister(connection.socket)

    def drop(self, connection: Connection, *, reset: bool = False) -> None:
        """Close a connection."""
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        self.watch(connection, False)
        if reset:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        connection.socket.close()
        connection.settle()

    def _run(self) -> None:
        while not self._ends:
            self._turn(None)

    def _turn(self, timeout: float | None) -> bool:
        ready = self._selector.select(timeout)
        # Tasks last: they may take in what the others are ready with.
        for key, _ in sorted(ready, key=lambda one: one[0].fileobj is self._woken):
            if self._selector.get_map().get(key.fd) is key:  # not closed in this very turn
                key.data()
        return bool(ready)

    def _accept(self) -> None:
        assert self._listener is not None
        sock, _ = self._listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(PATIENCE_S)
        connection = Connection(self, sock)
        self._connections.add(connection)
        self._selector.register(sock, selectors.EVENT_READ, connection.readable)

    def _on_wake(self) -> None:
        self._woken.recv(1)
        self._tasks.get()()

    def _read_all(self) -> list[Exchange]:
        while self._turn(0):
            pass
        return list(self.seen)

    def _forget(self) -> None:
        for connection in list(self._connections):
            self.drop(connection)
        self.answer = None
        self._clear()

    def _clear(self) -> None:
        self.errors.clear()
        self.seen.clear()
        while not self._queue.empty():
            self._queue.get()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None


def head_of(raw: bytes) -> bytes:
    """The head of a message with its empty line."""
    head, line, _ = raw.partition(b"\r\n\r\n")
    return head + line
