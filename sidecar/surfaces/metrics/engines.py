"""Metrics that models' servers tell of themselves, under the same names whatever the engine.

They are what the Gateway API Inference Extension of Kubernetes asks of a model server: queued and running requests, the
share of the KV cache in use, and LoRA adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sidecar.mechanism.engine_metrics import EngineNumbers
from sidecar.mechanism.metrics import Family, Point, gauge, info

_WHICH = ("sidecar.model", "sidecar.variant")

WAITING = gauge(
    "sidecar.engine.requests.waiting", "{request}", "Requests that wait in the server (TotalQueuedRequests).", _WHICH
)
RUNNING = gauge(
    "sidecar.engine.requests.running", "{request}", "Requests that the server works on (TotalRunningRequests).", _WHICH
)
KV_CACHE = gauge(
    "sidecar.engine.kv_cache.utilization",
    "1",
    "The share of the server's KV cache that is in use, 0 to 1 (KVCacheUtilization).",
    _WHICH,
)
BLOCK_SIZE = gauge(
    "sidecar.engine.kv_cache.block_size", "{token}", "Tokens in a block of the KV cache (BlockSize).", _WHICH
)
BLOCKS = gauge("sidecar.engine.kv_cache.blocks", "{block}", "Blocks in the KV cache (NumGPUBlocks).", _WHICH)
LORA = info(
    "sidecar.engine.lora_requests",
    "LoRA adapters that run, and that requests wait for.",
    (*_WHICH, "running_lora_adapters", "waiting_lora_adapters", "max_lora"),
)
METRICS = (WAITING, RUNNING, KV_CACHE, BLOCK_SIZE, BLOCKS, LORA)

Numbers = list[tuple[str, str, EngineNumbers]]


def families(numbers: Numbers) -> Iterator[Family]:
    """By model and variant, as last told."""
    yield Family(WAITING, _told(numbers, lambda one: one.waiting))
    yield Family(RUNNING, _told(numbers, lambda one: one.running))
    yield Family(KV_CACHE, _told(numbers, lambda one: one.kv_cache))
    yield Family(BLOCK_SIZE, _told(numbers, lambda one: one.block_size))
    yield Family(BLOCKS, _told(numbers, lambda one: one.blocks))
    loras = [(model, variant, one.lora) for model, variant, one in numbers if one.lora is not None]
    yield Family(
        LORA, [Point((model, variant, lora.running, lora.waiting, lora.most), 1) for model, variant, lora in loras]
    )


def _told(numbers: Numbers, read: Callable[[EngineNumbers], float | None]) -> list[Point]:
    values = [(model, variant, read(one)) for model, variant, one in numbers]
    return [Point((model, variant), value) for model, variant, value in values if value is not None]
