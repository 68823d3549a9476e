"""How much of what was written to a TCP connection has reached the other side's system."""

from __future__ import annotations

import socket
from typing import Any

from sidecar.mechanism.origins import Origin

_TCP_INFO_BYTES = 128
_BYTES_ACKED = slice(120, 128)  # struct tcp_info, tcpi_bytes_acked (linux/tcp.h)


def bytes_acknowledged(sock: Any) -> int | None:
    """How many bytes; None if that is not to be known. sock: what a transport says is its socket."""
    try:
        info: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except (OSError, AttributeError):
        return None  # no Linux, or gone already
    return int.from_bytes(info[_BYTES_ACKED], "little") if len(info) == _TCP_INFO_BYTES else None


def is_unread(origin: Origin, sock: Any, written: int, exc: Exception | None) -> bool:
    """Whether it is certain that the server has not read all that was written on a connection that has ended so.

    A server closes connections that were idle, perhaps in the very moment in which one is used again. Then its system
    never acknowledges what was written. If it has acknowledged all, the server may have acted on it, and died, or reset
    the connection. On a unix socket, a reset says that not all was read.
    """
    reset = isinstance(exc, ConnectionResetError | BrokenPipeError)
    if origin.path:
        return reset
    if origin.scheme == "https" or (exc is not None and not reset):
        return False
    acknowledged = bytes_acknowledged(sock)
    return acknowledged is not None and acknowledged < written
