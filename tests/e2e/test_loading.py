"""`loading_events`: streams are told that their model loads, and what becomes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import Run
from tests.e2e.harness import Sidecar, seen, stub, until

TELL = "loading_events = true"
MESSAGES: Any = [{"role": "user", "content": "hi"}]
PATH = "/v1/chat/completions"


@contextmanager
def asking(sidecar: Sidecar, model: str, **headers: str) -> Iterator[httpx.Response]:
    """A streaming request, whose answer is there as soon as its head is."""
    body = {"model": model, "stream": True, "messages": MESSAGES}
    with sidecar.http() as http, http.stream("POST", PATH, json=body, headers=headers) as answer:
        yield answer


def broken(answer: httpx.Response) -> bytes:
    """What comes of a body that must not end well."""
    received = b""
    with pytest.raises(httpx.RemoteProtocolError):
        for piece in answer.iter_raw():
            received += piece
    return received


def error_in(received: bytes) -> dict[str, Any]:
    """The error of the last event."""
    error: dict[str, Any] = json.loads(received.strip().splitlines()[-1].removeprefix(b"data: "))["error"]
    return error


def without_comments(received: bytes) -> bytes:
    """The stream as clients understand it. It must have comments, and all of them first."""
    comments, _, events = received.rpartition(b" s)\n\n")
    assert re.fullmatch(rb"(: loading [^\n]* \(\d+( s\)\n\n|$))+", comments)
    return events


def outcome(sidecar: Sidecar, model: str, end: str) -> str:
    """The model's line in the log for an exchange that ended in this way."""

    def lines() -> list[str]:
        return [line for line in list(sidecar.log) if f"model={model} " in line and f"end={end} " in line]

    until(lambda: bool(lines()), f"an outcome of {model}: {end}")
    return lines()[-1]


def test_a_stream_that_waits_gets_comments_and_then_the_same_bytes_as_one_that_does_not(run: Run) -> None:
    sidecar = run(stub("slow", "--unhealthy-for", "1.5", model=TELL))
    with asking(sidecar, "slow", **{"accept-encoding": "gzip"}) as answer:
        assert sidecar.model("slow")["waiting"] == 1  # the head is here, the server is not
        head = answer.headers
        received = answer.read()
    assert answer.status_code == 200
    assert head["content-type"] == "text/event-stream"
    assert head["cache-control"] == "no-cache"
    assert head["x-accel-buffering"] == "no"
    assert "x-served-by" not in head
    line = outcome(sidecar, "slow", "ok")
    assert "status=200 end=ok streamed=True cold=True" in line
    queue, first_byte = (float(number) for number in re.findall(r"(?:first_byte|queue)_s=([\d.]+)", line))
    assert first_byte > queue > 1  # comments are no first byte

    with asking(sidecar, "slow", **{"accept-encoding": "gzip"}) as quick:
        assert quick.headers["x-served-by"] == "slow"
        assert without_comments(received) == quick.read()
    asked = [dict(request["headers"])["accept-encoding"] for request in seen(sidecar.model("slow")["server"]["port"])]
    assert asked == ["identity", "gzip"]  # after its head a stream cannot become encoded any more


def test_the_official_client_does_not_notice_the_comments(run: Run) -> None:
    sidecar = run(stub("slow", "--unhealthy-for", "1.2", model=TELL))
    with sidecar.client() as client:
        stream = client.chat.completions.create(model="slow", messages=MESSAGES, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == "slow-0 slow-1 slow-2 slow-3 "


def test_a_request_that_does_not_stream_waits_in_silence(run: Run) -> None:
    sidecar = run(stub("slow", "--unhealthy-for", "1.2", model=TELL))
    with sidecar.http() as http:
        answer = http.post(PATH, json={"model": "slow", "messages": MESSAGES})
    assert answer.headers["x-served-by"] == "slow"
    assert answer.json()["choices"][0]["message"]["content"].startswith("slow-0")


def test_a_start_that_fails_is_told_by_an_event_and_a_broken_connection(run: Run) -> None:
    flags = ("--unhealthy-for", "inf", "--exit-after", "1.5", "--exit-code", "7", "--stderr-line", "out of memory")
    sidecar = run(stub("fleeting", *flags, model=TELL))
    with asking(sidecar, "fleeting") as answer:
        received = broken(answer)
    assert answer.status_code == 200
    assert received.startswith(b": loading fleeting: ")
    error = error_in(received)
    assert (error["code"], error["type"], error["param"]) == ("exited", "server_error", "model")
    assert "exited with code 7" in error["message"]
    assert "status=503 end=refused code=exited" in outcome(sidecar, "fleeting", "refused")
    with asking(sidecar, "fleeting") as again:  # in backoff: there is no wait, so there is a plain answer
        assert again.status_code == 503
        assert int(again.headers["retry-after"]) >= 1
        assert json.loads(again.read())["error"]["code"] == "exited"


def test_the_official_client_raises_the_error_that_came_after_comments(run: Run) -> None:
    sidecar = run(stub("fleeting", "--unhealthy-for", "inf", "--exit-after", "1.5", "--exit-code", "7", model=TELL))
    with sidecar.client() as client:
        stream = client.chat.completions.create(model="fleeting", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="exited with code 7") as failed:
            list(stream)
    assert failed.value.code == "exited"


def test_a_client_that_leaves_while_the_model_loads_takes_its_demand_along(run: Run) -> None:
    sidecar = run(stub("slow", "--unhealthy-for", "3", model=TELL))
    with asking(sidecar, "slow") as answer:
        pieces = answer.iter_raw()  # kept: a client that lets go of it leaves
        assert next(pieces).startswith(b": loading slow: ")
        assert sidecar.model("slow")["waiting"] == 1
    until(lambda: sidecar.model("slow")["waiting"] == 0, "nobody waits")
    assert "status=0 end=client_gone code=client_gone" in outcome(sidecar, "slow", "client_gone")
    until(lambda: sidecar.state("slow") == "ready", "the start goes on for those who come later")
    assert sidecar.model("slow")["server"]["in_flight"] == 0


def test_what_the_server_refuses_after_the_wait_reaches_the_client_in_an_event(run: Run) -> None:
    sidecar = run(stub("picky", "--unhealthy-for", "1.5", "--status", "400", model=TELL))
    with asking(sidecar, "picky") as answer:
        received = broken(answer)
    assert answer.status_code == 200
    assert error_in(received) == {"message": "it does not want to", "type": "server_error"}
    assert "status=400 end=ok streamed=True cold=True" in outcome(sidecar, "picky", "ok")
    with asking(sidecar, "picky") as plain:
        assert plain.status_code == 400
        assert json.loads(plain.read())["error"]["message"] == "it does not want to"


def test_a_server_that_dies_after_the_wait_is_never_a_clean_end(run: Run) -> None:
    sidecar = run(stub("brittle", "--unhealthy-for", "1.2", "--die-after-chunks", "2", model=TELL))
    with asking(sidecar, "brittle") as answer:
        received = broken(answer)
    assert received.startswith(b": loading brittle: ")
    assert b"brittle-1" in received
    assert b"[DONE]" not in received
    assert error_in(received)["code"] == "upstream_failed"
    assert "code=upstream_failed" in outcome(sidecar, "brittle", "upstream_failed")


def test_what_is_known_before_the_wait_is_answered_plainly(run: Run) -> None:
    sidecar = run(stub("slow", "--unhealthy-for", "60", model=TELL))
    body = {"model": "slow", "stream": True, "messages": MESSAGES}
    with sidecar.http() as http:
        stranger = http.post(PATH, json=body, headers={"authorization": "Bearer no"})
        unknown = http.post(PATH, json={**body, "model": "slowly"})
        elsewhere = http.post("/v1/embeddings", json=body)
    codes = [(answer.status_code, answer.json()["error"]["code"]) for answer in (unknown, elsewhere)]
    assert stranger.status_code == 401
    assert codes == [(404, "model_not_found"), (400, "wrong_mode")]
    assert sidecar.model("slow")["waiting"] == 0


def test_a_full_queue_is_told_plainly_and_when_to_come_back(run: Run) -> None:
    sidecar = run(stub("slow", "--unhealthy-for", "60", model=f"{TELL}\nmax_queue = 1"))
    with asking(sidecar, "slow"), sidecar.client() as client, pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model="slow", messages=MESSAGES, stream=True)
    assert refused.value.code == "queue_full"
    assert int(refused.value.response.headers["retry-after"]) >= 1
