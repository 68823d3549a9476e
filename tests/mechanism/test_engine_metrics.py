"""What engines tell of themselves, in the words of each."""

from __future__ import annotations

import pytest

from sidecar.mechanism.engine_metrics import EngineNumbers, Lora, read

VLLM = """
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="Qwen/Qwen3-8B"} 3.0
vllm:num_requests_running{engine="1",model_name="Qwen/Qwen3-8B"} 2.0
vllm:num_requests_waiting{engine="0",model_name="Qwen/Qwen3-8B"} 7.0
vllm:num_requests_waiting{engine="1",model_name="Qwen/Qwen3-8B"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="Qwen/Qwen3-8B"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="Qwen/Qwen3-8B"} 0.75
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="27000"} 1.0
vllm:lora_requests_info{max_lora="4",running_lora_adapters="old",waiting_lora_adapters=""} 1.0
vllm:lora_requests_info{max_lora="4",running_lora_adapters="sql,\\"chat\\"",waiting_lora_adapters="x"} 1.75e+09
vllm:time_to_first_token_seconds_bucket{le="0.001",model_name="Qwen/Qwen3-8B"} 0.0
"""
SGLANG = """
sglang:num_running_reqs{model_name="m",tp_rank="0"} 12.0
sglang:num_queue_reqs{model_name="m",tp_rank="0"} 4.0
sglang:token_usage{model_name="m",tp_rank="0"} 0.5
"""
LLAMA = """
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 1
llamacpp:requests_deferred 2
llamacpp:kv_cache_usage_ratio 0.125
"""
TEI = 'te_queue_size 5\nte_request_count{method="batch"} 9\n'
TGI = "tgi_queue_size 3\ntgi_batch_current_size 2\n"
TRT = "trtllm_num_requests_waiting 1\ntrtllm_num_requests_running 2\ntrtllm_kv_cache_utilization 0.3\n"
TRITON = """
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 2
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 8
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 64
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm",version="1"} 0.4
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 6239
"""


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (
            VLLM,
            EngineNumbers(
                waiting=7,
                running=5,
                kv_cache=0.75,
                block_size=16,
                blocks=27000,
                lora=Lora('sql,"chat"', "x", "4"),
            ),
        ),
        ('vllm:gpu_cache_usage_perc{model_name="m"} 0.5', EngineNumbers(kv_cache=0.5)),
        (SGLANG, EngineNumbers(waiting=4, running=12, kv_cache=0.5)),
        (LLAMA, EngineNumbers(waiting=2, running=1, kv_cache=0.125)),
        (TEI, EngineNumbers(waiting=5)),
        (TGI, EngineNumbers(waiting=3, running=2)),
        (TRT, EngineNumbers(waiting=1, running=2, kv_cache=0.3)),
        (TRITON, EngineNumbers(waiting=2, running=8, kv_cache=0.4)),
    ],
    ids=["vllm", "older vllm", "sglang", "llama.cpp", "tei", "tgi", "trtllm-serve", "triton"],
)
def test_each_engine_is_understood(text: str, numbers: EngineNumbers) -> None:
    assert read(text) == numbers
    assert read(text).tells


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html>404</html>",
        '{"error": "not supported"}',
        "vllm:num_requests_waiting",
        "vllm:num_requests_waiting{",
        "vllm:num_requests_waiting many",
        "vllm:num_requests_waiting NaN\nvllm:num_requests_running +Inf",
        'vllm:num_requests_waiting{a="b"}',
        'vllm:cache_config_info{block_size="",num_gpu_blocks="None"} 1',
        "\x00\ud800".encode("utf-8", "replace").decode(),
        "process_cpu_seconds_total 4\n" * 1000,
    ],
)
def test_what_is_not_understood_is_passed_over(text: str) -> None:
    assert not read(text).tells


def test_timestamps_are_no_values() -> None:
    assert read("llamacpp:requests_deferred 2 1395066363000").waiting == 2
