"""Connections to servers that are idle at the moment, by where they lead; and new ones."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque

from sidecar.mechanism.connections import Connection
from sidecar.mechanism.exchanges import UpstreamError
from sidecar.mechanism.origins import Origin
from sidecar.mechanism.outbox import Outbox

CONNECT_S = 5.0
IDLE_S = 4.0  # vLLM's uvicorn closes idle connections after 5 s: ours must expire before
SWEEP_S = 0.5
IDLE_MOST = 512  # kept for each server


class Pool:
    """Idle connections by origin. opened: connections that were made. failed: attempts to make one."""

    def __init__(self) -> None:
        self.opened = 0
        self.outbox = Outbox()
        self.failed = 0
        self._idle: dict[Origin, deque[Connection]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._tls: ssl.SSLContext | None = None

    def take(self, origin: Origin) -> Connection | None:
        """An idle connection: the one used last, for the others may be about to expire."""
        kept = self._idle.get(origin)
        while kept:
            connection = kept.pop()
            if connection.usable:
                return connection
        return None

    async def connect(self, origin: Origin) -> Connection:
        """A new connection. Raises UpstreamError."""
        connection = Connection(self, origin)
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._open(origin, connection)
        except TimeoutError:
            self.failed += 1
            connection.abort()
            message = f"no connection to {origin} within {CONNECT_S:g} s"
            raise UpstreamError(message, processed=False) from None
        except (OSError, UnicodeError) as error:  # UnicodeError: a host that cannot be one
            self.failed += 1
            connection.abort()
            why = getattr(error, "strerror", None) or error
            raise UpstreamError(f"no connection to {origin}: {why}", processed=False) from error
        except BaseException:
            connection.abort()  # it may have been made in the very moment of the cancellation
            raise
        self.opened += 1
        return connection

    @property
    def idle(self) -> int:
        """Connections that are kept."""
        return sum(map(len, self._idle.values()))

    def keep(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        kept = self._idle.get(connection.origin)
        if kept is None:
            kept = self._idle[connection.origin] = deque()
        if len(kept) >= IDLE_MOST:
            connection.abort()
            return
        kept.append(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(SWEEP_S, self._expire)

    def forget(self, connection: Connection) -> None:
        """An idle connection was lost."""
        kept = self._idle.get(connection.origin)
        if kept is not None and connection in kept:
            kept.remove(connection)

    def close(self) -> None:
        """Close what is idle."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        idle, self._idle = self._idle, {}
        for kept in idle.values():
            for connection in kept:
                connection.abort()

    async def _open(self, origin: Origin, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        if origin.path:
            await loop.create_unix_connection(lambda: connection, origin.path)
        else:
            tls = self._context() if origin.scheme == "https" else None
            await loop.create_connection(lambda: connection, origin.host, origin.port, ssl=tls)

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = None
        oldest = loop.time() - IDLE_S
        for origin, kept in list(self._idle.items()):
            while kept and kept[0].idle_since <= oldest:
                kept.popleft().abort()
            if not kept:
                del self._idle[origin]
        if self._idle:
            self._sweep = loop.call_later(SWEEP_S, self._expire)
