"""Sends metrics where the OTEL_* variables say, every so often. By default nowhere: who wants them comes for them.

(opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables, .../metrics/sdk_exporters/otlp)
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol

import msgspec
from opentelemetry.sdk.metrics.export import MetricExporter as OtelExporter

from sidecar.mechanism.collector import CollectorError, Sender, address_of, protocol_of
from sidecar.mechanism.deltas import Deltas
from sidecar.mechanism.metrics import Family
from sidecar.mechanism.otlp_metrics import MetricsEncoder, Times
from sidecar.mechanism.sdk_metrics import SdkMetrics
from sidecar.mechanism.service import SCOPE, service

log = logging.getLogger(__name__)

CLOSE_S = 5.0
TELL_EVERY_S = 60.0

Collect = Callable[[], Awaitable[Sequence[Family]]]

_GROUP = "opentelemetry_metrics_exporter"
_PREFERENCE = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
_AGGREGATION = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"


class MetricExportError(ValueError):
    """The OTEL_* variables ask for what is not there, or cannot be."""


class MetricExporter(Protocol):
    """Where metrics go. Called by one thread at a time."""

    def export(self, families: Sequence[Family], times: Times) -> None:
        """Deliver them. Raises whatever it likes."""

    def stop(self) -> None:
        """Closing has begun: an `export` that waits, to try again, gives up. Called by another thread."""

    def close(self) -> None:
        """Give back what it holds."""


class Schedule(msgspec.Struct, frozen=True):
    """OTEL_METRIC_EXPORT_INTERVAL and OTEL_METRIC_EXPORT_TIMEOUT, in seconds."""

    interval_s: float = 60.0
    timeout_s: float = 30.0


class OtlpMetrics:
    """Sends them to a collector over OTLP/HTTP. deltas: they are told as what has come since; None = as totals."""

    def __init__(self, sender: Sender, encoder: MetricsEncoder, deltas: Deltas | None = None) -> None:
        self._sender = sender
        self._encoder = encoder
        self._deltas = deltas
        self.stop = sender.stop
        self.close = sender.close

    def export(self, families: Sequence[Family], times: Times) -> None:
        """Send them. Raises ExportError."""
        if self._deltas is None:
            self._sender.send(self._encoder.request(families, times))
            return
        told, span = self._deltas.since(families, times)
        self._sender.send(self._encoder.request(told, span))
        self._deltas.delivered(families, times)


class Push:
    """Collects and exports every so often, from `run` until `close`. failed: exports that came to nothing."""

    def __init__(self, exporters: Sequence[MetricExporter], schedule: Schedule) -> None:
        self.failed = 0
        self._exporters = exporters
        self._schedule = schedule
        self._began = time.time_ns()
        self._busy: dict[int, asyncio.Future[None]] = {}  # by the exporter's place
        self._tell_at = 0.0  # monotonic seconds

    @property
    def busy(self) -> bool:
        """Whether an exporter has not ended yet."""
        return bool(self._busy)

    async def run(self, collect: Collect) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(self._schedule.interval_s)
            try:
                await self.once(collect, self._schedule.timeout_s)
            except Exception:
                self.failed += 1
                log.exception("metrics cannot be collected")

    async def close(self, collect: Collect) -> None:
        """Export once more, within a deadline, and stop. Never raises."""
        for exporter in self._exporters:
            exporter.stop()
        if self._busy:
            await asyncio.wait(self._busy.values(), timeout=CLOSE_S)
        try:
            await self.once(collect, CLOSE_S)
        except Exception:
            log.exception("the last metrics cannot be collected")
        for place, exporter in enumerate(self._exporters):
            await self._within(CLOSE_S, place, exporter.close)

    async def once(self, collect: Collect, timeout_s: float) -> None:
        """Collect, and export to all. Raises what `collect` raises."""
        families = await collect()
        times = Times(self._began, time.time_ns())
        exports = [partial(exporter.export, families, times) for exporter in self._exporters]
        await asyncio.gather(*(self._within(timeout_s, place, export) for place, export in enumerate(exports)))

    async def _within(self, timeout_s: float, place: int, work: Callable[[], None]) -> None:
        """Do it in a thread of its own, which the end of the program does not wait for."""
        if place in self._busy:
            self._lose("the one before has not ended yet")
            return
        done = self._busy[place] = asyncio.get_running_loop().create_future()
        threading.Thread(target=_work, args=(work, done), name="sidecar-metrics", daemon=True).start()
        done.add_done_callback(lambda _: self._busy.pop(place, None))
        finished, _ = await asyncio.wait((done,), timeout=timeout_s)
        if not finished:
            done.add_done_callback(_forget)
            self._lose(f"it has not ended within {timeout_s:g} s")
        elif (error := done.exception()) is not None:
            self._lose(str(error) or type(error).__name__)

    def _lose(self, why: str) -> None:
        self.failed += 1
        now = time.monotonic()
        if now >= self._tell_at:
            self._tell_at = now + TELL_EVERY_S
            log.warning("metrics are not exported, %d times so far: %s", self.failed, why)


def _work(work: Callable[[], None], done: asyncio.Future[None]) -> None:
    error: Exception | None = None
    try:
        work()
    except Exception as raised:  # noqa: BLE001 - an exporter may raise anything; it is told in the log
        error = raised
    try:
        done.get_loop().call_soon_threadsafe(_settle, done, error)
    except RuntimeError:
        log.debug("an export has ended after the sidecar")


def _settle(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


def _forget(done: asyncio.Future[None]) -> None:
    """Nobody waits any more; an error that nobody looks at would be complained about."""
    if not done.cancelled():
        done.exception()


# --- what the variables say ---------------------------------------------------------------------------------------


def push_of(environment: Mapping[str, str]) -> Push | None:
    """What OTEL_METRICS_EXPORTER asks for (`none`, `prometheus`, `console`, `otlp`). Raises MetricExportError.

    `prometheus` is what `/metrics` is anyway. None: there is nothing to be sent.
    """
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    told = "none" if disabled else environment.get("OTEL_METRICS_EXPORTER", "none")
    names = [name.strip() for name in told.split(",")]
    wanted = [name for name in names if name not in ("", "none", "prometheus")]
    if not wanted:
        return None
    schedule = schedule_of(environment)
    return Push([_exporter(name, environment, schedule) for name in wanted], schedule)


def schedule_of(environment: Mapping[str, str]) -> Schedule:
    """In the variables, milliseconds. Raises MetricExportError."""
    default = Schedule()
    interval_s = _seconds(environment, "OTEL_METRIC_EXPORT_INTERVAL", default.interval_s)
    return Schedule(interval_s, _seconds(environment, "OTEL_METRIC_EXPORT_TIMEOUT", default.timeout_s))


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    told = environment.get(name, "").strip()
    if not told:
        return default
    if not (told.isascii() and told.isdecimal()) or int(told) == 0:
        raise MetricExportError(f"{name}: {told} is not a number of milliseconds above 0")
    return int(told) / 1000


def _exporter(name: str, environment: Mapping[str, str], schedule: Schedule) -> MetricExporter:
    deltas = None
    if name == "otlp":
        deltas = _deltas(environment)
        try:
            if protocol_of(environment, "metrics") == "http/protobuf":
                address = address_of(environment, "metrics")
                address = msgspec.structs.replace(address, timeout_s=min(address.timeout_s, schedule.timeout_s))
                return OtlpMetrics(Sender(address), MetricsEncoder(service(), SCOPE), deltas)
        except CollectorError as error:
            raise MetricExportError(str(error)) from None
        name = "otlp_proto_grpc"
    found: list[EntryPoint] = list(entry_points(group=_GROUP, name=name))
    if not found:
        known = ", ".join(sorted({"none", "otlp", "prometheus", *(one.name for one in entry_points(group=_GROUP))}))
        extra = " (install opentelemetry-exporter-otlp-proto-grpc)" if name == "otlp_proto_grpc" else ""
        raise MetricExportError(f"OTEL_METRICS_EXPORTER: there is no exporter {name}{extra}; known: {known}")
    exporter: OtelExporter = found[0].load()()
    return SdkMetrics(exporter, service(), SCOPE, schedule.timeout_s, deltas)


def _deltas(environment: Mapping[str, str]) -> Deltas | None:
    """For OTLP. `lowmemory` asks for the same as `delta` of all that is counted here."""
    preference = environment.get(_PREFERENCE, "").strip().lower() or "cumulative"
    if preference not in ("cumulative", "delta", "lowmemory"):
        raise MetricExportError(f"{_PREFERENCE}: {preference} is not one of cumulative, delta, lowmemory")
    aggregation = environment.get(_AGGREGATION, "").strip().lower() or "explicit_bucket_histogram"
    if aggregation != "explicit_bucket_histogram":
        raise MetricExportError(
            f"{_AGGREGATION}: {aggregation} is not explicit_bucket_histogram, which is all there is"
        )
    return None if preference == "cumulative" else Deltas()
