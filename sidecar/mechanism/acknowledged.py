"""How much of what was written to a TCP connection has reached the other side's system."""

from __future__ import annotations

import socket
from typing import Any

_TCP_INFO_BYTES = 128
_BYTES_ACKED = slice(120, 128)  # struct tcp_info, tcpi_bytes_acked (linux/tcp.h)


def bytes_acknowledged(sock: Any) -> int | None:
    """How many bytes; None if that is not to be known. sock: what a transport says is its socket."""
    try:
        info: bytes = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except (OSError, AttributeError):
        return None  # no Linux, or gone already
    return int.from_bytes(info[_BYTES_ACKED], "little") if len(info) == _TCP_INFO_BYTES else None
