"""A large request body on its way to its server while it still comes in, so that it is never held whole (promise 22).

That is possible only for a server that was found, and where no plugin has to see the body; then it cannot be sent a
second time, either.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

from sidecar.mechanism.connections import Connection
from sidecar.surfaces.dataplane.upload import Upload

STREAM_BYTES = 512 * 1024  # a body that is larger is passed on while it comes
_LAST_CHUNK = b"0\r\n\r\n"


class Uploading:
    """One body. length: as the client has told it, 0 if it comes in chunks. pause: has the client wait, or go on."""

    def __init__(self, upload: Upload, length: int, pause: Callable[[bool], None]) -> None:
        self.upload = upload
        self.size = 0
        self._length = length
        self._pause = pause
        self._connection: Connection | None = None
        self._begun = False
        self._whole = False
        self._slow = False

    @property
    def whole(self) -> bool:
        """Whether all of it has come."""
        return self._whole

    @property
    def begun(self) -> bool:
        """Whether some of it has left, so that there is no other attempt."""
        return self._begun

    def framing(self, name: str | None) -> bytes:
        """The header line that frames it, for a server that calls the model `name`; None = as the client does."""
        self.upload.rename(name)
        if self._length:
            return b"content-length: %d\r\n" % (self._length + self.upload.length_change)
        return b"transfer-encoding: chunked\r\n"

    def attach(self, connection: Connection) -> None:
        """The head is written: the rest follows."""
        self._begun = True
        self._connection = connection
        self._pass_on()

    def detach(self) -> None:
        """The server has answered, or is gone: what still comes is of no use to anybody."""
        self._connection = None
        self._pause(False)

    def feed(self, data: bytes) -> None:
        """More of it has come. Raises ApiError: then nothing more may be passed on."""
        self.size += len(data)
        if self._begun and self._connection is None:
            return
        self.upload.feed(data)
        if self._connection is None:
            self._pause(True)  # until there is a server to take it
        else:
            self._pass_on()

    def finish(self) -> None:
        """All of it has come. Raises ApiError if it is not as it should be."""
        self._whole = True
        self._pause(False)  # reading on is how it is noticed that the client leaves
        if self._begun and self._connection is None:
            return
        self.upload.finish()
        if self._connection is not None:
            self._pass_on()

    def slow(self, paused: bool) -> None:
        """The server does not keep up, or has caught up."""
        self._slow = paused
        if not self._whole:
            self._pause(paused)

    def _pass_on(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if self._length and self.size >= self._length and not self._whole:
            return  # the server would take these for a whole request, and whether they are is about to be known
        data = self.upload.take()
        if data:
            connection.write(data if self._length else b"%x\r\n%b\r\n" % (len(data), data))
        if self._whole:
            if not self._length:
                connection.write(_LAST_CHUNK)
            connection.asked()
        elif not self._slow:
            self._pause(False)


def has_left(transport: asyncio.Transport) -> bool:
    """Whether a client that has to wait has closed its connection, which nobody notices who does not read on."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))
