"""A client on a bare socket, that does what a test tells it to: stops reading, or leaves."""

from __future__ import annotations

import socket
from types import TracebackType

_PATIENCE_S = 30.0
_END = b"0\r\n\r\n"


class Client:
    """A connection to a port. receive_buffer: of its socket, in bytes; 0 = as the system has it."""

    def __init__(self, port: int, receive_buffer: int = 0) -> None:
        self._socket = socket.socket()
        self._socket.settimeout(_PATIENCE_S)
        if receive_buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.connect(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()

    def send(self, request: bytes) -> None:
        """Ask."""
        self._socket.sendall(request)

    def leave(self) -> None:
        """Close the connection, whatever is on its way. May be repeated."""
        self._socket.close()

    def read_some(self) -> bytes:
        """What is there, at least a byte; nothing at the end. Raises OSError."""
        return self._socket.recv(2**16)

    def read_answer(self) -> bytes:
        """The head and the body of an answer that tells its length. Raises OSError, also when it is cut off."""
        got = b""
        while not _is_whole(got):
            if not (more := self.read_some()):
                raise ConnectionError("the connection ended within an answer")
            got += more
        return got

    def read_stream(self) -> int:
        """Read a chunked answer to its end, and tell how many bytes it had. Raises OSError, also when it is cut off."""
        size, tail = 0, b""
        while tail[-len(_END) :] != _END:
            if not (more := self.read_some()):
                raise ConnectionError("the connection ended within an answer")
            size, tail = size + len(more), (tail + more)[-len(_END) :]
        return size


def _is_whole(got: bytes) -> bool:
    head, end, body = got.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(end) and len(body) >= int(lengths[0].partition(b":")[2] if lengths else 0)
