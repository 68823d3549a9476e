"""Leases on models: at once where a server is ready, after a cold start where none is, refused where that is no use."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from sidecar.control.fleet import Fleet
from sidecar.control.leases import Lease, RefusedError
from sidecar.core.manifest import Model, Variant
from sidecar.core.observed import ServerState

LEAST_S, MOST_S = 1.0, 300.0  # of what clients are told to wait before they ask again


class Activator:
    """Hands out leases."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def try_acquire(self, name: str, model: Model, tried: Collection[str] = ()) -> Lease | None:
        """A lease if there is a server that can serve this instant.

        tried: variants that did not answer; others that somebody else runs come before them.
        """
        server = self._fleet.server_of(name)
        if server is not None and server.state is ServerState.READY:
            return self._fleet.admit(server, cold=False)
        variant = self._external(name, model, tried) if name not in self._fleet.overrides.drained else None
        return self._fleet.external_lease(name, variant) if variant is not None else None

    async def acquire(self, name: str, model: Model, *, bounded: bool = True) -> Lease:
        """A lease, waiting for its turn and a cold start if need be. Raises RefusedError.

        At most `max_queue` requests wait (unless not `bounded`), each for `queue_timeout` at most.
        """
        lease = self.try_acquire(name, model)
        if lease is not None:
            return lease
        future = self._join(name, model, bounded)
        try:
            async with asyncio.timeout(model.queue_timeout):
                return await asyncio.shield(future)
        except TimeoutError:
            self._fleet.give_up(name, future)
            raise self._late(name, model) from None
        except asyncio.CancelledError:
            self._fleet.give_up(name, future)
            raise
        finally:
            # If it was refused, the traceback leads here: whole requests would be left to the garbage collector.
            del future

    def wait_estimate_s(self, name: str, model: Model) -> float:
        """When asking again may be worth it, from what loads of the model have taken: a guess, within bounds."""
        now = self._fleet.clock.monotonic()
        server = self._fleet.server_of(name)
        managed = [variant for variant in model.variants if not variant.external]
        variant = server.variant if server else managed[0] if managed else None
        load_s = self._fleet.measurements.load_estimate_s(name, variant) if variant else LEAST_S
        waiting = self._fleet.waiting.get(name)
        if server is not None and server.state is ServerState.STARTING:
            load_s -= now - server.since
        elif server is None and waiting is not None:
            load_s += max(0.0, waiting.since + model.max_wait - now)  # its turn has not come yet
        return min(MOST_S, max(LEAST_S, load_s))

    def _external(self, name: str, model: Model, tried: Collection[str]) -> Variant | None:
        """What `healthy_externals` has first of those that were not tried; else first of all. It makes no list."""
        externals, found = self._fleet.externals, None
        for variant in model.variants:
            seen = externals.get((name, variant.name, variant.url))
            if seen is None or not seen.healthy:
                continue
            if variant.name not in tried:
                return variant
            found = found or variant
        return found

    def _join(self, name: str, model: Model, bounded: bool) -> asyncio.Future[Lease]:
        try:
            return self._fleet.wait(name, model.max_queue if bounded else None, model.max_wait)
        except RefusedError as error:
            if error.code != "queue_full":
                raise
            raise RefusedError(error.code, str(error), self.wait_estimate_s(name, model)) from None

    def _late(self, name: str, model: Model) -> RefusedError:
        conditions = self._fleet.conditions.get(name, ())
        why = "; ".join(found.message for found in conditions[:1] if found.message)
        message = f"the model did not get its turn within queue_timeout ({model.queue_timeout:g} s)"
        text = f"{message}: {why}" if why else message
        return RefusedError("queue_timeout", text, self.wait_estimate_s(name, model))
