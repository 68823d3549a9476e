"""What a service manager hands over and hears."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.mechanism import systemd
from sidecar.mechanism.systemd import Given, Notifier, SocketError
from tests.support import until


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket that a manager would read from."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.setblocking(False)
        yield heard


def heard(manager: socket.socket) -> list[str]:
    """All that has come so far."""
    said = []
    while True:
        try:
            said.append(manager.recv(4096).decode())
        except BlockingIOError:
            return said


def given(sock: socket.socket, name: str = "sidecar.socket") -> Given:
    """As if it had been handed over: a descriptor of its own."""
    return Given(((name, os.dup(sock.fileno())),))


# --- what it says -----------------------------------------------------------------------------------------------


def test_what_is_said_to_us_is_taken_out_of_the_environment() -> None:
    own = str(os.getpid())
    environment = {"LISTEN_PID": own, "LISTEN_FDS": "0", "NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000", "A": "b"}
    assert systemd.take(environment) == Given((), "@x", 30.0)
    assert environment == {"A": "b"}


def test_what_is_meant_for_another_process_is_not_used_and_not_passed_on() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "WATCHDOG_PID": "1", "WATCHDOG_USEC": "5"}
    assert systemd.take(environment) == Given()
    assert environment == {}


@pytest.mark.parametrize("count", ["-1", "many", "100000"])
def test_a_number_of_sockets_that_is_none_is_an_error(count: str) -> None:
    with pytest.raises(SocketError, match="expected a number"):
        systemd.take({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})


def test_a_watchdog_without_a_number_is_none() -> None:
    assert systemd.take({"WATCHDOG_USEC": "soon"}).watchdog_s == 0


# --- sockets ----------------------------------------------------------------------------------------------------


def test_the_socket_that_the_manifests_name_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
        for host, asked in (("127.0.0.1", port), ("localhost", 0)):
            taken = systemd.listener(given(bound), host, asked)
            assert taken is not None
            with taken:
                assert taken.getsockname() == bound.getsockname()
                assert not taken.get_inheritable()
    assert systemd.listener(Given(), "127.0.0.1", 1) is None


def test_all_addresses_of_ipv6_are_all_addresses() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as bound:
        taken = systemd.listener(given(bound), "0.0.0.0", bound.getsockname()[1])  # noqa: S104 - what a manifest may say
        assert taken is not None
        taken.close()
        with pytest.raises(SocketError, match=r"sidecar\.socket listens on \[::\]:\d+, and the manifests say 127\.0"):
            systemd.listener(given(bound), "127.0.0.1", bound.getsockname()[1])


def test_a_socket_that_is_none_to_listen_on_is_refused_and_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
        with pytest.raises(SocketError, match=f"the manifests say 127.0.0.1:{port + 1}: ListenStream= and listen"):
            systemd.listener(given(bound), "127.0.0.1", port + 1)
        with pytest.raises(SocketError, match=r"2 sockets were handed over \(a, b\)"):
            systemd.listener(Given((("a", 3), ("b", 4))), "127.0.0.1", port)
        with socket.create_connection(("127.0.0.1", port)) as client, pytest.raises(SocketError, match="Accept=no"):
            systemd.listener(given(client), "127.0.0.1", port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, pytest.raises(SocketError, match="no TCP"):
        systemd.listener(given(datagrams), "127.0.0.1", 1)
    with Path(os.devnull).open() as file, pytest.raises(SocketError, match="is no socket"):
        systemd.listener(Given((("x", file.fileno()),)), "127.0.0.1", 1)


# --- news -------------------------------------------------------------------------------------------------------


async def test_each_piece_of_news_is_told_and_a_status_only_once(manager: socket.socket) -> None:
    notifier = Notifier(Given(notify=manager.getsockname()))
    notifier.ready()
    notifier.status("two\nlines")
    notifier.status("two\nlines")
    notifier.reloading()
    notifier.stopping(1.5)
    ready, status, reloading, stopping = heard(manager)
    assert (ready, status, stopping) == ("READY=1", "STATUS=two lines", "STOPPING=1\nEXTEND_TIMEOUT_USEC=1500000")
    kind, _, clock = reloading.partition("\nMONOTONIC_USEC=")
    assert kind == "RELOADING=1"
    assert abs(int(clock) / 1e6 - time.monotonic()) < 10
    notifier.close()
    notifier.ready()
    assert heard(manager) == []


def test_a_socket_may_have_a_name_without_a_file() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind(f"\0sidecar-{os.getpid()}")
        notifier = Notifier(Given(notify=f"@sidecar-{os.getpid()}"))
        notifier.ready()
        assert abstract.recv(100) == b"READY=1"
        notifier.close()


def test_a_manager_that_does_not_listen_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(Given(notify=str(tmp_path / "nobody")))
    with caplog.at_level(logging.WARNING):
        notifier.ready()
        notifier.stopping(1.5)
    assert [record.message.partition(" (")[0] for record in caplog.records] == ["the service manager cannot be told"]
    notifier.close()


def test_a_manager_that_does_not_read_holds_up_nothing(manager: socket.socket) -> None:
    notifier = Notifier(Given(notify=manager.getsockname()))
    began = time.monotonic()
    for number in range(2000):
        notifier.status(str(number))
    assert time.monotonic() - began < 1
    notifier.close()


async def test_what_a_busy_manager_waits_for_is_told_again_in_order(manager: socket.socket) -> None:
    notifier = Notifier(Given(notify=manager.getsockname()))
    for number in range(2000):
        notifier.status(str(number))
    notifier.ready()
    notifier.stopping(1.0)
    notifier.status("2000")
    assert not {"READY=1", "STATUS=2000"} & set(heard(manager))
    told = await until(lambda: heard(manager), "what is owed")
    assert told == ["READY=1", "STOPPING=1\nEXTEND_TIMEOUT_USEC=1000000"]
    notifier.status("2000")  # it was not taken before
    assert heard(manager) == ["STATUS=2000"]
    notifier.close()


async def test_the_watchdog_is_fed_by_the_loop_and_not_while_that_is_stuck(manager: socket.socket) -> None:
    notifier = Notifier(Given(notify=manager.getsockname(), watchdog_s=0.09))
    feeding = asyncio.create_task(notifier.keep_alive())
    for _ in range(2):  # before and after it was stuck
        for _ in range(3):
            assert (await until(lambda: heard(manager), "a sign of life"))[0] == "WATCHDOG=1"
        time.sleep(0.2)  # noqa: ASYNC251 - that is what it is about
        assert heard(manager) == []
    feeding.cancel()
    await asyncio.gather(feeding, return_exceptions=True)
    notifier.close()


async def test_nobody_is_told_where_nobody_asks() -> None:
    notifier = Notifier(Given(watchdog_s=1.0))
    await notifier.keep_alive()  # returns
    notifier.ready()
    assert not notifier.there
