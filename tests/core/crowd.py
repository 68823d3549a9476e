"""A large machine: 500 models, 16 devices, 60 servers, 20 models that somebody waits for."""

from __future__ import annotations

from plugin_sdk import Duration
from sidecar.core.manifest import Declaration, Model, Variant
from sidecar.core.observed import Demand, Observed
from tests.core.build import NOW, cpu, declare, gpu, model, server, variant

MODELS, SERVERS, DEMANDS = 500, 60, 20
GPU_MB = 80_000


def crowd(*, waiting: bool) -> tuple[Declaration, Observed]:
    """All GPUs are full of servers. waiting: of twenty more models, some can evict, some have to wait."""
    declared = declare(256, None, **{f"m{number}": _model(number) for number in range(MODELS)})
    free = {f"GPU-{place:02}": GPU_MB for place in range(15)}
    servers = []
    for number in range(SERVERS):
        of = declared.models[f"m{number}"]
        on = max(free, key=lambda key: free[key])
        mb = of.variants[0].needs()[0][1]
        free[on] -= mb
        busy, ready_s = number % 3 == 0, 5 if number % 7 == 0 else 500
        servers.append(
            server(f"m{number}", of, on, use=mb, in_flight=int(busy), idle_s=0 if busy else number, ready_s=ready_s)
        )
    devices = tuple(gpu(key, mb, total=GPU_MB, index=place) for place, (key, mb) in enumerate(free.items()))
    demands = tuple(Demand(f"m{SERVERS + number}", NOW - 3 * number) for number in range(DEMANDS if waiting else 0))
    seen = (*devices, cpu(500_000, total=500_000))
    return declared, Observed(
        devices=seen, servers=tuple(servers), demands=demands, auto_started=frozenset(declared.models)
    )


def _model(number: int) -> Model:
    """Every fourth needs two GPUs; every fifth is content with the CPU if there is no room."""
    mb = 19_000 + number if number < SERVERS else 25_000 + 11 * number
    needs = ("gpu", "gpu") if number % 4 == 3 and number >= SERVERS else ("gpu",)
    variants: list[Variant] = [variant(mb, *needs, name="gpu")]
    if number % 5 == 0 and number >= SERVERS:
        variants.append(variant(2 * mb, "cpu", name="cpu"))
    return model(*variants, priority=number % 3, pinned=number % 20 == 19, idle_timeout=Duration(600))
