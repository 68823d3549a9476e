"""Sends spans and metrics to an OpenTelemetry collector over OTLP/HTTP, as the OTEL_EXPORTER_OTLP_* variables say.

(opentelemetry.io/docs/specs/otlp/#otlphttp, .../specs/otel/protocol/exporter) As the SDK for Python does it, and not
the specification, a timeout is in seconds.
"""

from __future__ import annotations

import gzip
import http.client
import ssl
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from sidecar import __version__
from sidecar.mechanism.exports import Ended, ExportError
from sidecar.mechanism.otlp import Encoder

_PAUSES_S = (0.5, 1.0, 2.0, 4.0)  # between attempts, within the timeout
_TRY_AGAIN = frozenset((429, 502, 503, 504))
_BROKEN = (http.client.HTTPException, OSError)


Signal = Literal["traces", "metrics"]


class CollectorError(ValueError):
    """An OTEL_EXPORTER_OTLP_* variable says what cannot be."""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where the collector is, and how it is spoken to. compression: gzip, deflate or none. Files: PEM."""

    url: SplitResult
    headers: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 10.0
    compression: str = "none"
    authorities: str | None = None
    certificate: str | None = None
    key: str | None = None


def address_of(environment: Mapping[str, str], signal: Signal = "traces") -> Address:
    """What the variables say; those for the signal before those for everything. Raises CollectorError."""

    def told(name: str) -> str:
        own, common = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", f"OTEL_EXPORTER_OTLP_{name}"
        return environment.get(own, "").strip() or environment.get(common, "").strip()

    own = environment.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", "").strip()
    base = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip() or "http://localhost:4318"
    compression = told("COMPRESSION").lower() or "none"
    if compression not in ("none", "gzip", "deflate"):
        raise CollectorError(f"OTEL_EXPORTER_OTLP_COMPRESSION: {compression} is not one of none, gzip, deflate")
    return Address(
        url=_url(own or base.rstrip("/") + f"/v1/{signal}"),
        headers=_headers(told("HEADERS")),
        timeout_s=_seconds(told("TIMEOUT") or "10"),
        compression=compression,
        authorities=told("CERTIFICATE") or None,
        certificate=told("CLIENT_CERTIFICATE") or None,
        key=told("CLIENT_KEY") or None,
    )


def protocol_of(environment: Mapping[str, str], signal: Signal) -> str:
    """`http/protobuf` or `grpc`. Raises CollectorError."""
    own = environment.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "").strip()
    protocol = own or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL", "").strip() or "http/protobuf"
    if protocol not in ("http/protobuf", "grpc"):
        raise CollectorError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol} is not one of http/protobuf, grpc")
    return protocol


def _url(told: str) -> SplitResult:
    try:
        url = urlsplit(told)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise CollectorError(f"OTEL_EXPORTER_OTLP_ENDPOINT: {told} is not an http:// or https:// URL")
    return url


def _headers(told: str) -> tuple[tuple[str, str], ...]:
    """`name=value,...`, percent-encoded as in W3C Baggage."""
    found = []
    for item in filter(None, (item.strip() for item in told.split(","))):
        name, equals, value = item.partition("=")
        if not equals or not name.strip():
            raise CollectorError("OTEL_EXPORTER_OTLP_HEADERS: expected name=value, with commas between them")
        found.append((unquote(name.strip()), unquote(value.strip())))
    return tuple(found)


def _seconds(told: str) -> float:
    try:
        seconds = float(told)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < float("inf"):
        raise CollectorError(f"OTEL_EXPORTER_OTLP_TIMEOUT: {told} is not a number of seconds above 0")
    return seconds


class Sender:
    """Brings requests to the collector. It keeps one connection."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._stopped = threading.Event()
        self._tls = _tls(address) if address.url.scheme == "https" else None
        self._connection: http.client.HTTPConnection | None = None
        self._path = address.url.path or "/"
        if address.url.query:
            self._path += f"?{address.url.query}"
        self._headers = {
            "content-type": "application/x-protobuf",
            "user-agent": f"sidecar/{__version__}",
            **({"content-encoding": address.compression} if address.compression != "none" else {}),
            **dict(address.headers),
        }

    def send(self, request: bytes) -> None:
        """Send it, and again while that may help and there is time. Raises ExportError."""
        body = _compressed(request, self._address.compression)
        until = time.monotonic() + self._address.timeout_s
        for pause_s in (*_PAUSES_S, None):
            why = self._attempt(body)
            if why is None:
                return
            if pause_s is None or time.monotonic() + pause_s > until or self._stopped.wait(pause_s):
                raise ExportError(f"{self._address.url.geturl()}: {why}")

    def stop(self) -> None:
        """Try nothing again from now on."""
        self._stopped.set()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _attempt(self, body: bytes) -> str | None:
        """Why it should be tried again; None if they have arrived. Raises ExportError if that would not help."""
        reused = self._connection is not None
        try:
            try:
                status = self._post(body)
            except _BROKEN:
                if not reused:
                    raise
                status = self._post(body)  # the collector had closed what was idle
        except _BROKEN as error:
            return str(error) or type(error).__name__
        if status in _TRY_AGAIN:
            return f"it answers {status}"
        if not 200 <= status < 300:
            raise ExportError(f"{self._address.url.geturl()}: it answers {status}")
        return None

    def _post(self, body: bytes) -> int:
        connection = self._connection or self._connect()
        try:
            connection.request("POST", self._path, body, self._headers)
            response = connection.getresponse()
            response.read()
        except BaseException:
            self.close()
            raise
        return response.status

    def _connect(self) -> http.client.HTTPConnection:
        url, timeout_s = self._address.url, self._address.timeout_s
        host = url.hostname or ""
        if self._tls is None:
            self._connection = http.client.HTTPConnection(host, url.port, timeout=timeout_s)
        else:
            self._connection = http.client.HTTPSConnection(host, url.port, timeout=timeout_s, context=self._tls)
        return self._connection


class Collector(Sender):
    """An exporter of spans (exports.Exporter)."""

    def __init__(self, address: Address, encoder: Encoder) -> None:
        super().__init__(address)
        self._encoder = encoder

    def export(self, spans: Sequence[Ended]) -> None:
        """Send them, and again while that may help and there is time. Raises ExportError."""
        self.send(self._encoder.request(spans))


def _compressed(body: bytes, compression: str) -> bytes:
    match compression:
        case "gzip":
            return gzip.compress(body, 1)
        case "deflate":
            return zlib.compress(body, 1)
        case _:
            return body


def _tls(address: Address) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=address.authorities)
        if address.certificate:
            context.load_cert_chain(address.certificate, address.key)
    except OSError as error:  # ssl.SSLError is one
        raise CollectorError(f"OTEL_EXPORTER_OTLP_CERTIFICATE, CLIENT_CERTIFICATE, CLIENT_KEY: {error}") from None
    return context
