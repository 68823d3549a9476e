"""Gives out ports for servers: from a range, free at the time, and not the ones that were just given back."""

from __future__ import annotations

import socket

from sidecar.core.manifest import PortRange
from sidecar.mechanism.procfs import listening


class NoPortError(Exception):
    """Every port of the range is taken."""


class Ports:
    """The ports in use by our servers. Goes round the range, so that a port rests before it is used again."""

    def __init__(self) -> None:
        self._taken: set[int] = set()
        self._last = 0

    def take(self, allowed: PortRange) -> int:
        """A port on which nothing listens. Raises NoPortError."""
        size = allowed.last - allowed.first + 1
        start = self._last + 1 - allowed.first if allowed.first <= self._last <= allowed.last else 0
        heard = listening()  # once: the table is long where there are many connections
        for step in range(size):
            port = allowed.first + (start + step) % size
            if port not in self._taken and port not in heard and _free(port):
                self._taken.add(port)
                self._last = port
                return port
        raise NoPortError(f"all ports from {allowed.first} to {allowed.last} are taken")

    def hold(self, port: int) -> None:
        """A server that was taken over has the port already."""
        self._taken.add(port)

    def give_back(self, port: int) -> None:
        """The server on the port is gone."""
        self._taken.discard(port)


def _free(port: int) -> bool:
    """Whether a server could listen on the port, on all addresses."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what lingers in TIME_WAIT is no obstacle
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104 - bound for a moment to see whether it can be; never listened on
        except OSError:
            return False
        return True
