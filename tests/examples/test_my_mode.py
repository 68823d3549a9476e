"""The example of a mode: its own path, requests, usage and errors, and a health check that asks for real work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from plugin_sdk import NotReady, Reject, Reply, Request, Usage
from plugin_sdk.testing import contract
from tests.e2e.harness import Sidecar, stub, until
from tests.examples import shipped
from tests.examples.copies import problems

PATH = "/v1/mymode/completions"
example = shipped.module("my_mode")

test_contract = contract(
    example.MyMode, request=Request(method="POST", path=PATH, body=b'{"model": "yea", "prompt": "Is it so?"}')
)


class Server:
    """A server that calls itself healthy. completion: what it answers otherwise."""

    def __init__(self, completion: Reply) -> None:
        self.completion = completion
        self.asked = b""

    async def get(self, path: str) -> Reply:
        return Reply(200 if path == "/health" else 404)

    async def post(self, path: str, body: bytes) -> Reply:
        assert path == PATH
        self.asked = body
        return self.completion


async def test_a_server_is_ready_when_it_has_completed_what_it_was_asked_for() -> None:
    server = Server(Reply(200, b'{"text": "yes", "counts": {"read": 2, "written": 1}}'))
    assert await example.MyMode(example.Settings(prompt="Well?", words=2)).ready(server)
    assert server.asked == b'{"prompt":"Well?","words":2}'


async def test_one_that_somebody_else_runs_is_asked_for_no_work_once_it_has_done_some() -> None:
    server = Server(Reply(500))
    assert await example.MyMode().alive(server)
    assert not server.asked


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Reply(500, b"out of memory"), "answers a completion with 500"),
        (Reply(200, b'{"text": " \\n"}'), "its completion is empty"),
        (Reply(200, b'{"text": 7}'), "its completion is none: Expected `str`"),
        (Reply(200, b"<html>"), "its completion is none: JSON is malformed"),
    ],
)
async def test_a_server_that_only_calls_itself_healthy_is_not_ready_and_told_why(reply: Reply, told: str) -> None:
    with pytest.raises(NotReady, match=f"it calls itself healthy, but .*{told}"):
        await example.MyMode().ready(Server(reply))


@pytest.mark.parametrize("body", [b"[]", b'{"prompt": 7}', b'{"prompt": " "}', b'{"prompt": "x", "words": 0}', b"\xff"])
def test_a_request_that_cannot_be_answered_is_refused(body: bytes) -> None:
    with pytest.raises(Reject) as refused:
        example.MyMode().validate(Request(method="POST", path=PATH, body=body))
    assert (refused.value.status, refused.value.code) == (400, "bad_prompt")


def test_counts_are_read_from_an_answer_or_from_the_end_of_a_stream() -> None:
    counts = b'{"text": "yes", "counts": {"read": 3, "written": 1}}'
    plugin = example.MyMode()
    found = Usage(input_tokens=3, output_tokens=1)
    assert plugin.usage(counts, False) == plugin.usage(b'"cut": 1}\n\ndata: ' + counts + b"\n\n", True) == found
    assert plugin.usage(b'data: {"text": "yes"}\n\n', True) is None


# --- in a sidecar, on the manifests as they are shipped -------------------------------------------------------------


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    with shipped.started("my_mode", tmp_path_factory.mktemp("my_mode"), {"chatty.toml": stub("chatty")}) as found:
        yield found


def ask(sidecar: Sidecar, model: str, path: str = PATH, **fields: Any) -> tuple[int, Any]:
    """The status and the JSON of an answer."""
    with sidecar.http() as http:
        answer = http.post(path, json={"model": model, "prompt": "Is it so?", **fields})
    return answer.status_code, answer.json()


def test_the_manifests_are_fine_as_they_are_shipped() -> None:
    assert problems(shipped.PLUGINS / "my_mode") == ""


def test_its_own_path_leads_to_a_server_that_works_and_its_words_are_counted(sidecar: Sidecar) -> None:
    assert ask(sidecar, "yea", words=3) == (200, {"text": "yes indeed so", "counts": {"read": 3, "written": 3}})
    with sidecar.http() as http:
        streamed = http.post(PATH, json={"model": "yea", "prompt": "Is it?", "words": 2, "stream": True})
    assert streamed.text.count("data: ") == 3
    usage = ("input_tokens=3 output_tokens=3 ", "input_tokens=2 output_tokens=2 ")
    until(lambda: all(words in "".join(sidecar.log) for words in usage), "both are logged")


def test_a_server_that_is_healthy_but_does_not_work_is_never_routed_to(sidecar: Sidecar) -> None:
    status, answer = ask(sidecar, "hollow")
    assert (status, answer["problem"]["code"]) == (503, "load_timeout")
    assert "it calls itself healthy, but its completion is empty" in answer["problem"]["reason"]
    assert sidecar.starts("hollow") == 1


def test_a_request_that_makes_no_sense_starts_no_server(sidecar: Sidecar) -> None:
    starts = sidecar.starts("yea")
    status, answer = ask(sidecar, "yea", prompt=7)
    assert (status, answer["problem"]["code"]) == (400, "bad_prompt")
    assert "`$.prompt`" in answer["problem"]["reason"]
    assert sidecar.starts("yea") == starts


def test_whoever_takes_the_wrong_path_is_told_the_right_one(sidecar: Sidecar) -> None:
    status, answer = ask(sidecar, "yea", "/v1/chat/completions")
    told = 'the model "yea" is of mode my_mode, not chat: it answers at /v1/mymode/completions'
    assert (status, answer["error"]["code"], answer["error"]["message"]) == (400, "wrong_mode", told)
    status, answer = ask(sidecar, "chatty")
    told = 'the model "chatty" is of mode chat, not my_mode: it answers at /v1/chat/completions'
    problem = {"status": 400, "code": "wrong_mode", "reason": told, "field": "model"}
    assert (status, answer) == (400, {"problem": problem})
