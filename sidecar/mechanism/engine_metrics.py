"""What inference servers tell of themselves at `/metrics`: queued, running, and how full the KV cache is.

These are the numbers that Kubernetes' Gateway API Inference Extension asks of a model server (its proposal 003, model
server protocol). Each engine has its own names for them; several series of one name, as of several ranks, are added up
where they count something, and of shares the highest is taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import msgspec

MOST_BYTES = 4 * 2**20

# The name that an engine has for a number, in its newest version first.
WAITING = (
    "vllm:num_requests_waiting",
    "sglang:num_queue_reqs",
    "llamacpp:requests_deferred",
    "trtllm_num_requests_waiting",
    "te_queue_size",
    "tgi_queue_size",
)
RUNNING = (
    "vllm:num_requests_running",
    "sglang:num_running_reqs",
    "llamacpp:requests_processing",
    "trtllm_num_requests_running",
    "tgi_batch_current_size",
)
KV_CACHE = (
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "sglang:token_usage",
    "llamacpp:kv_cache_usage_ratio",
    "trtllm_kv_cache_utilization",
)
LORA = "vllm:lora_requests_info"
CACHE = "vllm:cache_config_info"
_TRITON = "nv_trt_llm_request_metrics", "nv_trt_llm_kv_cache_block_metrics"
_WANTED = frozenset((*WAITING, *RUNNING, *KV_CACHE, LORA, CACHE, *_TRITON))

_label = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"')
_series = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)")
_no_labels: Mapping[str, str] = MappingProxyType({})


class Lora(msgspec.Struct, frozen=True):
    """Adapters, with commas between them. most: that may run at the same time."""

    running: str
    waiting: str
    most: str


class EngineNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """None where a server does not tell. kv_cache: 0 to 1. block_size: of the cache, in tokens; blocks: how many."""

    waiting: float | None = None
    running: float | None = None
    kv_cache: float | None = None
    block_size: float | None = None
    blocks: float | None = None
    lora: Lora | None = None

    @property
    def tells(self) -> bool:
        """Whether there is anything at all."""
        return self != _NOTHING


_NOTHING = EngineNumbers()


def read(text: str) -> EngineNumbers:
    """The numbers in Prometheus' text, whatever else is in it. What is not understood is passed over."""
    found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for name, labels, value in _samples(text):
        found.setdefault(name, []).append((labels, value))
    triton, blocks = (found.get(name, []) for name in _TRITON)
    cache = found.get(CACHE, [(_no_labels, 0.0)])[0][0]
    return EngineNumbers(
        waiting=_sum(found, WAITING, _of(triton, "request_type", "waiting")),
        running=_sum(found, RUNNING, _of(triton, "request_type", "scheduled")),
        kv_cache=_highest(found, KV_CACHE, _of(blocks, "kv_cache_block_type", "fraction")),
        block_size=_number(cache.get("block_size", "")),
        blocks=_number(cache.get("num_gpu_blocks", "")),
        lora=_lora(found.get(LORA, [])),
    )


def _samples(text: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    for line in text.splitlines():
        name = line.partition("{")[0].partition(" ")[0]
        if name not in _WANTED or (match := _series.match(line)) is None:
            continue
        value = _number(match[3])
        if value is not None:
            labels = {key: _unescaped(told) for key, told in _label.findall(match[2])} if match[2] else _no_labels
            yield name, labels, value


def _of(samples: list[tuple[Mapping[str, str], float]], label: str, value: str) -> list[float]:
    return [number for labels, number in samples if labels.get(label) == value]


def _values(
    found: Mapping[str, list[tuple[Mapping[str, str], float]]], names: tuple[str, ...], more: list[float]
) -> list[float]:
    for name in names:
        if name in found:
            return [value for _, value in found[name]]
    return more


def _sum(
    found: Mapping[str, list[tuple[Mapping[str, str], float]]], names: tuple[str, ...], more: list[float]
) -> float | None:
    values = _values(found, names, more)
    return sum(values) if values else None


def _highest(
    found: Mapping[str, list[tuple[Mapping[str, str], float]]], names: tuple[str, ...], more: list[float]
) -> float | None:
    return max(_values(found, names, more), default=None)


def _lora(samples: list[tuple[Mapping[str, str], float]]) -> Lora | None:
    """Of several series the one that was updated last: its value is when that was."""
    if not samples:
        return None
    labels, _ = max(samples, key=lambda sample: sample[1])
    return Lora(
        labels.get("running_lora_adapters", ""), labels.get("waiting_lora_adapters", ""), labels.get("max_lora", "")
    )


def _number(told: str) -> float | None:
    try:
        value = float(told)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _unescaped(told: str) -> str:
    return told.replace(r"\n", "\n").replace(r"\"", '"').replace("\\\\", "\\") if "\\" in told else told
