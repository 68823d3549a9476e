"""How a service manager and its service talk: sockets that it holds (sd_listen_fds(3)), news for it (sd_notify(3)).

Both are a few environment variables; none of them is left to the servers that the sidecar starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
import time
from collections.abc import MutableMapping

import msgspec

log = logging.getLogger(__name__)

FIRST_FD = 3  # SD_LISTEN_FDS_START
AGAIN_S = 0.1
_VARIABLES = (
    *("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"),
    *("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"),
)


class SocketError(Exception):
    """A socket was handed over that cannot be the one to listen on; the text says what to do."""


class Given(msgspec.Struct, frozen=True):
    """What the manager said at the start. sockets: (name, number) of each. watchdog_s: 0.0 = it does not watch."""

    sockets: tuple[tuple[str, int], ...] = ()
    notify: str = ""
    watchdog_s: float = 0.0


def take(environment: MutableMapping[str, str]) -> Given:
    """Read what the manager said, and take it out of the environment. Raises SocketError if it makes no sense."""
    said = {name: environment.pop(name) for name in _VARIABLES if name in environment}
    sockets: tuple[tuple[str, int], ...] = ()
    if _for_us(said.get("LISTEN_PID")):
        sockets = _sockets(said.get("LISTEN_FDS", "0"), said.get("LISTEN_FDNAMES", ""))
    watchdog_s = 0.0
    if "WATCHDOG_USEC" in said and _for_us(said.get("WATCHDOG_PID", str(os.getpid()))):
        with contextlib.suppress(ValueError):  # then nobody watches that we could satisfy
            watchdog_s = int(said["WATCHDOG_USEC"]) / 1e6
    return Given(sockets, said.get("NOTIFY_SOCKET", ""), watchdog_s)


def listener(given: Given, host: str, port: int) -> socket.socket | None:
    """The socket to listen on, if one was handed over; None if not. Raises SocketError.

    It must be the one that `listen` names: who may come in was judged by that.
    """
    if not given.sockets:
        return None
    if len(given.sockets) > 1:
        names = ", ".join(name for name, _ in given.sockets)
        raise SocketError(f"{len(given.sockets)} sockets were handed over ({names}): expected one ListenStream=")
    name, number = given.sockets[0]
    try:
        found = socket.socket(fileno=number)
    except OSError as error:
        raise SocketError(f"descriptor {number} ({name}) is no socket: {error.strerror}") from error
    try:
        _check(found, name, host, port)
    except SocketError:
        found.close()
        raise
    found.setblocking(False)
    return found


class Notifier:
    """Tells the manager how we are; says nothing if there is none. What cannot be told is logged once, and goes on.

    What it waits for (that we are ready, say) is told again for as long as it is too busy to take it: it would take us
    for dead. What comes again by itself is not.
    """

    def __init__(self, given: Given) -> None:
        self._path = given.notify
        self._watchdog_s = given.watchdog_s
        self._failed = False
        self._status = ""
        self._owed: list[str] = []
        self._again: asyncio.TimerHandle | None = None
        self._socket: socket.socket | None = None
        if self._path:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)

    @property
    def there(self) -> bool:
        """Whether anybody listens."""
        return self._socket is not None

    def ready(self) -> None:
        """Connections are served, or what was asked to be read anew has been."""
        self._owe("READY=1")

    def reloading(self) -> None:
        """Manifests and plugins are being read anew; `ready` ends that."""
        self._owe(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, most_s: float) -> None:
        """What is in flight is being finished. most_s: how long that may take, so that nobody is impatient before."""
        self._owe(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(most_s * 1e6)}")

    def status(self, text: str) -> None:
        """One line for people, if it is another than before."""
        if text != self._status and self._tell(f"STATUS={' '.join(text.split())}"):
            self._status = text

    def _owe(self, text: str) -> None:
        """Send it, after what is still owed, now or as soon as it is taken."""
        if self._socket is not None:
            self._owed.append(text)
            self._pay()

    def _pay(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        while self._owed and self._tell(self._owed[0]):
            del self._owed[0]
        if self._owed:
            self._again = asyncio.get_running_loop().call_later(AGAIN_S, self._pay)

    def _tell(self, text: str) -> bool:
        """Send it, without ever waiting. False: it is too busy to take it; what cannot be told at all is done with."""
        if self._socket is None:
            return True
        address = f"\0{self._path[1:]}" if self._path.startswith("@") else self._path
        try:
            self._socket.sendto(text.encode(), address)
            self._failed = False
        except BlockingIOError:
            return False
        except OSError as error:
            if not self._failed:
                log.warning("the service manager cannot be told (%s): %s", self._path, error.strerror or error)
            self._failed = True
        return True

    async def keep_alive(self) -> None:
        """Say so for ever, from the loop itself: when that is stuck the manager notices. Returns if nobody watches."""
        while self._socket is not None and self._watchdog_s > 0:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(
                self._watchdog_s / 3
            )  # half would do (sd_watchdog_enabled(3)), but for one that is late

    def close(self) -> None:
        """Say nothing more."""
        if self._again is not None:
            self._again.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _for_us(pid: str | None) -> bool:
    return pid == str(os.getpid())


def _sockets(count: str, names: str) -> tuple[tuple[str, int], ...]:
    if not count.isdecimal() or int(count) > 1000:
        raise SocketError(f"LISTEN_FDS is {count!r}: expected a number of sockets")
    named = names.split(":") if names else []
    numbers = range(FIRST_FD, FIRST_FD + int(count))
    for number in numbers:
        with contextlib.suppress(OSError):  # what is no descriptor is told where it is used
            os.set_inheritable(number, False)
    return tuple((named[i] if i < len(named) else "unknown", number) for i, number in enumerate(numbers))


def _check(found: socket.socket, name: str, host: str, port: int) -> None:
    listening = found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM
    if not listening or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise SocketError(f"{name} is no TCP socket that listens: expected ListenStream=HOST:PORT, and Accept=no")
    its_host, its_port = found.getsockname()[:2]
    if not (port in (0, its_port) and _same(its_host, host)):
        its = f"[{its_host}]:{its_port}" if ":" in its_host else f"{its_host}:{its_port}"
        raise SocketError(
            f"{name} listens on {its}, and the manifests say {host}:{port}: "
            "ListenStream= and listen in [sidecar] must be the same"
        )


def _same(one: str, other: str) -> bool:
    """Whether two hosts are one address; all addresses of IPv6 stand for those of IPv4 as well."""
    try:
        addresses = {ipaddress.ip_address("127.0.0.1" if host == "localhost" else host) for host in (one, other)}
    except ValueError:  # a name: what it stands for, the system may know
        return one in _addresses(other)
    return len(addresses) == 1 or all(address.is_unspecified for address in addresses)


def _addresses(host: str) -> set[str]:
    try:
        return {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()
