"""What a plan says of each model: why it is ready, or is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import msgspec

from sidecar.core.manifest import Model
from sidecar.core.observed import Condition, ExternalServer, Observed, Server, ServerState, Status
from sidecar.core.placement import Inventory
from sidecar.core.reasons import Reasons, too_low
from sidecar.core.room import Room

READY = "Ready"  # the type of the condition that every model has
MEMORY = "MemoryAsDeclared"  # there, and false, when a variant has taken more than it declares

_STATES = {ServerState.STARTING: "Starting", ServerState.DRAINING: "Draining"}


class Conditions:
    """The conditions of one planning. said: of the models about which something was decided."""

    def __init__(self, observed: Observed, now: float, inventory: Inventory, room: Room, why: Reasons) -> None:
        self.said: dict[str, Condition] = {}
        self.server_of = {server.model: server for server in observed.servers}
        self.last_failure = {one.model: one for one in sorted(observed.failures, key=lambda one: (one.at, one.variant))}
        self._probes: dict[str, list[ExternalServer]] = {}
        for probed in observed.externals:
            self._probes.setdefault(probed.model, []).append(probed)
        self._wanted = {demand.model for demand in observed.demands}
        self._measured = observed.measured
        self._now = now
        self._inventory = inventory
        self._room = room
        self._why = why

    def say(self, name: str, reason: str, message: str) -> None:
        """It is not ready, and why."""
        self.said[name] = not_ready(reason, message)

    def say_at_rest(self, models: Mapping[str, Model], draining: Set[str]) -> None:
        """What holds of all other models. draining: the servers that this plan drains."""
        for name, model in models.items():
            if name not in self.said:
                self.said[name] = self._at_rest(name, model, draining)

    def all(self, models: Iterable[str], revision: str) -> dict[str, tuple[Condition, ...]]:
        """Everything that is to be said of the models, as of a revision of the manifests."""
        found = {name: [self.said[name]] for name in models}
        for measured in self._measured:
            if measured.model in found and (message := too_low(measured)):
                found[measured.model].append(
                    Condition(type=MEMORY, status=Status.FALSE, reason="DeclaredTooLow", message=message)
                )
        return {
            name: tuple(msgspec.structs.replace(one, revision=revision) for one in conditions)
            for name, conditions in found.items()
        }

    def external(self, name: str) -> bool | str | None:
        """True: a url variant is healthy. Text: why none is. None: there is none, or none was probed yet."""
        probes = self._probes.get(name)
        if not probes:
            return None
        if any(probed.healthy for probed in probes):
            return True
        return "; ".join(f"{probed.variant}: {probed.message}" for probed in probes)

    def _at_rest(self, name: str, model: Model, draining: Set[str]) -> Condition:
        external = self.external(name)
        if external is True:
            return Condition(type=READY, status=Status.TRUE, reason="Serving", message="an external server is healthy")
        failure = self.last_failure.get(name)
        if server := self.server_of.get(name):
            if failure and failure.server == server.id:
                return not_ready(failure.reason, failure.message)  # what is left of it is being stopped
            return self._of_server(server, draining)
        if failure and (failure.retry_at > self._now or name not in self._wanted):
            return not_ready(failure.reason, failure.message)
        variants = [variant for variant in model.variants if not variant.external]
        if not variants:
            return not_ready("ExternalUnhealthy", external) if external else not_ready("NotProbed", "not probed yet")
        if not self._why.fits_machine(variants):
            reason = self._why.hopeless(variants)
            return not_ready(reason or "DeviceUnavailable", "; ".join(map(self._why.shortage, variants)))
        return not_ready("Stopped", "starts on demand")

    def _of_server(self, server: Server, draining: Set[str]) -> Condition:
        text = f"variant {server.variant} on {self._inventory.labels(server.reserved_mb)}"
        if server.state is ServerState.READY and not self._room.leaves(server):
            return Condition(type=READY, status=Status.TRUE, reason="Serving", message=text)
        if server.id in draining:
            return not_ready("Draining", text)
        return not_ready(_STATES.get(server.state, "Stopping"), text)


def not_ready(reason: str, message: str) -> Condition:
    """A Ready condition that is false."""
    return Condition(type=READY, status=Status.FALSE, reason=reason, message=message)
