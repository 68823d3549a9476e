"""The main job: the official OpenAI client, through the sidecar, to a real llama.cpp."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import Run
from tests.e2e.harness import llama, until
from tests.exposition import value

MESSAGES: Any = [{"role": "user", "content": "hello there"}]
SENTENCE = "I am parrot and I speak in plain words."


def test_a_model_is_started_by_its_first_request_and_answers_in_words(run: Run) -> None:
    sidecar = run(llama("parrot", model='aliases = ["gpt-4o-mini"]'))
    assert sidecar.state("parrot") == "Stopped"
    with sidecar.client() as client:
        answer = client.chat.completions.create(model="parrot", messages=MESSAGES)
        assert answer.choices[0].message.content == SENTENCE
        assert answer.usage is not None
        assert answer.usage.prompt_tokens > 0
        by_alias = client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
        assert by_alias.choices[0].message.content == SENTENCE
    assert sidecar.state("parrot") == "ready"
    assert sidecar.starts("parrot") == 1


def test_the_numbers_of_the_engine_and_of_its_requests_are_told(run: Run) -> None:
    sidecar = run(llama("parrot"))
    sidecar.ask("parrot")
    told = httpx.get(f"{sidecar.url}/metrics", trust_env=False, timeout=20).text
    assert value(told, "sidecar_engine_requests_waiting", model="parrot") == 0
    assert value(told, "sidecar_engine_requests_running", model="parrot") == 0
    assert value(told, "gen_ai_client_token_usage_sum", gen_ai_request_model="parrot", gen_ai_token_type="output") > 0


def test_a_stream_arrives_in_pieces_and_whole(run: Run) -> None:
    sidecar = run(llama("parrot"))
    options: Any = {"include_usage": True}
    with sidecar.client() as client:
        stream = client.chat.completions.create(model="parrot", messages=MESSAGES, stream=True, stream_options=options)
        chunks = list(stream)
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(pieces) > 3
    assert "".join(pieces) == SENTENCE
    assert chunks[-1].usage is not None
    until(lambda: any("output_tokens=" in line for line in sidecar.log), "usage in the log")


async def test_twenty_first_requests_at_once_cause_one_start(run: Run) -> None:
    sidecar = run(llama("parrot"))
    async with sidecar.async_client() as client:
        calls = [client.chat.completions.create(model="parrot", messages=MESSAGES) for _ in range(20)]
        answers = await asyncio.gather(*calls)
    assert {answer.choices[0].message.content for answer in answers} == {SENTENCE}
    assert sidecar.starts("parrot") == 1


async def test_the_async_client_streams(run: Run) -> None:
    sidecar = run(llama("parrot"))
    async with sidecar.async_client() as client:
        stream = await client.chat.completions.create(model="parrot", messages=MESSAGES, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    assert text == SENTENCE


def test_completions_and_embeddings_have_their_own_modes(run: Run) -> None:
    sidecar = run(
        llama("parrot").replace('mode = "chat"', 'mode = ["chat", "base"]'), llama("compass", mode="embedding")
    )
    with sidecar.client() as client:
        completion = client.completions.create(model="parrot", prompt="hello", max_tokens=5)
        assert completion.usage is not None
        assert completion.usage.completion_tokens == 5
        one, same, other = (
            client.embeddings.create(model="compass", input=text).data[0].embedding
            for text in ("north", "north", "south")
        )
    assert one == same != other


def test_an_idle_server_is_stopped_and_comes_back(run: Run) -> None:
    sidecar = run(llama("parrot", model='idle_timeout = "1s"'))
    sidecar.ask("parrot")
    asked = time.monotonic()
    until(lambda: sidecar.state("parrot") == "Stopped", "the idle server stops")
    assert time.monotonic() - asked > 0.9
    assert sidecar.ask("parrot") == SENTENCE
    assert sidecar.starts("parrot") == 2


def test_one_model_makes_room_for_another(run: Run) -> None:
    cap = '[devices.part]\nmatch = { class = "cpu" }\nmemory_mb = 700\n'
    sidecar = run(llama("parrot"), llama("owl"), llama("crow"), files={"devices.toml": cap})
    sidecar.ask("parrot")
    sidecar.ask("owl")
    assert sidecar.ask("crow").startswith("I am crow")
    assert sidecar.state("parrot") == "Stopped"  # the longest unused had to go
    assert sidecar.state("owl") == "ready"
    assert sidecar.status()["devices"][0]["reserved_mb"] == 600


def test_a_model_in_use_is_not_evicted_and_the_other_waits_its_turn(run: Run) -> None:
    cap = '[devices.part]\nmatch = { class = "cpu" }\nmemory_mb = 400\n'
    sidecar = run(llama("parrot"), llama("owl", model='queue_timeout = "1s"'), files={"devices.toml": cap})
    with sidecar.client() as client:
        body: Any = {"ignore_eos": True}
        stream = client.chat.completions.create(
            model="parrot", messages=MESSAGES, stream=True, max_tokens=1_000_000, extra_body=body
        )
        next(iter(stream))
        with pytest.raises(openai.InternalServerError) as refused:
            sidecar.ask("owl")
        assert refused.value.status_code == 503
        assert refused.value.code == "queue_timeout"
        assert "waits for parrot (1 in flight)" in str(refused.value)
        assert (
            1 <= int(refused.value.response.headers["retry-after"]) <= 40
        )  # its turn comes after max_wait, then it loads
        assert sidecar.state("parrot") == "ready"
        stream.close()
    until(lambda: sidecar.cli("start", "owl", check=False).returncode == 0, "there is room for it, and it loads")
    assert sidecar.ask("owl").startswith("I am owl")
    assert sidecar.state("parrot") == "Stopped"


def test_a_request_for_the_wrong_mode_is_refused_with_the_modes_that_the_model_has(run: Run) -> None:
    sidecar = run(llama("parrot"))
    with sidecar.client() as client, pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="parrot", input="x")
    assert refused.value.code == "wrong_mode"
    assert "of mode chat, not embedding: it answers at /v1/chat/completions" in refused.value.message
    assert sidecar.starts("parrot") == 0


def test_a_wrong_key_is_refused_before_anything_else(run: Run) -> None:
    sidecar = run(llama("parrot"))
    for model in ("parrot", "no-such-model"):
        with sidecar.client("sk-wrong") as client, pytest.raises(openai.AuthenticationError) as refused:
            client.chat.completions.create(model=model, messages=MESSAGES)
        assert refused.value.code == "invalid_api_key"
    with sidecar.client("sk-wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()
    assert sidecar.starts("parrot") == 0
    assert not any("sk-wrong" in line for line in sidecar.log)


def test_an_unknown_model_is_refused_with_near_names(run: Run) -> None:
    sidecar = run(llama("parrot"))
    with sidecar.client() as client, pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="parott", messages=MESSAGES)
    assert refused.value.code == "model_not_found"
    assert "near it: parrot" in refused.value.message


def test_models_are_listed_by_name_and_found_by_alias(run: Run) -> None:
    sidecar = run(llama("parrot", model='aliases = ["gpt-4o-mini"]'), llama("compass", mode="embedding"))
    with sidecar.client() as client:
        assert [model.id for model in client.models.list()] == ["compass", "parrot"]
        assert client.models.retrieve("gpt-4o-mini").id == "parrot"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("nope")


def test_a_server_killed_under_a_stream_fails_the_stream_and_is_restarted_by_the_next_request(run: Run) -> None:
    sidecar = run(llama("parrot"))
    with sidecar.client() as client:
        body: Any = {"ignore_eos": True}
        stream = client.chat.completions.create(
            model="parrot", messages=MESSAGES, stream=True, max_tokens=1_000_000, extra_body=body
        )
        pieces = iter(stream)
        next(pieces)
        os.kill(sidecar.pid("parrot"), signal.SIGKILL)
        with pytest.raises((openai.APIError, openai.APIConnectionError)):
            for _ in pieces:
                pass
    assert sidecar.ask("parrot") == SENTENCE
    assert sidecar.starts("parrot") == 2
    assert any("was killed by SIGKILL while it was serving" in line for line in sidecar.log)
    until(lambda: any("end=upstream_failed" in line for line in sidecar.log), "the outcome says so")


def test_a_client_that_leaves_mid_stream_is_cancelled_upstream(run: Run) -> None:
    sidecar = run(llama("parrot"))
    with sidecar.client() as client:
        body: Any = {"ignore_eos": True}
        stream = client.chat.completions.create(
            model="parrot", messages=MESSAGES, stream=True, max_tokens=1_000_000, extra_body=body
        )
        next(iter(stream))
        port = sidecar.model("parrot")["server"]["port"]
        assert sidecar.model("parrot")["server"]["in_flight"] == 1
        assert _busy_slots(port) == 1
        stream.close()
    until(lambda: sidecar.model("parrot")["server"]["in_flight"] == 0, "the lease comes back")
    until(lambda: _busy_slots(port) == 0, "llama.cpp stops generating")
    until(lambda: any("end=client_gone" in line for line in sidecar.log), "the outcome says so")


def _busy_slots(port: int) -> int:
    import httpx

    slots = httpx.get(f"http://127.0.0.1:{port}/slots", trust_env=False).json()
    return sum(bool(slot["is_processing"]) for slot in slots)
