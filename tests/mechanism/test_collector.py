"""OTLP over HTTP to a collector that is there, one that comes late, and one that refuses."""

from __future__ import annotations

import gzip
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanKind

from sidecar import __version__
from sidecar.mechanism.collector import Collector, CollectorError, address_of
from sidecar.mechanism.exports import ExportError
from sidecar.mechanism.otlp import Encoder
from sidecar.mechanism.spans import Origin, Stage
from tests.support import free_port

ENCODER = Encoder(Resource({"service.name": "sidecar"}), InstrumentationScope("sidecar"))
SPAN = Stage(Origin("1" * 32, 0, 1, ""), 0, "chat", SpanKind.SERVER, lambda: 1)
SPAN.end()


class Endpoint(ThreadingHTTPServer):
    """Keeps what it is sent, and answers with the statuses given, then with 200."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.connections: set[Any] = set()
        self.statuses: list[int] = []
        self.keeps = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def do_POST(self) -> None:
        server = self.server
        body = self.rfile.read(int(self.headers["content-length"]))
        server.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
        server.connections.add(self.client_address)
        self.send_response(server.statuses.pop(0) if server.statuses else 200)
        self.send_header("content-length", "0")
        self.end_headers()
        self.close_connection = not server.keeps  # unannounced: as after a timeout

    def log_message(self, *_: Any) -> None:
        """Quiet."""


Make = Callable[..., Collector]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def make(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """`make(TIMEOUT="1")`: a collector at the endpoint; it waits next to nothing between attempts."""
    monkeypatch.setattr("sidecar.mechanism.collector._PAUSES_S", (0.01, 0.02))
    made: list[Collector] = []

    def collector(**told: str) -> Collector:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{endpoint.server_port}"}
        environment |= {f"OTEL_EXPORTER_OTLP_{name}": value for name, value in told.items()}
        made.append(Collector(address_of(environment), ENCODER))
        return made[-1]

    yield collector
    for each in made:
        each.close()


# --- sending ------------------------------------------------------------------------------------------------------


def test_batches_arrive_over_one_connection(make: Make, endpoint: Endpoint) -> None:
    collector = make(HEADERS="x-token=a%20b, y=1")
    collector.export([SPAN])
    collector.export([SPAN, SPAN])
    (path, headers, body), (_, _, second) = endpoint.seen
    assert path == "/v1/traces"
    assert headers["content-type"] == "application/x-protobuf"
    assert headers["user-agent"] == f"sidecar/{__version__}"
    assert (headers["x-token"], headers["y"]) == ("a b", "1")
    assert ExportTraceServiceRequest.FromString(body).resource_spans[0].scope_spans[0].spans[0].name == "chat"
    assert len(ExportTraceServiceRequest.FromString(second).resource_spans[0].scope_spans[0].spans) == 2
    assert len(endpoint.connections) == 1


@pytest.mark.parametrize(("name", "unpack"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_batches_are_compressed_on_demand(
    make: Make, endpoint: Endpoint, name: str, unpack: Callable[[bytes], bytes]
) -> None:
    make(COMPRESSION=name).export([SPAN])
    [(_, headers, body)] = endpoint.seen
    assert headers["content-encoding"] == name
    assert unpack(body) == ENCODER.request([SPAN])


def test_a_connection_that_the_collector_has_closed_is_made_anew(make: Make, endpoint: Endpoint) -> None:
    endpoint.keeps = False
    collector = make()
    for _ in range(3):
        collector.export([SPAN])
    assert (len(endpoint.seen), len(endpoint.connections)) == (3, 3)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_collector_that_is_busy_is_tried_again(make: Make, endpoint: Endpoint, status: int) -> None:
    endpoint.statuses = [status, status]
    make().export([SPAN])
    assert len(endpoint.seen) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 500, 301])
def test_a_refusal_is_final(make: Make, endpoint: Endpoint, status: int) -> None:
    endpoint.statuses = [status]
    with pytest.raises(ExportError, match=f"/v1/traces: it answers {status}"):
        make().export([SPAN])
    assert len(endpoint.seen) == 1


def test_a_collector_that_is_not_there_is_given_up(make: Make) -> None:
    with pytest.raises(ExportError, match="refused"):
        make(ENDPOINT=f"http://127.0.0.1:{free_port()}").export([SPAN])


def test_a_collector_that_does_not_answer_is_given_up_in_time(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ExportError, match="timed out"):
        make(ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}", TIMEOUT="0.05").export([SPAN])


def test_nothing_is_tried_again_once_it_is_to_stop(
    make: Make, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.mechanism.collector._PAUSES_S", (5.0,))
    endpoint.statuses = [503]
    collector = make()
    collector.stop()
    with pytest.raises(ExportError, match="503"):
        collector.export([SPAN])
    assert len(endpoint.seen) == 1


# --- variables ----------------------------------------------------------------------------------------------------


def address(**told: str) -> Any:
    return address_of({f"OTEL_EXPORTER_OTLP_{name}": value for name, value in told.items()})


def test_without_variables_the_collector_is_on_this_machine() -> None:
    assert address().url.geturl() == "http://localhost:4318/v1/traces"
    assert (address().timeout_s, address().compression) == (10.0, "none")


@pytest.mark.parametrize(
    ("told", "url"),
    [
        ({"ENDPOINT": "https://c.example:9/base/"}, "https://c.example:9/base/v1/traces"),
        ({"ENDPOINT": "http://c", "TRACES_ENDPOINT": "http://[::1]:7/own?a=b"}, "http://[::1]:7/own?a=b"),
    ],
)
def test_an_endpoint_for_traces_is_taken_as_it_is(told: dict[str, str], url: str) -> None:
    assert address(**told).url.geturl() == url


def test_what_is_said_for_traces_comes_before_what_is_said_for_everything() -> None:
    found = address(TIMEOUT="5", TRACES_TIMEOUT="7", HEADERS="a=1", TRACES_HEADERS="b=2")
    assert (found.timeout_s, found.headers) == (7.0, (("b", "2"),))


@pytest.mark.parametrize(
    "told",
    [
        *({"ENDPOINT": value} for value in ("collector:4317", "grpc://c", "http://", "http://c:x", "http://c:0")),
        *({"TIMEOUT": value} for value in ("soon", "0", "-1", "inf", "nan")),
        *({"HEADERS": value} for value in ("a", "=b", "a=1,b")),
        {"COMPRESSION": "zstd"},
    ],
)
def test_a_variable_that_cannot_be_is_named(told: dict[str, str]) -> None:
    [name] = told
    with pytest.raises(CollectorError, match=f"OTEL_EXPORTER_OTLP_{name}"):
        address(**told)


@pytest.mark.parametrize("name", ["CERTIFICATE", "CLIENT_CERTIFICATE"])
def test_certificates_that_are_not_there_are_an_error(name: str) -> None:
    with pytest.raises(CollectorError, match=r"OTEL_EXPORTER_OTLP_CERTIFICATE.*No such file"):
        Collector(address(ENDPOINT="https://c", **{name: "/nowhere.pem"}), ENCODER)
