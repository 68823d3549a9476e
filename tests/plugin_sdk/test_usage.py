"""Token counts in the shapes in which servers tell them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from plugin_sdk import Usage
from plugin_sdk.usage import anthropic_usage, openai_usage, responses_usage

LLAMA = {"cache_n": 5, "prompt_n": 7, "prompt_ms": 20.0, "prompt_per_second": 350.0} | {
    "predicted_n": 4,
    "predicted_ms": 80.0,
    "predicted_per_second": 50.0,
}


def told(value: Any) -> Usage | None:
    return openai_usage(json.dumps(value).encode(), streamed=False)


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        # OpenAI's chat, with all of its details
        (
            {"prompt_tokens": 9, "completion_tokens": 40, "total_tokens": 49}
            | {"prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0}}
            | {"completion_tokens_details": {"reasoning_tokens": 30, "accepted_prediction_tokens": 0}},
            Usage(input_tokens=9, output_tokens=40, cached_tokens=8, reasoning_tokens=30),
        ),
        # vLLM
        (
            {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, "prompt_tokens_details": None},
            Usage(input_tokens=9, output_tokens=4),
        ),
        # SGLang
        (
            {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, "reasoning_tokens": 3},
            Usage(input_tokens=9, output_tokens=4, reasoning_tokens=3),
        ),
        # DeepSeek
        (
            {"prompt_tokens": 9, "completion_tokens": 4, "prompt_cache_hit_tokens": 6, "prompt_cache_miss_tokens": 3},
            Usage(input_tokens=9, output_tokens=4, cached_tokens=6),
        ),
        # Moonshot
        (
            {"prompt_tokens": 9, "completion_tokens": 4, "cached_tokens": 5},
            Usage(input_tokens=9, output_tokens=4, cached_tokens=5),
        ),
        # mistral.rs
        (
            {"prompt_tokens": 9, "completion_tokens": 4, "avg_prompt_tok_per_sec": 90.5, "avg_compl_tok_per_sec": 40.0},
            Usage(input_tokens=9, output_tokens=4, input_tokens_per_s=90.5, output_tokens_per_s=40.0),
        ),
        # embeddings and rankings of OpenAI, vLLM, llama.cpp, TEI; Jina and Voyage tell the total alone
        ({"prompt_tokens": 9, "total_tokens": 9}, Usage(input_tokens=9)),
        ({"total_tokens": 9}, Usage(input_tokens=9)),
        # images and transcriptions, in whichever names
        ({"input_tokens": 9, "output_tokens": 4, "total_tokens": 13}, Usage(input_tokens=9, output_tokens=4)),
        # Cohere's chat
        (
            {"billed_units": {"input_tokens": 5.0, "output_tokens": 4.0}}
            | {"tokens": {"input_tokens": 71, "output_tokens": 4}},
            Usage(input_tokens=71, output_tokens=4),
        ),
        ({"prompt_tokens": 9, "completion_tokens": None, "total_tokens": None}, Usage(input_tokens=9)),
        # what is not of the shape that we know is left out, not everything
        ({"prompt_tokens": 9, "cached_tokens": {"audio": 1}}, Usage(input_tokens=9)),
    ],
)
def test_the_same_counts_have_many_names(counts: dict[str, Any], expected: Usage) -> None:
    assert told({"usage": counts}) == expected
    assert openai_usage(event({"choices": [], "usage": counts}) + b"data: [DONE]\n\n", streamed=True) == expected
    if "billed_units" not in counts:
        assert responses_usage(event({"usage": counts}), streamed=True) == expected


def test_coheres_rankings_tell_them_beside_the_results() -> None:
    units = {"billed_units": {"search_units": 1}}
    assert told({"results": [], "meta": {"api_version": {"version": "2"}, **units}}) is None
    assert told({"results": [], "meta": units | {"tokens": {"input_tokens": 7}}}) == Usage(input_tokens=7)
    assert told({"results": [], "meta": {"billed_units": {"input_tokens": 6.0}}}) == Usage(input_tokens=6)


def test_another_meta_does_no_harm() -> None:
    assert told({"meta": "x", "timings": [], "usage": {"prompt_tokens": 7}}) == Usage(input_tokens=7)
    assert told([{"index": 0, "score": 0.9}]) is None


def test_llama_cpp_tells_speeds_and_what_was_in_its_cache() -> None:
    both = {"model": "m", "usage": {"prompt_tokens": 12, "completion_tokens": 4}, "timings": LLAMA}
    expected = Usage(
        input_tokens=12,
        output_tokens=4,
        cached_tokens=5,
        input_tokens_per_s=350.0,
        output_tokens_per_s=50.0,
        response_model="m",
    )
    assert told(both) == expected
    assert told({"model": "m", "timings": LLAMA}) == expected
    assert openai_usage(event({"choices": [1]}) + event(both) + b"data: [DONE]\n\n", streamed=True) == expected
    old = {name: value for name, value in LLAMA.items() if name != "cache_n"} | {"prompt_per_second": None}
    assert told({"timings": old}) == Usage(input_tokens=7, output_tokens=4, output_tokens_per_s=50.0)


def test_timings_of_a_stream_that_tells_no_usage_are_those_of_its_last_event() -> None:
    stream = b"".join(event({"choices": [1], "usage": None, "timings": LLAMA | {"predicted_n": n}}) for n in range(5))
    usage = openai_usage(stream + b"data: [DONE]\n\n", streamed=True)
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (12, 4)
    counted = event({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
    usage = openai_usage(counted + stream, streamed=True)
    assert usage is not None
    assert (usage.input_tokens, usage.output_tokens) == (1, 2)


def test_the_answer_of_the_responses_api_tells_what_was_thought() -> None:
    counts = {"input_tokens": 7, "output_tokens": 40, "input_tokens_details": {"cached_tokens": 2}}
    counts |= {"output_tokens_details": {"reasoning_tokens": 30}}
    expected = Usage(input_tokens=7, output_tokens=40, cached_tokens=2, reasoning_tokens=30, response_model="m")
    answer = {"model": "m", "usage": counts}
    assert responses_usage(json.dumps(answer).encode(), streamed=False) == expected
    done = {"type": "response.completed", "response": answer}
    assert responses_usage(b"event: response.completed\n" + event(done), streamed=True) == expected


@pytest.mark.parametrize("counts", ['{"prompt_tokens": 7, "total_tokens": 7}', '{"prompt_tokens":7}'])
def test_of_many_vectors_both_ends_are_enough(counts: str) -> None:
    before = b'{"model": "m", "usage": ' + counts.encode() + b', "data": [0.1,\n\n0.2]}'
    after = b'{"model": "m", "data": [0.1,\n\n0.2], "usage": ' + counts.encode() + b"}"
    assert openai_usage(before.replace(b"]}", b"]"), streamed=False) == Usage(input_tokens=7)
    assert openai_usage(after.replace(b"0.1,", b"0."), streamed=False) == Usage(input_tokens=7)
    assert openai_usage(b'{"text": "\\"usage\\": {}",\n\n "usage"', streamed=False) is None


def test_lines_of_framing_between_events_do_no_harm() -> None:
    events = event({"usage": None}), event({"usage": {"total_tokens": 3}})
    framed = [b"%x\r\n%s\r\n" % (len(text), text) for text in events]
    assert openai_usage(b"".join(framed) + b"0\r\n\r\n", streamed=True) == Usage(input_tokens=3)
    start = b'event: message_start\ndata: {"message": {"usage": {"input_tokens": 3}}}\n\n'
    assert anthropic_usage(b"4a\r\n" + start + b"\r\n0\r\n\r\n", streamed=True) == Usage(input_tokens=3)


@pytest.mark.parametrize(
    "tail", [b'data: {"usage"', b'"usage"', b'\rdata: {"usage": {}}', b'data: {"timings": null}', b'data:{"usage":[]}']
)
def test_what_only_speaks_of_usage_tells_none(tail: bytes) -> None:
    for reader in (openai_usage, responses_usage, anthropic_usage):
        for streamed in (True, False):
            assert reader(tail, streamed) is None


def test_a_tail_full_of_empty_usage_is_read_in_no_time() -> None:
    tail = event({"choices": [], "usage": None}) * 200
    began = time.process_time()
    for _ in range(10):
        assert openai_usage(tail, streamed=True) is None
    assert time.process_time() - began < 0.1
