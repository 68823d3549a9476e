"""Leases on models: at once where a server is ready, after a cold start where none is, refused where that is no use."""

from __future__ import annotations

import asyncio

from sidecar.control.fleet import Fleet, Lease, RefusedError
from sidecar.core.manifest import Model
from sidecar.core.observed import ServerState


class Activator:
    """Hands out leases."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def try_acquire(self, name: str, model: Model) -> Lease | None:
        """A lease if there is a server that can serve this instant."""
        server = self._fleet.server_of(name)
        if server is not None and server.state is ServerState.READY:
            return self._fleet.admit(server, cold=False)
        variant = self._fleet.healthy_external(name, model)
        return None if variant is None else self._fleet.external_lease(name, variant)

    async def acquire(self, name: str, model: Model) -> Lease:
        """A lease, waiting for a cold start if need be, for `queue_timeout` at most. Raises RefusedError."""
        lease = self.try_acquire(name, model)
        if lease is not None:
            return lease
        future = self._fleet.wait(name)
        try:
            async with asyncio.timeout(model.queue_timeout):
                return await asyncio.shield(future)
        except TimeoutError:
            self._fleet.give_up(name, future)
            raise self._late(name, model) from None
        except asyncio.CancelledError:
            self._fleet.give_up(name, future)
            raise

    def _late(self, name: str, model: Model) -> RefusedError:
        why = "; ".join(condition.message for condition in self._fleet.conditions.get(name, ()) if condition.message)
        message = f"the model did not get its turn within queue_timeout ({model.queue_timeout:g} s)"
        return RefusedError("queue_timeout", f"{message}: {why}" if why else message, 10.0)
