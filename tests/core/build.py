"""Small builders for the core's tests: a machine and its manifests in a line each. Memory in MB, times in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, settings

from plugin_sdk import DeviceProcess, DeviceStatus, Duration
from sidecar.core.manifest import Declaration, DeviceDeclaration, DeviceMatch, Model, Settings, Variant
from sidecar.core.observed import Condition, Demand, Device, ExternalServer, Failure, Observed, Server, ServerState
from sidecar.core.plan import Plan, Start, Stop
from sidecar.core.planner import plan

NOW = 1000.0
GPU0, GPU1, GPU2 = "GPU-a", "GPU-b", "GPU-c"

READY, STARTING = ServerState.READY, ServerState.STARTING
DRAINING, STOPPING = ServerState.DRAINING, ServerState.STOPPING

# Every run tries the same examples, so that CI does not depend on luck; no deadline, since CI machines are shared.
laws = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
thorough = settings(laws, max_examples=400)


def variant(mb: int | dict[str, int] = 500, *needs: str, name: str = "v", **more: Any) -> Variant:
    """A variant that needs `mb` on one GPU, or on each of `needs`."""
    return Variant(name=name, required_devices=needs or ("gpu",), memory_mb=mb, command=("serve", "{port}"), **more)


def model(*variants: Variant | int, idle_timeout: float = 0, **more: Any) -> Model:
    """A chat model; a number stands for a variant of that size on one GPU. Never idle for too long by default."""
    made = tuple(variant(one) if isinstance(one, int) else one for one in variants or (500,))
    return Model(variants=made, mode="chat", idle_timeout=Duration(idle_timeout), **more)


def external(name: str = "v") -> Variant:
    return Variant(name=name, url="http://127.0.0.1:9000")


def declare(
    headroom_mb: int = 0, devices: Mapping[str, DeviceDeclaration] | None = None, **models: Model
) -> Declaration:
    return Declaration(settings=Settings(headroom_mb=headroom_mb), devices=dict(devices or {}), models=models)


def named(memory_mb: int | None = None, **match: Any) -> DeviceDeclaration:
    """A `[devices.NAME]` table."""
    return DeviceDeclaration(match=DeviceMatch(**match), memory_mb=memory_mb)


def gpu(
    key: str = GPU0,
    free: int = 1000,
    *,
    total: int = 1000,
    index: int | None = None,
    problem: str = "",
    stale: bool = False,
    processes: Sequence[DeviceProcess] = (),
    name: str = "",
    shares: str = "",
) -> Device:
    """A GPU, with the index that its id's last letter says."""
    place = ord(key[-1]) - ord("a") if index is None else index
    status = DeviceStatus(
        id=key,
        index=place,
        total_mb=total,
        free_mb=free,
        problem=problem,
        processes=tuple(processes),
        name=name,
        shares=shares,
    )
    return Device(device_class="gpu", status=status, stale=stale)


def cpu(free: int = 1000, *, total: int = 1000) -> Device:
    return Device(device_class="cpu", status=DeviceStatus(id="cpu", total_mb=total, free_mb=free), host_memory=True)


def server(
    name: str,
    of: Model,
    *on: str,
    state: ServerState = READY,
    use: dict[str, int] | int | None = None,
    in_flight: int = 0,
    idle_s: float = 0,
    ready_s: float = 1000,
    fingerprint: str | None = None,
    variant: int = 0,
) -> Server:
    """The server of the model's first variant, on GPU0 unless said. use: what it takes there; None = not measured.

    ready_s: for how long it has been ready, or whatever it is.
    """
    first = of.variants[variant]
    devices = on or (GPU0,)
    return Server(
        id=f"{name}-1",
        model=name,
        variant=first.name,
        fingerprint=first.fingerprint() if fingerprint is None else fingerprint,
        state=state,
        reserved_mb={device: mb for device, (_, mb) in zip(devices, first.needs(), strict=True)},
        observed_mb=dict.fromkeys(devices, use) if isinstance(use, int) else use or {},
        in_flight=in_flight,
        since=NOW - ready_s,
        last_used=NOW - idle_s,
        exclusive=first.exclusive_start,
    )


def observe(*seen: Device | Server | Demand | Failure | ExternalServer, auto_started: Sequence[str] = ()) -> Observed:
    """Everything that was seen, in any order."""
    return Observed(
        devices=tuple(one for one in seen if isinstance(one, Device)),
        servers=tuple(one for one in seen if isinstance(one, Server)),
        demands=tuple(one for one in seen if isinstance(one, Demand)),
        failures=tuple(one for one in seen if isinstance(one, Failure)),
        externals=tuple(one for one in seen if isinstance(one, ExternalServer)),
        auto_started=frozenset(auto_started),
    )


def want(name: str, since: float = NOW) -> Demand:
    return Demand(name, since)


def failure(name: str, retry_at: float, reason: str = "Exited", variant: str = "v") -> Failure:
    return Failure(model=name, variant=variant, reason=reason, message="exit code 1", count=1, retry_at=retry_at)


def decide(declared: Declaration, *seen: Device | Server | Demand | Failure | ExternalServer, now: float = NOW) -> Plan:
    """Plan for what was seen."""
    return plan(declared, observe(*seen), now)


def starts(decided: Plan) -> dict[str, Start]:
    return {action.model: action for action in decided.actions if isinstance(action, Start)}


def stops(decided: Plan, reason: str = "") -> list[str]:
    """The models that are stopped (for `reason`), in order."""
    found = [action for action in decided.actions if isinstance(action, Stop)]
    return [action.model for action in found if reason in ("", action.reason)]


def ready(decided: Plan, name: str) -> Condition:
    """The model's one condition."""
    (condition,) = decided.conditions[name]
    return condition
