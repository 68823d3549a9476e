"""After 101 both sides' bytes are passed on as they come, each as fast as the other takes them (RFC 9110, 7.8)."""

from __future__ import annotations

from typing import Protocol

from sidecar.mechanism.connections import Connection
from sidecar.mechanism.exchanges import Framing
from sidecar.mechanism.filters import Passage
from sidecar.mechanism.upstream import Pair
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.relaying import Owner, Relaying
from sidecar.surfaces.dataplane.response import Response
from sidecar.surfaces.dataplane.tail import Tail
from sidecar.surfaces.dataplane.wire import Sending, Wire

SWITCHING = 101
EARLY_BYTES = 64 * 1024  # that a client may send before it knows whether it may

_HEADERS: list[Pair] = [(b"connection", b"Upgrade"), (b"upgrade", b"websocket")]


class Flow(Protocol):
    """The client's connection."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Tunnel:
    """The client's side. size: bytes that have come from it for the server."""

    def __init__(self, flow: Flow) -> None:
        self.size = 0
        self._flow = flow
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._server: Connection | None = None

    def feed(self, data: bytes) -> None:
        """The client has sent something after its request."""
        if self._server is not None:
            self.size += len(data)
            self._server.write(data)
            return
        self._early.append(data)
        self._early_bytes += len(data)
        if self._early_bytes > EARLY_BYTES:
            self._flow.pause_reading()

    def open(self, server: Connection) -> None:
        """The server has switched; what came early is for it."""
        early = self.take()
        self._server = server
        self._flow.resume_reading()
        if early:
            self.feed(early)

    def take(self) -> bytes:
        """What came, and is for no server: if nothing was switched, it is the client's next request."""
        early, self._early, self._early_bytes = self._early, [], 0
        return b"".join(early)

    def check(self, passage: Passage | None) -> None:
        """Raise ApiError if filters would have to see what cannot be shown to them."""
        if passage is not None and passage.sees_body:
            raise ApiError(501, "websocket_unfiltered", "the model's filters cannot see what a WebSocket carries")

    def slow(self, slow: bool) -> None:
        """The server does not keep up, or has caught up."""
        if slow:
            self._flow.pause_reading()
        else:
            self._flow.resume_reading()


class Switching(Relaying):
    """The answer to a request for a WebSocket: any answer, or 101 and then whatever both say."""

    def __init__(self, owner: Owner, response: Response, wire: Wire, passage: Passage | None, tunnel: Tunnel) -> None:
        super().__init__(owner, response, wire, passage, None)
        self._tunnel = tunnel
        self._switched = False

    def on_head(self, answer: Connection) -> None:
        owner = self._owner
        if answer.framing is not Framing.TUNNEL or owner is None:
            super().on_head(answer)
            return
        self._headed = self._switched = self._verbatim = True
        owner.headed(answer.status)
        response, wire = self._response, self._wire
        response.status = answer.status
        response.tail = Tail(False)
        wire.keep_alive = True  # or the head would say that it closes
        response.start(answer.status, answer.reason, [*answer.passed_on, *_HEADERS], Sending.AS_IT_COMES)
        wire.keep_alive = False
        self._tunnel.open(answer)

    def on_writable(self, writable: bool) -> None:
        if self._switched:
            self._tunnel.slow(not writable)

    def stop(self) -> None:
        if self._switched and self.connection is not None:
            self._owner = None
            self.connection.leave()  # the last that the client has said may be on its way yet
            self.connection = None
        else:
            super().stop()
