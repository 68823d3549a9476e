"""The benchmark's own tools: they work on a running sidecar, and notice what they are there to notice."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from tests.benchmarks.dataplane import requests, table
from tests.benchmarks.dataplane.bench import QUICK, Bench
from tests.benchmarks.dataplane.cases.client import Client
from tests.benchmarks.dataplane.load import Asked, Loader
from tests.benchmarks.dataplane.machine import Cores
from tests.benchmarks.dataplane.programs import Programs, build, cache
from tests.benchmarks.dataplane.proxies import sidecar
from tests.benchmarks.dataplane.rows import Goal, Row, at_most

UNPINNED = Cores(None, None)
EVENTS = 5
DISORDERED = ("{seed}.000000", "{seed}.000002", "{seed}.000001", "99999999.000003")


@pytest.fixture(scope="module")
def programs() -> Programs:
    return build(cache())


def test_answers_and_streams_come_through_a_sidecar_whole(programs: Programs) -> None:
    with Bench(programs, UNPINNED, QUICK, {}).arena(sidecar()) as arena:
        (proxy,) = arena.proxies
        plain = arena.loader.run(proxy.port, proxy.pid, Asked(requests.plain(), 4, 5.0, 0.05, answers=1000))
        stream = Asked(requests.streamed(EVENTS, stub_interval_us=1000), 4, 5.0, 0.05, EVENTS, answers=20)
        streamed = arena.loader.run(proxy.port, proxy.pid, stream)
        with Client(proxy.port) as client:
            client.send(requests.streamed(1, stub_flood=10))
            flood_bytes = client.read_stream()
        counts = arena.stub.counts()
    assert (plain.seen.fault, plain.seen.faults, streamed.seen.fault, streamed.seen.faults) == ("", 0, "", 0)
    assert plain.seen.answers >= 1000  # fewer take so little that the processor's clock may not have moved
    assert streamed.seen.answers >= 20
    assert streamed.seen.events > streamed.seen.answers
    assert 0 < streamed.seen.first.p50 <= streamed.seen.whole.p50
    assert min(plain.cpu_s, streamed.cpu_s) > 0
    assert flood_bytes > 10 * 16384
    assert counts.accepted < counts.requests / 2  # connections were used again


def test_the_load_tells_lost_reordered_and_foreign_events(programs: Programs, tmp_path: Path) -> None:
    with _disordered() as port:
        asked = Asked(requests.streamed(EVENTS), 1, 0.1, 0.1, EVENTS)
        seen = Loader(programs.load, UNPINNED, tmp_path, ()).run(port, None, asked).seen
    assert (seen.lost, seen.reordered, seen.foreign, seen.broken, seen.refused) == (2, 1, 1, 0, 0)


def test_the_load_tells_refused_and_broken_requests(programs: Programs, tmp_path: Path) -> None:
    with _answering(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 9\r\n\r\ncut") as port:
        asked = Asked(requests.plain(), 1, 0.1, 0.1)
        seen = Loader(programs.load, UNPINNED, tmp_path, ()).run(port, None, asked).seen
    assert seen.fault == "HTTP/1.1 401 Unauthorized  content-length: 9  "
    assert seen.refused >= 1
    assert seen.broken >= 1


def test_a_figure_is_judged_by_its_goal() -> None:
    assert [Goal(0.45, 0.65).reached(figure) for figure in (0.44, 0.45, 0.65)] == ["missed", "met", "stretch"]
    assert [at_most(2.0, 1.0).reached(figure) for figure in (2.1, 2.0, 1.0)] == ["missed", "met", "stretch"]
    assert Goal().reached(1.0) == ""
    row = Row("n", "what", 0.5, "x", Goal(0.45, 0.65), "1 / 2", others=0.5)
    assert table.markdown([row]).splitlines()[-1] == "| what | 0.50x  | 0.45x  | 0.65x   | met (disturbed) | 1 / 2    |"
    assert "up to 50% of a core" in table.disturbed([row])
    (encoded,) = msgspec.json.decode(table.encoded([row], {}, False, {}))["rows"]
    assert (encoded["figure"], encoded["verdict"]) == (0.5, "met")


def _stream(request: bytes) -> bytes:
    """A stream that the load must find fault with."""
    seed = request.partition(b'"seed":')[2][:8].decode()
    events = [f"data: @{record.format(seed=seed)}.{0:016}@\n\n" for record in DISORDERED]
    chunks = "".join(f"{len(event):x}\r\n{event}\r\n" for event in [*events, "data: [DONE]\n\n"])
    return f"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n".encode()


@contextmanager
def _disordered() -> Iterator[int]:
    """A server that answers one request with such a stream, and no other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.sendall(_stream(connection.recv(65536)))
                while connection.recv(65536):  # until the load ends
                    pass

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@contextmanager
def _answering(said: bytes) -> Iterator[int]:
    """A server that says this to each request, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):  # the load may end at any point
                    if not connection.recv(65536):
                        return
                    connection.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        socket.create_connection(listener.getsockname()).close()  # ends it
        thread.join()
