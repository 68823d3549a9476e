"""Who listens on this machine's own addresses, by /proc (proc_net_tcp(5)): Linux's own network namespace, TCP."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Collection, Iterator

import msgspec

from sidecar.mechanism.procfs import PROC

_LISTEN = "0A"  # TCP_LISTEN, include/net/tcp_states.h


class Listener(msgspec.Struct, frozen=True):
    """A port that can be reached from here. pids: who holds its socket, oldest number first; () = not to be seen."""

    host: str
    port: int
    pids: tuple[int, ...] = ()

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"


def listeners(ports: range | None = None) -> list[Listener]:
    """All of them, each port once, by port. ports: only these. Reads all of /proc: keep it off the event loop."""
    by_port: dict[int, dict[str, set[int]]] = {}
    for address, port, inode in _tables():
        reached = _from_here(address)
        if reached and (ports is None or port in ports):
            by_port.setdefault(port, {}).setdefault(reached, set()).add(inode)
    holders = _holders({inode for hosts in by_port.values() for inodes in hosts.values() for inode in inodes})
    found = []
    for port, hosts in sorted(by_port.items()):
        host = min(hosts, key=_nearness)
        pids = {pid for inode in hosts[host] for pid in holders.get(inode, ())}
        found.append(Listener(host, port, tuple(sorted(pids))))
    return found


def _from_here(host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """The address that leads there from here, loopback if it can be; "" if none does."""
    mapped = host.ipv4_mapped if isinstance(host, ipaddress.IPv6Address) else None
    host = mapped or host
    if host.is_unspecified:
        return "127.0.0.1" if host.version == 4 else "::1"
    return "" if host.is_link_local else str(host)  # which would need a zone beside it


def _nearness(host: str) -> tuple[bool, int, str]:
    """127.0.0.1 before ::1, and both before an address that others can reach."""
    address = ipaddress.ip_address(host)
    return not address.is_loopback, address.version, host


def _tables() -> Iterator[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int, int]]:
    for table in ("tcp", "tcp6"):
        try:
            lines = (PROC / "net" / table).read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:
            continue  # a kernel without IPv6
        for line in lines:
            _, local, _, state, *rest = line.split(maxsplit=10)
            if state == _LISTEN:
                host, _, port = local.rpartition(":")
                yield _parsed(host), int(port, 16), int(rest[5])


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Words of 32 bits in the machine's own order, which is little endian wherever models are served."""
    raw = bytes.fromhex(text)
    packed = b"".join(raw[begin : begin + 4][::-1] for begin in range(0, len(raw), 4))
    return ipaddress.ip_address(packed)


def _holders(inodes: Collection[int]) -> dict[int, set[int]]:
    """The processes that hold these sockets, as far as they can be seen."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, set[int]] = {}
    for entry in os.scandir(PROC):
        if not entry.name.isdecimal():
            continue
        try:
            links = list(os.scandir(f"{entry.path}/fd"))
        except OSError:
            continue  # gone, or another user's
        for link in links:
            try:
                inode = wanted.get(os.readlink(link.path))  # noqa: PTH115 - thousands of them: paths of strings do
            except OSError:
                continue  # closed since it was listed
            if inode is not None:
                found.setdefault(inode, set()).add(int(entry.name))
    return found
