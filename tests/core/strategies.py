"""Random machines: devices known and unknown, servers in every state, and manifests that want more than there is.

What belongs together is drawn at once from a pool, in which the usual stands more often than the odd.
"""

from __future__ import annotations

import math
from itertools import product

import msgspec
from hypothesis import strategies as st

from plugin_sdk import DeviceStatus, Duration
from sidecar.core.manifest import Declaration, DeviceDeclaration, Model, Settings, Variant
from sidecar.core.observed import Demand, Device, ExternalServer, Failure, Observed, Server
from tests.core.build import DRAINING, GPU0, GPU1, GPU2, NOW, READY, STARTING, STOPPING, external, named

NAMES = ("a", "b", "c", "d", "e")
STEP = 50  # MB; coarse, so that things often fit exactly

_NEEDS = (("gpu",),) * 6 + (("gpu", "gpu"), ("gpu:0",), (GPU1,), ("cpu",), ("gpu", "cpu"), ("big",), ("ghost",))
_DEVICES = ((GPU0,), (GPU0, GPU1), (GPU1, GPU0), (GPU0, GPU1, GPU2), (GPU0, "cpu"), (GPU0, GPU1, "cpu"))
_FLAGS = tuple(product((0, 0, 1, 2), (False, False, False, True), (False, False, True), (0, 0, 20, 200)))
_PATIENCE = tuple(product((30, 30, 0, 5), (10, 10, 0, 60)))  # max_wait, min_residency
_PAST = tuple(product((0, 10, 20, 100), (100, 100, 5, 0)))  # s since it was used, and since it became ready
_SERVING = ((READY, 0), (READY, 0), (READY, 2), (STARTING, 0), (DRAINING, 0), (DRAINING, 1), (STOPPING, 0))
_SEEN = (("", False),) * 9 + (("driver not loaded", False), ("", True))
_READINGS = tuple(product(_SEEN, (0, 1)))  # (problem, stale), index
_RETRIES = (None, None, None, -5, 0, 5, math.inf)  # s until a variant that has failed may be tried again


class Scene(msgspec.Struct, frozen=True):
    """One input of the planner. use: server id to what it really takes of each device, measured or not."""

    declared: Declaration
    observed: Observed
    use: dict[str, dict[str, int]]


class Kind(msgspec.Struct, frozen=True):
    """Which scenes. measured: every server's use is known. sound: what runs fits, and what is automatic was started.

    crowded: there is little room, and somebody wants in. wanted: how many models are asked for at most.
    """

    measured: bool = False
    sound: bool = False
    crowded: bool = False
    wanted: int = 4


@st.composite
def scenes(
    draw: st.DrawFn, measured: bool = False, sound: bool = False, crowded: bool = False, wanted: int = 4
) -> Scene:
    """A scene of that kind."""
    kind = Kind(measured, sound, crowded, wanted)
    ids = draw(st.sampled_from(_DEVICES))
    models = {name: draw(_models(crowded)) for name in NAMES[: draw(st.integers(1 + crowded, 5))]}
    hosted = tuple(models)[: draw(st.integers(int(crowded), len(models) - crowded))]
    if draw(st.integers(0, 5)) == 5:
        hosted += ("undeclared",)
    found = [draw(_servers(name, models.get(name), ids, kind)) for name in hosted]
    servers = tuple(server for server, _ in found)
    use = {server.id: taken for server, taken in found}
    memories = draw(_memories(ids, servers, use, kind))
    observed = Observed(
        devices=tuple(draw(_devices(key, memory)) for key, memory in memories.items()),
        servers=servers,
        externals=draw(_externals(models)),
        demands=draw(_demands(models, hosted, kind)),
        failures=() if crowded else draw(_failures(models)),
        auto_started=frozenset(hosted if sound else hosted[::2]) | frozenset(models if crowded else ()),
        moving=frozenset(models) - frozenset(hosted) if not crowded and draw(st.integers(0, 7)) == 7 else frozenset(),
    )
    settings = Settings(headroom_mb=0 if sound else draw(st.sampled_from((0, STEP))))
    return Scene(Declaration(settings=settings, devices=draw(_names(kind)), models=models), observed, use)


@st.composite
def _models(draw: st.DrawFn, crowded: bool) -> Model:
    count = draw(st.sampled_from((1, 1, 2)))
    variants = [draw(_variants(f"v{number}")) for number in range(count)]
    if not crowded and draw(st.integers(0, 7)) == 7:
        variants.append(external("url"))
    priority, pinned, auto_start, idle_timeout = draw(st.sampled_from(_FLAGS))
    max_wait, min_residency = draw(st.sampled_from(_PATIENCE))
    return Model(
        variants=tuple(variants),
        mode="chat",
        priority=priority,
        pinned=pinned,
        auto_start=auto_start,
        idle_timeout=Duration(idle_timeout),
        max_wait=Duration(max_wait),
        min_residency=Duration(min_residency),
    )


@st.composite
def _variants(draw: st.DrawFn, name: str) -> Variant:
    needs, steps, alone = draw(st.sampled_from(_NEEDS)), draw(st.integers(1, 12)), draw(st.integers(0, 5)) == 5
    memory = {need: (steps + place) * STEP for place, need in enumerate(needs)} if steps % 2 else steps * STEP
    return Variant(name=name, required_devices=needs, memory_mb=memory, command=("serve",), exclusive_start=alone)


@st.composite
def _servers(
    draw: st.DrawFn, name: str, model: Model | None, ids: tuple[str, ...], kind: Kind
) -> tuple[Server, dict[str, int]]:
    chosen = draw(st.sampled_from([one for one in model.variants if not one.external])) if model else None
    amounts = [mb for _, mb in chosen.needs()] if chosen else [4 * STEP]
    turn = draw(st.integers(0, len(ids)))
    on = ((*ids, "lost") * 2)[turn : turn + len(amounts)]
    reserved = dict(zip(on, amounts, strict=True))
    state, in_flight = draw(st.sampled_from(((READY, 0),) * 9 + _SERVING if kind.crowded else _SERVING))
    quarters = draw(st.sampled_from((4, 4, 2, 0, 5)))
    loads = state is STARTING
    use = {device: mb * (min(4, quarters) if loads else quarters) // 4 for device, mb in reserved.items()}
    known = kind.measured or draw(st.booleans())
    if not known and not loads:
        use = dict(reserved)  # where nobody can tell, the declaration has to be right
    stale = draw(st.integers(0, 7)) == 7
    idle_s, ready_s = draw(st.sampled_from(_PAST))
    return Server(
        id=f"{name}-1",
        model=name,
        variant=chosen.name if chosen else "v0",
        fingerprint="stale" if chosen is None or stale else chosen.fingerprint(),
        state=state,
        reserved_mb=reserved,
        observed_mb=use if known else {},
        in_flight=in_flight,
        since=NOW - ready_s,
        last_used=NOW - idle_s,
        exclusive=chosen.exclusive_start if chosen else False,
    ), use


class Memory(msgspec.Struct, frozen=True):
    """What a device has, in MB, and the device whose memory it uses."""

    total_mb: int
    free_mb: int
    shares: str = ""


@st.composite
def _memories(
    draw: st.DrawFn, ids: tuple[str, ...], servers: tuple[Server, ...], use: dict[str, dict[str, int]], kind: Kind
) -> dict[str, Memory]:
    """The memory of each device; now and then the last GPU uses the machine's RAM."""
    unified = "cpu" in ids and draw(st.integers(0, 2)) == 2
    pools = {"cpu": (ids[-2], "cpu")} if unified else {}
    found = {}
    for key in ids:
        members = pools.get(key, (key,))
        used = sum(taken.get(member, 0) for taken in use.values() for member in members)
        charged = sum(max(one.reserved_mb.get(k, 0), use[one.id].get(k, 0)) for one in servers for k in members)
        slack = STEP * draw(st.sampled_from((0, 1, 2, 4) if kind.crowded else (0, 2, 4, 8, 16)))
        foreign = draw(st.sampled_from((0, 0, 100, 400)))
        total = (charged if kind.sound or slack else used) + foreign + slack
        found[key] = Memory(total, total - used - foreign)
    if unified:
        found[ids[-2]] = Memory(found["cpu"].total_mb, found["cpu"].free_mb, "cpu")
    return found


@st.composite
def _devices(draw: st.DrawFn, key: str, memory: Memory) -> Device:
    (problem, stale), index = draw(st.sampled_from(_READINGS))
    status = DeviceStatus(
        id=key,
        index=0 if key == "cpu" else index,  # two slices of one GPU share its index
        total_mb=memory.total_mb,
        free_mb=memory.free_mb,
        problem=problem,
        shares=memory.shares,
    )
    return Device(device_class="cpu" if key == "cpu" else "gpu", status=status, stale=stale)


@st.composite
def _demands(draw: st.DrawFn, models: dict[str, Model], hosted: tuple[str, ...], kind: Kind) -> tuple[Demand, ...]:
    cold = [name for name in models if name not in hosted]
    newcomers = (
        cold if kind.wanted == 1 else [*cold, *cold, *models]
    )  # one alone is to be a newcomer; others may restart
    names = newcomers if kind.crowded else [*cold, *models, "nobody"]
    wanted = draw(st.lists(st.sampled_from(names), min_size=int(kind.crowded), max_size=kind.wanted, unique=True))
    waited_s = draw(st.sampled_from((0, 0, 10, 40)))
    return tuple(Demand(name, NOW - waited_s - place % 3) for place, name in enumerate(wanted))


@st.composite
def _names(draw: st.DrawFn, kind: Kind) -> dict[str, DeviceDeclaration]:
    cap = None if kind.sound else draw(st.sampled_from((None, None, 4 * STEP, 16 * STEP)))
    return {"big": named(cap, uuid=GPU0), "ghost": named(uuid="GPU-gone")}


@st.composite
def _externals(draw: st.DrawFn, models: dict[str, Model]) -> tuple[ExternalServer, ...]:
    probed = [name for name, model in models.items() if model.variants[-1].external]
    return tuple(
        ExternalServer(model=name, variant="url", healthy=draw(st.booleans()), message="connection refused")
        for name in probed
    )


@st.composite
def _failures(draw: st.DrawFn, models: dict[str, Model]) -> tuple[Failure, ...]:
    name = draw(st.sampled_from(tuple(models)))
    variants = [variant.name for variant in models[name].variants if not variant.external]
    retries = {variant: draw(st.sampled_from(_RETRIES)) for variant in variants}
    return tuple(
        Failure(
            model=name,
            variant=variant,
            reason="Exited",
            message="exit code 1",
            count=1,
            at=NOW - 9,
            retry_at=NOW + in_s,
        )
        for variant, in_s in retries.items()
        if in_s is not None
    )
