"""The live state that the reconciler and the data plane share: servers, who waits for them, and what went wrong.

Everything here is synchronous and runs on the event loop, so that a check and what follows from it are one step.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections import Counter, deque
from collections.abc import Callable
from random import Random

import msgspec

from sidecar.control.clock import Clock
from sidecar.control.events import Events
from sidecar.control.leases import Lease, RefusedError, Target, Waiters, closing, drained
from sidecar.control.live import LiveServer
from sidecar.control.measurements import Measurements
from sidecar.control.overrides import Overrides
from sidecar.control.tallies import Tallies
from sidecar.core.backoff import Fall, after
from sidecar.core.conditions import READY, not_ready
from sidecar.core.lifecycle import Cause, follow
from sidecar.core.manifest import Model, Variant
from sidecar.core.observed import Condition, Demand, Device, ExternalServer, Failure, Observed, ServerState, Status
from sidecar.core.reasons import failed

log = logging.getLogger(__name__)

# What is recorded of a transition. A stop by eviction is told as one.
_EVENTS = {
    Cause.START: "Started",
    Cause.BECAME_READY: "BecameReady",
    Cause.DRAIN: "Draining",
    Cause.STOP: "Stopping",
    Cause.FAILED: "StartFailed",
    Cause.EXITED: "Exited",
    Cause.GONE: "Stopped",
    Cause.GONE_TO_RETRY: "BackedOff",
    Cause.GONE_FOR_GOOD: "Failed",
    Cause.RESET: "Reset",
}
DEPARTED = 1000  # servers that nobody has been told of yet that they are gone
MOVE_S = 60.0  # for which a server that left only to come back is wanted without anybody asking
_TOLD_BY_TRANSITIONS = frozenset({"Starting", "Serving", "Draining", "Stopping", "Stopped", "NotProbed", "Drained"})


class Memories(msgspec.Struct, frozen=True, kw_only=True):
    """What outlives a server: what has happened, and what was measured. random: for jitter."""

    events: Events
    measurements: Measurements
    random: Callable[[], float] = Random().random  # noqa: S311 - waiting times that should not be in step are no secret


class Fleet:
    """All servers, all who wait, all failures. `changed` is set whenever the planner should look again."""

    def __init__(self, clock: Clock, memories: Memories | None = None) -> None:
        self.clock = clock
        memories = memories or Memories(events=Events(clock), measurements=Measurements(None))
        self.events = memories.events
        self.measurements = memories.measurements
        self.tallies = Tallies()
        self.overrides = Overrides(self.events)
        self._chance = memories.random
        self.changed = asyncio.Event()
        self.loads = asyncio.Event()  # set while something loads
        self.servers: dict[str, LiveServer] = {}
        self.waiting: dict[str, Waiters] = {}
        self.failures: dict[tuple[str, str], Failure] = {}  # by model and variant
        self.externals: dict[tuple[str, str, str], ExternalServer] = {}
        self.external_in_flight: Counter[tuple[str, str]] = Counter()  # by model and variant
        self._externally: dict[tuple[str, str], tuple[Variant, Target, Callable[[], None]]] = {}  # for their leases
        self.auto_started: set[str] = set()
        self.departed: deque[tuple[LiveServer, float]] = deque(maxlen=DEPARTED)  # and when, in unix time
        self.moving: dict[str, float] = {}  # stopped only to be started anew, until when that is worth it
        self.transitions = 0
        self.conditions: dict[str, tuple[Condition, ...]] = {}
        self.last_transition = 0.0
        self.closing = False
        self._server_of: dict[str, LiveServer] = {}
        self._gave_up: dict[str, tuple[float, float]] = {}  # since when the last who gave up had waited, and until when
        self._contended = False  # somebody waits for memory

    # --- servers ------------------------------------------------------------------------------------------------

    def server_of(self, model: str) -> LiveServer | None:
        """The model's server, in whatever state."""
        return self._server_of.get(model)

    def state_of(self, model: str, variant: str | None = None) -> ServerState:
        """Where the model is in its life (sidecar.core.lifecycle), or one of its variants: each fails for itself."""
        if server := self.server_of(model):
            return server.state
        failure = self.failure_of(model) if variant is None else self.failures.get((model, variant))
        if failure is None or failure.retry_at <= self.clock.monotonic():
            return ServerState.STOPPED
        return ServerState.FAILED if failure.retry_at == math.inf else ServerState.BACKOFF

    def add(self, server: LiveServer, why: str, *, adopted: bool = False) -> None:
        """A server is about to be started, or was taken over; its reservation stands from here on."""
        before = self.state_of(server.model, server.variant.name)  # one that was given up runs if it was found alive
        server.state = ServerState.STARTING if adopted else follow(before, Cause.START)
        self.servers[server.id] = self._server_of[server.model] = server
        self.auto_started.add(server.model)
        again = (server.model, server.variant.name) in self.failures
        self.tallies.started(server.model, server.variant.name, adopted=adopted, again=again)
        self.moving.pop(server.model, None)
        self.loads.set()
        self._moved(server, "Adopted" if adopted else _EVENTS[Cause.START], why)

    def move(self, server: LiveServer, cause: Cause, why: str = "") -> None:
        """Put a server into the state that follows. Raises TransitionError if there is none."""
        before, server.state = server.state, follow(server.state, cause)
        server.since = self.clock.monotonic()
        log.info("%s: %s -> %s (%s)", server.id, before.value, server.state.value, why or cause.value)
        evicted = cause is Cause.STOP and server.left_because == "Evicted"
        self._moved(server, "Evicted" if evicted else _EVENTS[cause], why)

    def drain(self, server: LiveServer, reason: str, why: str = "") -> None:
        """Close admission; what is in flight finishes. Nothing to do for one that leaves already."""
        if server.state in (ServerState.STARTING, ServerState.READY):
            server.left_because = reason
            if reason == "ManifestChanged" and server.state is ServerState.READY:
                self.send_back(server)
            self.move(server, Cause.DRAIN, why)

    def send_back(self, server: LiveServer) -> None:
        """The server leaves only to be started anew, if there is room when it is gone."""
        server.returns = True
        self.moving[server.model] = self.clock.monotonic() + MOVE_S

    def try_stop(self, server: LiveServer, reason: str, why: str = "") -> bool:
        """Close admission and stop the server, unless something is in flight: one step, nothing can come in between."""
        if server.in_flight:
            return False
        self.force_stop(server, reason, why)
        return True

    def force_stop(self, server: LiveServer, reason: str, why: str = "", cause: Cause = Cause.STOP) -> None:
        """Stop the server whatever is in flight: only a person, or the end of the sidecar, may ask for this."""
        server.left_because = server.left_because or reason
        if server.state is not ServerState.STOPPING:
            self.move(server, cause, why)
            self.tallies.stopped(server.model, server.variant.name, server.left_because)
        server.leave.set()

    def gone(self, server: LiveServer) -> None:
        """The server's process group is gone: its reservation is released."""
        failure = self.failures.get((server.model, server.variant.name))
        cause, why = Cause.GONE, ""
        if failure is not None and failure.server == server.id:
            cause = Cause.GONE_FOR_GOOD if failure.retry_at == math.inf else Cause.GONE_TO_RETRY
            why = failed(failure, self.clock.monotonic())
        self.move(server, cause, why)
        if server.returns:
            self.send_back(server)  # the time that it took to stop does not count
        del self.servers[server.id]
        if self._server_of.get(server.model) is server:
            del self._server_of[server.model]
        self.departed.append((server, self.clock.unix()))
        server.ended.set()

    def rename(self, server: LiveServer, model: str) -> None:
        """The manifests call the server's model otherwise now; it goes on as it is."""
        del self._server_of[server.model]
        self.events.record("Renamed", model=model, server=server.id, message=f"was {server.model}")
        log.info("%s: the model %s is called %s now", server.id, server.model, model)
        self.measurements.renamed(server.model, model)
        self.overrides.rename(server.model, model)
        server.model = model
        self._server_of[model] = server
        self.auto_started.add(model)
        self.changed.set()

    def _moved(self, server: LiveServer, event: str, why: str) -> None:
        self.last_transition = self.clock.monotonic()
        self.transitions += 1
        self.events.record(event, model=server.model, server=server.id, reason=server.left_because, message=why)
        self.changed.set()

    # --- failures -----------------------------------------------------------------------------------------------

    def failure_of(self, model: str) -> Failure | None:
        """The model's latest failure."""
        found = [failure for (of, _), failure in self.failures.items() if of == model]
        return max(found, key=lambda failure: failure.at, default=None)

    def failed(self, server: LiveServer, reason: str, message: str) -> None:
        """The server did not come up, or died. Nobody is refused here: another variant may do."""
        if server.state not in (ServerState.STARTING, ServerState.READY):
            log.info("%s: %s: %s, as it was leaving", server.id, reason, message)
            return  # it was told to go, so how it ends says nothing about the next one
        now = self.clock.monotonic()
        served = server.state is ServerState.READY
        fall = Fall(
            model=server.model,
            variant=server.variant.name,
            server=server.id,
            reason=reason,
            message=message,
            served_s=now - server.since if served else None,
        )
        key = (server.model, server.variant.name)
        self.tallies.failed(*key, reason)
        failure = self.failures[key] = after(self.failures.get(key), fall, now, self._chance())
        # At once, not with the next plan: whoever is refused now may look up why.
        ready = self._dated(server.model, not_ready(reason, failure.message))
        others = [one for one in self.conditions.get(server.model, ()) if one.type != READY]
        self.conditions[server.model] = (ready, *others)
        self.auto_started.discard(server.model)
        log.warning("%s: %s: %s", server.id, reason, failure.message)
        self.changed.set()

    def explain(self, server: LiveServer, message: str) -> None:
        """Say more about how the server ended."""
        server.last_words = message
        server.told.set()
        key = (server.model, server.variant.name)
        failure = self.failures.get(key)
        if failure is not None and failure.server == server.id:
            told = message.partition("; the last lines")[0]
            more = failure.message + message.removeprefix(told)
            self.failures[key] = msgspec.structs.replace(failure, message=more)

    def forgive(self, model: str, variant: str | None = None) -> None:
        """Forget the failures of a model, or of one variant: it has served, or has changed, or somebody wants a try."""
        for key in [key for key in self.failures if key[0] == model and variant in (None, key[1])]:
            if self.failures.pop(key).retry_at == math.inf:
                self.events.record(_EVENTS[Cause.RESET], model=model, message=f"variant {key[1]} gets a fresh try")
            self.changed.set()

    # --- leases -------------------------------------------------------------------------------------------------

    def admit(self, server: LiveServer, cold: bool) -> Lease:
        """A lease on a ready server."""
        server.in_flight += 1
        server.idle.clear()
        variant = server.variant
        target = Target(
            model=server.model,
            variant=variant.name,
            base_url=server.base_url,
            upstream_model=variant.model_name or server.model,
            origin="managed",
            api_key=variant.api_key,
            cold=(server.created_unix, server.ready_unix) if cold else None,
        )
        return Lease(server, target, self.released)

    def released(self, server: LiveServer) -> None:
        """A lease came back."""
        server.in_flight -= 1
        server.last_used = self.clock.monotonic()
        if server.in_flight == 0:
            server.idle.set()
        if server.in_flight == 0 and (self._contended or server.state is ServerState.DRAINING):
            self.changed.set()

    def wait(self, model: str, most: int | None = None, patience_s: float = 0.0) -> asyncio.Future[Lease]:
        """Join those who wait for a model: the demand that makes the planner start it. Raises RefusedError.

        most: how many may wait; None = no matter how many. patience_s: whoever comes back within that time goes on
        waiting, or clients with short timeouts of their own would never get their turn.
        """
        if self.closing:
            raise closing()
        if model in self.overrides.drained:
            raise drained(model)
        waiters = self.waiting.get(model)
        if waiters is None:
            now = self.clock.monotonic()
            since, left = self._gave_up.get(model, (now, now))
            waiters = Waiters(since if now - left <= patience_s else now)
        if most is not None and len(waiters.futures) >= most:
            message = f"{len(waiters.futures)} requests wait for it already (max_queue)"
            raise RefusedError("queue_full", message, None)
        self.waiting[model] = waiters
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        waiters.futures.add(future)
        self.changed.set()
        return future

    def give_up(self, model: str, future: asyncio.Future[Lease]) -> None:
        """Somebody waits no longer. A lease that was granted in the same moment goes back."""
        if future.done() and not future.cancelled() and future.exception() is None:
            future.result().release()
        waiters = self.waiting.get(model)
        if waiters is not None:
            waiters.futures.discard(future)
            if not waiters.futures:
                self._gave_up[model] = (waiters.since, self.clock.monotonic())
                del self.waiting[model]
                self.changed.set()

    def grant(self, server: LiveServer) -> None:
        """Give everybody who waits for the model a lease on its server, which has just become ready."""
        for future in self._waiters(server.model):
            future.set_result(self.admit(server, cold=True))

    def grant_external(self, model: str, variant: Variant) -> None:
        """Give everybody who waits for the model a lease on a server that somebody else runs."""
        for future in self._waiters(model):
            future.set_result(self.external_lease(model, variant))

    def healthy_external(self, name: str, model: Model) -> Variant | None:
        """The first url variant whose server is healthy."""
        return next(iter(self.healthy_externals(name, model)), None)

    def healthy_externals(self, name: str, model: Model) -> list[Variant]:
        """The url variants whose servers are healthy, in the manifest's order; none of a drained model."""
        if name in self.overrides.drained:
            return []
        return [
            variant
            for variant in model.variants
            if variant.external
            and (seen := self.externals.get((name, variant.name, variant.url))) is not None
            and seen.healthy
        ]

    def external_lease(self, model: str, variant: Variant) -> Lease:
        """A lease that holds nothing back, and is counted: what somebody else runs is never stopped."""
        key = (model, variant.name)
        self.external_in_flight[key] = self.external_in_flight.get(key, 0) + 1
        known = self._externally.get(key)
        if known is None or known[0] is not variant:
            given_back = functools.partial(self._given_back, key)
            known = self._externally[key] = (variant, Target.external(model, variant), given_back)
        return Lease(None, known[1], self.released, known[2])

    def _given_back(self, key: tuple[str, str]) -> None:
        left = self.external_in_flight.pop(key) - 1
        if left:
            self.external_in_flight[key] = left

    def _waiters(self, model: str) -> list[asyncio.Future[Lease]]:
        waiters = self.waiting.pop(model, None)
        self._gave_up.pop(model, None)
        return [future for future in waiters.futures if not future.done()] if waiters else []

    def refuse(self, model: str, error: RefusedError) -> None:
        """Tell everybody who waits for the model that there is no point."""
        for future in self._waiters(model):
            future.set_exception(RefusedError(error.code, str(error), error.retry_after_s))

    def close(self) -> None:
        """The sidecar is about to end: nobody waits any more."""
        self.closing = True
        for model in list(self.waiting):
            self.refuse(model, closing())

    # --- views --------------------------------------------------------------------------------------------------

    def observed(self, devices: tuple[Device, ...]) -> Observed:
        """Everything, as the planner takes it."""
        now = self.clock.monotonic()
        self.moving = {model: until for model, until in self.moving.items() if until > now}
        return Observed(
            devices=devices,
            servers=tuple(server.view() for server in self.servers.values()),
            externals=tuple(self.externals.values()),
            demands=tuple(
                Demand(model, waiters.since, len(waiters.futures)) for model, waiters in self.waiting.items()
            ),
            failures=tuple(self.failures.values()),
            auto_started=frozenset(self.auto_started),
            moving=frozenset(self.moving),
            measured=self.measurements.all(),
            pinned=frozenset(self.overrides.pinned),
            drained=frozenset(self.overrides.drained),
        )

    def note(self, conditions: dict[str, tuple[Condition, ...]]) -> None:
        """Take over the plan's conditions; `since` moves only when status or reason do."""
        self.conditions = {
            model: tuple(self._dated(model, condition) for condition in found) for model, found in conditions.items()
        }
        reasons = {one.reason for model in self.waiting for one in self.conditions.get(model, ())[:1]}
        self._contended = "WaitingForMemory" in reasons

    def ready(self, model: str) -> bool:
        """Whether the model's Ready condition is true."""
        return any(c.type == READY and c.status is Status.TRUE for c in self.conditions.get(model, ()))

    def _dated(self, model: str, condition: Condition) -> Condition:
        for before in self.conditions.get(model, ()):
            if before.type == condition.type and (before.status, before.reason) == (condition.status, condition.reason):
                return msgspec.structs.replace(condition, since=before.since)
        log.info("%s: %s=%s %s: %s", model, condition.type, condition.status.value, condition.reason, condition.message)
        if condition.reason not in _TOLD_BY_TRANSITIONS:
            self.events.record(
                "ConditionChanged", model=model, reason=condition.reason, message=condition.message.partition("\n")[0]
            )
        return msgspec.structs.replace(condition, since=self.clock.unix())
