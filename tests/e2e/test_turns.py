"""Models that want the same memory: who waits, who goes, and what is told meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import Run
from tests.e2e.harness import Sidecar, stub, until

ROOM = '[devices.host]\nmatch = { class = "cpu" }\nmemory_mb = 150\n'


def sharing(*models: str) -> tuple[str, ...]:
    """The models on a device that holds one of them."""
    return (ROOM, *(model.replace('["cpu"]', '["host"]') for model in models))


@contextmanager
def streaming(sidecar: Sidecar, model: str) -> Iterator[Iterator[bytes]]:
    """A stream that is under way; the rest of it, for whoever wants to read on."""
    body = {"model": model, "stream": True, "messages": []}
    with sidecar.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        yield pieces


def test_an_overdue_model_gets_its_turn_and_no_request_is_cut_for_it(run: Run) -> None:
    busy = stub("busy", "--chunks", "60", "--interval", "0.05")
    sidecar = run(*sharing(busy, stub("patient", model='max_wait = "500ms"')))
    answers: list[str] = []
    with streaming(sidecar, "busy") as rest:
        waiting = threading.Thread(target=lambda: answers.append(sidecar.ask("patient")))
        waiting.start()
        until(lambda: sidecar.state("busy") == "draining", "its turn has come, so the incumbent is drained")
        behind = threading.Thread(target=lambda: answers.append(sidecar.ask("busy")))
        behind.start()  # comes after the one that waits
        assert b"[DONE]" in b"".join(rest)
    waiting.join(20)
    behind.join(20)
    assert [answer.partition("-")[0] for answer in answers] == ["patient", "busy"]
    reasons = [event["reason"] for event in events(sidecar, "busy") if event["type"] == "Draining"]
    assert reasons == ["TurnOver"]


def test_a_model_that_has_just_come_is_left_alone_for_its_residency(run: Run) -> None:
    sidecar = run(*sharing(stub("fresh", model='min_residency = "1500ms"'), stub("eager")))
    sidecar.ask("fresh")
    began = time.monotonic()
    sidecar.ask("eager")
    assert time.monotonic() - began > 1.0
    assert sidecar.model("fresh")["state"] == "stopped"


def test_one_request_too_many_in_the_queue_is_told_when_to_come_back(run: Run) -> None:
    sidecar = run(stub("slow", "--unhealthy-for", "60", model="max_queue = 2"))

    def wait() -> None:
        with pytest.raises(openai.APIError):
            sidecar.ask("slow")

    waiting = [threading.Thread(target=wait) for _ in range(2)]
    for one in waiting:
        one.start()
    until(lambda: sidecar.model("slow")["waiting"] == 2, "the queue is full")
    with pytest.raises(openai.RateLimitError) as refused:
        sidecar.ask("slow")
    assert refused.value.code == "queue_full"
    assert int(refused.value.response.headers["retry-after"]) >= 1
    sidecar.cli("stop", "slow")
    for one in waiting:
        one.join(20)


def test_a_variant_that_fails_makes_way_for_the_next_one(run: Run) -> None:
    text = stub("either", "--exit-after", "0", "--exit-code", "3", variant='name = "first"')
    second = stub("either", variant='name = "second"').partition("[[")[2]
    sidecar = run(f"{text}\n[[{second}")
    assert sidecar.ask("either").startswith("either")  # also who came first
    assert sidecar.model("either")["server"]["variant"] == "second"
    started = [event["message"] for event in events(sidecar, "either") if event["type"] == "Started"]
    assert "passed over: variant first failed (Exited), tried again in" in started[-1]


def test_the_story_of_a_model_tells_what_would_help_and_who_would_have_to_go(run: Run) -> None:
    sidecar = run(*sharing(stub("here"), stub("there"), stub("huge", memory_mb=200, model="aliases = ['big']")))
    sidecar.ask("here")
    told = sidecar.cli("explain", "there").stdout
    assert "there: stopped" in told
    assert "what would help: free 50 MB on cpu; held by 100 MB reserved by here (ready)" in told
    assert "Stop here: makes room for there (variant default)" in told
    huge = sidecar.cli("explain", "big").stdout
    assert "Ready=false Unplaceable" in huge
    assert "lower memory_mb (the largest device has 150 usable MB), or require another device" in huge
    assert "A request now would be refused: Unplaceable" in huge
    here = sidecar.cli("explain", "here").stdout
    assert "running" in here
    assert "BecameReady" in here
    assert sidecar.cli("explain", "hero", check=False).returncode == 1


def events(sidecar: Sidecar, model: str) -> list[dict[str, Any]]:
    """What has happened to a model."""
    found = httpx.get(f"{sidecar.url}/-/events", params={"model": model}, trust_env=False).json()
    answer: list[dict[str, Any]] = found["events"]
    return answer


def test_an_engine_that_sizes_itself_loads_alone(run: Run) -> None:
    selfish = stub("selfish", "--unhealthy-for", "1", variant="exclusive_start = true")
    sidecar = run(selfish, stub("other"))
    loading = threading.Thread(target=lambda: sidecar.ask("selfish"))
    loading.start()
    until(lambda: sidecar.state("selfish") == "starting", "it loads")
    assert sidecar.ask("other").startswith("other")
    loading.join(20)
    ready = next(event for event in events(sidecar, "selfish") if event["type"] == "BecameReady")
    started = next(event for event in events(sidecar, "other") if event["type"] == "Started")
    assert started["seq"] > ready["seq"]
    waited = [event["message"] for event in events(sidecar, "other") if event["reason"] == "WaitingForStart"]
    assert waited == ["waits until selfish has loaded: exclusive_start"]
