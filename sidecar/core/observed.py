"""What the machine is doing, as values: devices, servers, demand, failures. The planner's other input."""

from __future__ import annotations

import enum

import msgspec

from plugin_sdk import DeviceStatus


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One device of a class, as last read.

    host_memory: its memory is the machine's RAM. stale: something has happened since it was read.
    """

    device_class: str
    status: DeviceStatus
    host_memory: bool = False
    stale: bool = False

    @property
    def id(self) -> str:
        return self.status.id

    @property
    def label(self) -> str:
        """`nvidia:0`, or the class alone for a device that has no siblings by nature (`cpu`)."""
        if self.status.id == self.device_class:
            return self.device_class
        return f"{self.device_class}:{self.status.index}"

    @property
    def unknown(self) -> str:
        """Why the device cannot be read; "" when it can."""
        return self.status.problem


class ServerState(enum.Enum):
    """The states of a model's server. `sidecar.core.lifecycle` has every way from one to another."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"  # admission closed, requests in flight finish
    STOPPING = "stopping"  # signalled; the reservation is held until the process group is gone
    BACKOFF = "backoff"  # failed; tried again after a while
    FAILED = "failed"  # failed too often; waits for a changed manifest, or for a person


LEAVING = (ServerState.DRAINING, ServerState.STOPPING)


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A server that the sidecar started. Times are seconds of one monotonic clock.

    reserved_mb / observed_mb: device id to MB; a device missing from observed_mb = not known there.
    pids: its living processes, as far as they can be seen. exclusive: nothing may come or go beside it while it starts.
    never_ready: it leaves, and as far as is known it was never ready.
    """

    id: str
    model: str
    variant: str
    fingerprint: str
    state: ServerState
    reserved_mb: dict[str, int]
    observed_mb: dict[str, int] = {}
    in_flight: int = 0
    since: float = 0.0
    last_used: float = 0.0
    pids: frozenset[int] = frozenset()
    exclusive: bool = False
    never_ready: bool = False

    @property
    def measured(self) -> bool:
        """Whether it is known what the server takes on every device that is reserved for it."""
        return self.reserved_mb.keys() <= self.observed_mb.keys()

    def charged_mb(self, device: str) -> int:
        """What the ledger holds against the server: the higher of declared and observed."""
        return max(self.reserved_mb.get(device, 0), self.observed_mb.get(device, 0))

    @property
    def may_grow(self) -> bool:
        """Whether it is loading: one that leaves before it was ever ready goes on with that until it is gone."""
        return self.state is ServerState.STARTING or (self.never_ready and self.state in LEAVING)

    def yet_to_allocate_mb(self, device: str) -> int:
        """What a server that is, or was, loading may still take from live free memory."""
        measured = device in self.observed_mb
        if self.state is ServerState.READY or not (self.may_grow or measured):
            return 0
        return max(0, self.reserved_mb.get(device, 0) - self.observed_mb.get(device, 0))

    def would_free_mb(self, device: str) -> int:
        """What live free memory gains when the server is gone; where its use is not known, the declaration.

        One that was never ready and never measured may have taken nothing yet.
        """
        unmeasured = 0 if self.may_grow else self.reserved_mb.get(device, 0)
        return self.observed_mb.get(device, unmeasured)


class Demand(msgspec.Struct, frozen=True):
    """Somebody wants the model up: requests that wait, or a person (`sidecar start`)."""

    model: str
    since: float
    waiting: int = 1


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The last attempts to run a variant failed, `count` in a row. Not tried again before retry_at; inf = given up.

    server: the last one that failed. at: when it did.
    """

    model: str
    variant: str
    server: str = ""
    reason: str
    message: str
    count: int
    at: float = 0.0
    retry_at: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a variant as it is declared now, over restarts of the sidecar.

    declared_mb / peak_mb: device requirement (as in required_devices) to MB; peak_mb only for what could be measured.
    load_s: seconds from spawn to ready, a running average; 0 = it never got ready.
    """

    model: str
    variant: str
    fingerprint: str
    declared_mb: dict[str, int] = {}
    peak_mb: dict[str, int] = {}
    load_s: float = 0.0


class ExternalServer(msgspec.Struct, frozen=True, kw_only=True):
    """A `url` variant as last probed: watched and routed to, never started, stopped or signalled."""

    model: str
    variant: str
    healthy: bool
    message: str = ""


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """One look at everything.

    auto_started: models whose `auto_start` has been honoured since the sidecar came up. moving: models whose server was
    stopped only to be started elsewhere. measured: what is remembered of variants. pinned, drained: models of which an
    operator has said so.
    """

    devices: tuple[Device, ...] = ()
    servers: tuple[Server, ...] = ()
    externals: tuple[ExternalServer, ...] = ()
    demands: tuple[Demand, ...] = ()
    failures: tuple[Failure, ...] = ()
    auto_started: frozenset[str] = frozenset()
    moving: frozenset[str] = frozenset()
    measured: tuple[Measured, ...] = ()
    pinned: frozenset[str] = frozenset()
    drained: frozenset[str] = frozenset()


class Status(enum.Enum):
    """The three values of a condition."""

    TRUE = "true"
    FALSE = "false"
    UNKNOWN = "unknown"


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """A fact about a model, for people and programs. reason: one CamelCase word; message: a sentence.

    since: unix seconds, the time at which status or reason last changed; 0 until the control floor knows it.
    revision: of the manifests, with which this was found.
    """

    type: str
    status: Status
    reason: str
    message: str = ""
    since: float = 0.0
    revision: str = ""
