"""The live state that the reconciler and the data plane share: servers, who waits for them, and what went wrong.

Everything here is synchronous and runs on the event loop, so that a check and what follows from it are one step.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from typing import Literal

import msgspec

from plugin_sdk import Secret
from sidecar.control.clock import Clock
from sidecar.core.manifest import Model, Variant
from sidecar.core.observed import (
    Condition,
    Demand,
    Device,
    ExternalServer,
    Failure,
    Observed,
    Server,
    ServerState,
    Status,
)
from sidecar.core.plan import Start
from sidecar.core.planner import READY
from sidecar.mechanism.journal import Record
from sidecar.mechanism.runner import ServerProcess

log = logging.getLogger(__name__)

Origin = Literal["managed", "external"]


class RefusedError(Exception):
    """The model cannot be had now. code: for programs. retry_after_s: when it is worth asking again, if ever."""

    def __init__(self, code: str, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


class LiveServer:
    """A server from reservation to confirmed end."""

    def __init__(self, server_id: str, start: Start, variant: Variant, clock: Clock) -> None:
        self.id = server_id
        self.model = start.model
        self.variant = variant
        self.fingerprint = variant.fingerprint()
        self.devices = start.devices
        self.reserved_mb = start.reserved_mb
        self.observed_mb: dict[str, int] = {}
        self.state = ServerState.STARTING
        self.in_flight = 0
        self.port = 0
        self.process: ServerProcess | None = None
        self.leave = asyncio.Event()  # set: stop it, whatever state it is in
        self.left_because = ""
        self.last_words = ""  # how it ended, when it ended by itself, with the last lines of its output
        self.told = asyncio.Event()  # set when there are last words
        self.idle = asyncio.Event()  # set while nothing is in flight
        self.idle.set()
        self.kept = False  # it outlives this sidecar
        self.ended = asyncio.Event()  # set when its process group is gone
        self.created_unix = clock.unix()
        self.ready_unix = 0.0
        self.since = self.last_used = clock.monotonic()

    @property
    def base_url(self) -> str:
        """Where the server listens."""
        return f"http://127.0.0.1:{self.port}"

    def record(self) -> Record:
        """The server as it is written down."""
        process = self.process
        return Record(
            id=self.id,
            model=self.model,
            variant=self.variant.name,
            fingerprint=self.fingerprint,
            devices=self.devices,
            reserved_mb=self.reserved_mb,
            port=self.port,
            pid=process.pid if process else 0,
            started=process.started if process else 0,
            created_unix=self.created_unix,
        )

    def view(self) -> Server:
        """The server as the planner sees it."""
        return Server(
            id=self.id,
            model=self.model,
            variant=self.variant.name,
            fingerprint=self.fingerprint,
            state=self.state,
            reserved_mb=self.reserved_mb,
            observed_mb=self.observed_mb,
            in_flight=self.in_flight,
            since=self.since,
            last_used=self.last_used,
        )


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request goes. cold: unix seconds from start to ready of a server that the request had to wait for."""

    model: str
    variant: str
    base_url: str
    upstream_model: str
    origin: Origin
    api_key: Secret | None = None
    cold: tuple[float, float] | None = None


class Lease:
    """The right to use a server: while it is held, the server is busy and will not be stopped. Release it once."""

    __slots__ = ("_fleet", "_server", "target")

    def __init__(self, fleet: Fleet, server: LiveServer | None, target: Target) -> None:
        self._fleet = fleet
        self._server = server
        self.target = target

    async def last_words(self) -> str:
        """How the server ended, if it has just ended by itself: it takes a moment until that is known."""
        if self._server is None:
            return ""
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await self._server.told.wait()
        except TimeoutError:
            return ""  # the connection broke, the server lives
        return self._server.last_words

    def release(self) -> None:
        """Give the server back. Further calls do nothing."""
        if self._server is not None:
            server, self._server = self._server, None
            self._fleet.released(server)


class Waiters:
    """Those who wait for one model, since when the first of them came."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.futures: set[asyncio.Future[Lease]] = set()


class Fleet:
    """All servers, all who wait, all failures. `changed` is set whenever the planner should look again."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.changed = asyncio.Event()
        self.servers: dict[str, LiveServer] = {}
        self.waiting: dict[str, Waiters] = {}
        self.failures: dict[str, Failure] = {}
        self.externals: dict[tuple[str, str, str], ExternalServer] = {}
        self.auto_started: set[str] = set()
        self.conditions: dict[str, tuple[Condition, ...]] = {}
        self.last_transition = 0.0
        self.closing = False

    # --- servers ------------------------------------------------------------------------------------------------

    def server_of(self, model: str) -> LiveServer | None:
        """The model's server, in whatever state."""
        return next((server for server in self.servers.values() if server.model == model), None)

    def move(self, server: LiveServer, state: ServerState) -> None:
        """Put a server into a state."""
        log.info("%s: %s -> %s", server.id, server.state.value, state.value)
        server.state = state
        server.since = self.last_transition = self.clock.monotonic()
        self.changed.set()

    def try_stop(self, server: LiveServer, reason: str) -> bool:
        """Close admission and stop the server, unless something is in flight: one step, nothing can come in between."""
        if server.in_flight:
            return False
        self.force_stop(server, reason)
        return True

    def force_stop(self, server: LiveServer, reason: str) -> None:
        """Stop the server whatever is in flight: only a person, or the end of the sidecar, may ask for this."""
        server.left_because = server.left_because or reason
        if server.state is not ServerState.STOPPING:
            self.move(server, ServerState.STOPPING)
        server.leave.set()

    def gone(self, server: LiveServer) -> None:
        """The server's process group is gone: its reservation is released."""
        del self.servers[server.id]
        server.ended.set()
        self.last_transition = self.clock.monotonic()
        self.changed.set()

    def failed(self, server: LiveServer, reason: str, message: str) -> None:
        """The server did not come up, or died.

        A crash loop waits longer each time; one that had served may be tried again at once.
        """
        now = self.clock.monotonic()
        before = self.failures.get(server.model)
        served = server.state is ServerState.READY
        stable = served and now - server.since >= STABLE_S
        count = 1 if before is None or stable else before.count + 1
        delay = 0.0 if served and count == 1 else min(BACKOFF_MOST_S, 2.0 ** (count - 1))
        if count >= ATTEMPTS:
            delay = math.inf
            message = f"given up after {count} attempts, until its manifest changes or somebody starts it: {message}"
        self.failures[server.model] = Failure(
            model=server.model, server=server.id, reason=reason, message=message, count=count, retry_at=now + delay
        )
        # At once, not with the next plan: whoever is refused now may look up why.
        failed = Condition(type=READY, status=Status.FALSE, reason=reason, message=message)
        self.conditions[server.model] = (self._dated(server.model, failed),)
        self.auto_started.discard(server.model)
        log.warning("%s: %s: %s", server.id, reason, message)
        if not served:
            self.refuse(server.model, RefusedError(code_of(reason), message, delay if delay < math.inf else None))

    def explain(self, server: LiveServer, message: str) -> None:
        """Say more about how the server ended."""
        server.last_words = message
        server.told.set()
        failure = self.failures.get(server.model)
        told = message.partition("; the last lines")[0]
        if failure is not None and failure.message.endswith(told):  # it may be of another attempt
            given_up = failure.message.removesuffix(told)
            self.failures[server.model] = msgspec.structs.replace(failure, message=given_up + message)

    # --- leases -------------------------------------------------------------------------------------------------

    def admit(self, server: LiveServer, cold: bool) -> Lease:
        """A lease on a ready server."""
        server.in_flight += 1
        server.idle.clear()
        variant = server.variant
        return Lease(
            self,
            server,
            Target(
                model=server.model,
                variant=variant.name,
                base_url=server.base_url,
                upstream_model=variant.model_name or server.model,
                origin="managed",
                api_key=variant.api_key,
                cold=(server.created_unix, server.ready_unix) if cold else None,
            ),
        )

    def released(self, server: LiveServer) -> None:
        """A lease came back."""
        server.in_flight -= 1
        server.last_used = self.clock.monotonic()
        if server.in_flight == 0:
            server.idle.set()
        if server.in_flight == 0 and (self.waiting or server.state is ServerState.DRAINING):
            self.changed.set()

    def wait(self, model: str) -> asyncio.Future[Lease]:
        """Join those who wait for a model: the demand that makes the planner start it."""
        if self.closing:
            raise _closing()
        waiters = self.waiting.setdefault(model, Waiters(self.clock.monotonic()))
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
        for variant in model.variants:
            seen = self.externals.get((name, variant.name, variant.url))
            if variant.external and seen is not None and seen.healthy:
                return variant
        return None

    def external_lease(self, model: str, variant: Variant) -> Lease:
        """A lease that holds nothing back: what somebody else runs is never stopped."""
        target = Target(
            model=model,
            variant=variant.name,
            base_url=variant.url.rstrip("/"),
            upstream_model=variant.model_name or model,
            origin="external",
            api_key=variant.api_key,
        )
        return Lease(self, None, target)

    def _waiters(self, model: str) -> list[asyncio.Future[Lease]]:
        waiters = self.waiting.pop(model, None)
        return [future for future in waiters.futures if not future.done()] if waiters else []

    def refuse(self, model: str, error: RefusedError) -> None:
        """Tell everybody who waits for the model that there is no point."""
        for future in self._waiters(model):
            future.set_exception(RefusedError(error.code, str(error), error.retry_after_s))

    def close(self) -> None:
        """The sidecar is about to end: nobody waits any more."""
        self.closing = True
        for model in list(self.waiting):
            self.refuse(model, _closing())

    # --- views --------------------------------------------------------------------------------------------------

    def observed(self, devices: tuple[Device, ...]) -> Observed:
        """Everything, as the planner takes it."""
        return Observed(
            devices=devices,
            servers=tuple(server.view() for server in self.servers.values()),
            externals=tuple(self.externals.values()),
            demands=tuple(
                Demand(model, waiters.since, len(waiters.futures)) for model, waiters in self.waiting.items()
            ),
            failures=tuple(self.failures.values()),
            auto_started=frozenset(self.auto_started),
        )

    def note(self, conditions: dict[str, tuple[Condition, ...]]) -> None:
        """Take over the plan's conditions; `since` moves only when status or reason do."""
        self.conditions = {
            model: tuple(self._dated(model, condition) for condition in found) for model, found in conditions.items()
        }

    def ready(self, model: str) -> bool:
        """Whether the model's Ready condition is true."""
        return any(c.type == READY and c.status is Status.TRUE for c in self.conditions.get(model, ()))

    def _dated(self, model: str, condition: Condition) -> Condition:
        for before in self.conditions.get(model, ()):
            if before.type == condition.type and (before.status, before.reason) == (condition.status, condition.reason):
                return msgspec.structs.replace(condition, since=before.since)
        log.info("%s: %s=%s %s: %s", model, condition.type, condition.status.value, condition.reason, condition.message)
        return msgspec.structs.replace(condition, since=self.clock.unix())


def _closing() -> RefusedError:
    return RefusedError("shutting_down", "the sidecar is shutting down", 10.0)


def code_of(reason: str) -> str:
    """The `code` that programs get for a condition's reason: `LoadTimeout` becomes `load_timeout`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", reason).lower()


LAST_WORDS_S = 0.5
STABLE_S = 60.0  # a server that has served for so long has not crashed in a loop
BACKOFF_MOST_S = 60.0
ATTEMPTS = 10  # in a row, after which a model is left alone: about five minutes of backoff
