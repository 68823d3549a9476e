"""Ports are free when they are given, and rest before they are given again."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from sidecar.core.manifest import PortRange
from sidecar.mechanism import ports as module
from sidecar.mechanism import procfs
from sidecar.mechanism.ports import NoPortError, Ports


@pytest.fixture
def free() -> Iterator[PortRange]:
    """Four ports in a row that nothing uses."""
    for first in range(12000 + os.getpid() % 500 * 16, 32000, 4):  # another run of the tests begins elsewhere
        try:
            for port in range(first, first + 4):
                with socket.create_server(("0.0.0.0", port)):  # noqa: S104 - for a moment
                    pass
        except OSError:
            continue
        yield PortRange(first, first + 3)
        return
    raise AssertionError("no four ports are free")


def test_ports_are_given_in_turn(free: PortRange) -> None:
    ports = Ports()
    assert [ports.take(free) for _ in range(4)] == list(range(free.first, free.last + 1))


def test_when_all_are_taken_it_says_so(free: PortRange) -> None:
    ports = Ports()
    for _ in range(4):
        ports.take(free)
    with pytest.raises(NoPortError, match=f"all ports from {free.first} to {free.last} are taken"):
        ports.take(free)


def test_a_port_rests_before_it_is_given_again(free: PortRange) -> None:
    ports = Ports()
    first = ports.take(free)
    ports.give_back(first)
    assert [ports.take(free) for _ in range(4)] == [first + 1, first + 2, first + 3, first]


def test_one_given_back_is_the_only_one_left(free: PortRange) -> None:
    ports = Ports()
    taken = [ports.take(free) for _ in range(4)]
    ports.give_back(taken[1])
    assert ports.take(free) == taken[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "127.0.0.2", "::1", "::"])  # noqa: S104 - for a moment
def test_a_port_that_somebody_listens_on_is_passed_over(free: PortRange, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, free.first), family=family):
        assert Ports().take(free) == free.first + 1


def test_who_listens_is_looked_up_once_however_many_ports_are_passed_over(
    free: PortRange, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def counted() -> dict[int, set[int]]:
        looks.append(procfs.listening())
        return looks[-1]

    monkeypatch.setattr(module, "listening", counted)
    with ExitStack() as stack:
        for port in range(free.first, free.last):
            stack.enter_context(socket.create_server(("::1", port), family=socket.AF_INET6))
        assert Ports().take(free) == free.last
    assert len(looks) == 1


def test_a_connection_that_lingers_is_no_obstacle(free: PortRange) -> None:
    with socket.create_server(("127.0.0.1", free.first)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        server.close()  # who closes first is the one in TIME_WAIT
        client.close()
    assert Ports().take(free) == free.first


def test_a_range_that_changed_is_obeyed(free: PortRange) -> None:
    ports = Ports()
    ports.take(free)
    assert ports.take(PortRange(free.first + 2, free.last)) == free.first + 2


def test_giving_back_what_was_never_taken_is_harmless(free: PortRange) -> None:
    ports = Ports()
    ports.give_back(0)
    assert ports.take(free) == free.first
