"""One request's turn on its client's connection: gathered while it comes in, answered when those before it are."""

from __future__ import annotations

from typing import Protocol

from sidecar.surfaces.dataplane.call import Call
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.incoming import Incoming
from sidecar.surfaces.dataplane.routing import Way
from sidecar.surfaces.dataplane.tunnel import Tunnel
from sidecar.surfaces.dataplane.upload import Upload
from sidecar.surfaces.dataplane.wire import Wire


class Answering(Protocol):
    """Whoever answers a request."""

    def left(self) -> None:
        """The client has gone."""
        ...

    def slow(self, paused: bool) -> None:
        """The client does not keep up, or has caught up."""
        ...

    def cut_off(self, error: ApiError) -> None:
        """End it now, whatever it waits for."""
        ...


class _NoEvent:
    def set(self) -> None:
        """Nobody waits."""


class Turn:
    """Stands in the protocol where uvicorn has its own cycles, and has what uvicorn asks of those.

    began: the loop's clock, when its head had come. length: of the body, if it was told. received: it is complete.
    error: why the request is refused without a look at it. upload: a large body that is looked at while it comes.
    call: one that gets it as it comes. tunnel: what the client sends if it gets the WebSocket that it asks for.
    """

    __slots__ = (
        "answering",
        "began",
        "body",
        "call",
        "disconnected",
        "error",
        "incoming",
        "length",
        "received",
        "size",
        "tunnel",
        "upload",
        "way",
        "wire",
    )

    message_event = _NoEvent()

    def __init__(self, wire: Wire, incoming: Incoming, way: Way, began: float) -> None:
        self.began = began
        self.wire = wire
        self.incoming = incoming
        self.way = way
        self.upload: Upload | None = None
        self.call: Call | None = None
        self.body: list[bytes] = []
        self.size = 0
        self.length = 0
        self.received = False
        self.disconnected = False
        self.error: ApiError | None = None
        self.answering: Answering | None = None
        self.tunnel: Tunnel | None = None

    @property
    def response_complete(self) -> bool:
        """Whether the answer was sent."""
        return self.wire.complete

    @property
    def keep_alive(self) -> bool:
        """Whether the connection outlives the answer."""
        return self.wire.keep_alive

    @keep_alive.setter
    def keep_alive(self, keep: bool) -> None:
        self.wire.keep_alive = keep

    def whole(self) -> bytes:
        """The body, which is not kept here any longer."""
        body, self.body = self.body, []
        return body[0] if len(body) == 1 else b"".join(body)
