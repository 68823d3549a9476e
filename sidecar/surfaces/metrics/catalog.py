"""All metrics, and all of them at this moment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator

from sidecar.control.controller import Controller
from sidecar.control.engines import Engines
from sidecar.core.sourcing import SourceReport
from sidecar.mechanism import request_metrics
from sidecar.mechanism.exposition import SLICE
from sidecar.mechanism.metric_exports import Push
from sidecar.mechanism.metrics import Family, Labels, Point, Spread
from sidecar.mechanism.own_usage import OwnUsage, own_usage
from sidecar.mechanism.request_sums import RequestSums
from sidecar.mechanism.telemetry import Telemetry
from sidecar.surfaces import source_api
from sidecar.surfaces.dataplane.plane import Plane
from sidecar.surfaces.metrics import devices, engines, models, plugins, program, source

log = logging.getLogger(__name__)

METRICS = (
    *request_metrics.METRICS,
    *models.METRICS,
    *engines.METRICS,
    *devices.METRICS,
    *plugins.METRICS,
    *source.METRICS,
    *program.METRICS,
)


class Metrics:
    """What there is to tell. `refresh` first; then `families` is of one moment, as far as it is read at once."""

    def __init__(self, controller: Controller, plane: Plane, telemetry: Telemetry, push: Push | None = None) -> None:
        self._controller = controller
        self._plane = plane
        self._telemetry = telemetry
        self._push = push
        self._engines = Engines(controller.fleet, controller.client)
        self._requests: RequestSums | None = None
        self._usage: OwnUsage | None = None
        self._source: SourceReport | None = None

    async def refresh(self) -> None:
        """Find out what has to be asked for, or added up: by a moment at most, and while the event loop turns."""
        self._usage = await asyncio.to_thread(_own_usage)
        self._source = await source_api.report(self._controller)
        await self._engines.refresh(self._controller.declaration)
        for sums in self._plane.meter.steps():
            if sums is None:
                await asyncio.sleep(0)
            else:
                self._requests = sums

    def families(self) -> Iterator[Family]:
        """Everything, one metric at a time. No series comes twice, which receivers would not take."""
        return (Family(family.metric, _distinct(family.series)) for family in self._families())

    def _families(self) -> Iterator[Family]:
        controller, plane = self._controller, self._plane
        if self._requests is not None:
            yield from self._requests.families()
        yield from models.families(controller)
        yield from engines.families(self._engines.numbers())
        yield from devices.families(controller)
        yield from plugins.families(controller)
        if self._source is not None:
            yield from source.families(controller.revisions, self._source)
        losses = program.Losses(self._telemetry.lost, self._push.failed if self._push is not None else 0)
        yield from program.families(controller, plane, losses, self._usage)

    async def snapshot(self) -> list[Family]:
        """Everything, held fast. The event loop turns in between."""
        await self.refresh()
        held: list[Family] = []
        for family in self.families():
            series: list[Point | Spread] = []
            for one in family.series:
                series.append(one)
                if len(series) % SLICE == 0:
                    await asyncio.sleep(0)
            held.append(Family(family.metric, series))
            await asyncio.sleep(0)
        return held

    async def close(self) -> None:
        """Ask nobody any more."""
        await self._engines.close()


def _distinct(series: Iterable[Point | Spread]) -> Iterator[Point | Spread]:
    seen: set[Labels] = set()
    for one in series:
        if one.labels not in seen:
            seen.add(one.labels)
            yield one


def _own_usage() -> OwnUsage | None:
    try:
        return own_usage()
    except OSError as error:  # such as that no more files may be opened: then all else is wanted most
        log.warning("what the sidecar itself takes is not known: %s", error)
        return None
