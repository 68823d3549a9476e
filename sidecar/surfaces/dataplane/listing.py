"""Answers a request for the list of models."""

from __future__ import annotations

import asyncio
import logging

from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.dataplane.incoming import Incoming
from sidecar.surfaces.dataplane.plane import Plane
from sidecar.surfaces.dataplane.wire import Wire

log = logging.getLogger(__name__)


class ListingCall:
    """One request for the list (`turn.Answering`)."""

    def __init__(self, plane: Plane, incoming: Incoming, wire: Wire) -> None:
        self._plane = plane
        self._incoming = incoming
        self._wire = wire
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Answer it."""
        self._task = self._plane.loop.create_task(self._answer())
        self._task.add_done_callback(self._ended)

    def left(self) -> None:
        """The client has gone."""
        if self._task is not None:
            self._task.cancel()

    def slow(self, paused: bool) -> None:
        """The answer is short."""

    def cut_off(self, error: ApiError) -> None:
        """End it now."""
        self.left()
        self._refuse(error)

    async def _answer(self) -> None:
        generation = self._plane.generation
        generation.enter()
        try:
            status, body = await self._plane.models.answer(self._incoming, generation)
            self._wire.answer(status, ((b"content-type", b"application/json"),), body)
        except ApiError as error:
            self._refuse(error)
        except Exception:
            log.exception("the list of models cannot be told", extra={"per_request": True})
            self._refuse(ApiError(500, "internal_error", "the sidecar failed on this request; its log says how"))
        finally:
            generation.leave()

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._plane.listed += 1

    def _refuse(self, error: ApiError) -> None:
        if not self._wire.begun:
            self._wire.answer(error.status, error.response_headers(), error.body())
