"""The modes of OpenAI-compatible servers: their paths, what healthy means, and where usage stands."""

from __future__ import annotations

import json
from typing import Any

import pytest

from plugin_sdk import Interface, NotReady, Reply, Request, Usage
from sidecar.builtin.interfaces import Base, Chat, Embedding, Reranker

MODES: list[tuple[type[Interface], str, str, str]] = [
    (Chat, "chat", "/v1/chat/completions", "chat"),
    (Base, "base", "/v1/completions", "text_completion"),
    (Embedding, "embedding", "/v1/embeddings", "embeddings"),
    (Reranker, "reranker", "/v1/rerank", "rerank"),
]


class Server:
    """Answers probes from a table; what is not in it does not answer."""

    def __init__(self, answers: dict[str, Reply]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def get(self, path: str) -> Reply:
        self.asked.append(path)
        if path not in self.answers:
            raise ConnectionRefusedError("nobody there")
        return self.answers[path]

    async def post(self, path: str, body: bytes) -> Reply:
        raise AssertionError("a probe must not make the server work")


@pytest.mark.parametrize(("cls", "mode", "path", "operation"), MODES)
def test_a_mode_has_its_path_and_operation(cls: type[Interface], mode: str, path: str, operation: str) -> None:
    assert cls.provides == mode
    assert [(one.path, one.operation, one.method) for one in cls.endpoints] == [(path, operation, "POST")]


def test_no_two_modes_share_a_path() -> None:
    paths = [endpoint.path for cls, *_ in MODES for endpoint in cls.endpoints]
    assert len(set(paths)) == len(paths)


async def test_a_healthy_server_is_ready_after_one_question() -> None:
    server = Server({"/health": Reply(200, b"{}")})
    assert await Chat().ready(server)
    assert server.asked == ["/health"]


async def test_a_server_without_a_health_path_is_asked_for_its_models() -> None:
    server = Server({"/health": Reply(404), "/v1/models": Reply(200)})
    assert await Chat().ready(server)
    assert server.asked == ["/health", "/v1/models"]


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ({"/health": Reply(503, b"Loading model")}, "health check answered 503: Loading model"),
        ({"/health": Reply(401, b"\xff")}, "health check answered 401"),
        ({"/health": Reply(302)}, "health check answered 302"),
        ({"/health": Reply(404), "/v1/models": Reply(404, b"no")}, "health check answered 404: no"),
    ],
)
async def test_any_other_answer_is_not_ready_and_told(answers: dict[str, Reply], why: str) -> None:
    with pytest.raises(NotReady) as told:
        await Chat().ready(Server(answers))
    assert str(told.value).startswith(why)


async def test_a_long_answer_is_not_told_whole() -> None:
    with pytest.raises(NotReady) as told:
        await Chat().ready(Server({"/health": Reply(500, b"x" * 100_000)}))
    assert len(str(told.value)) < 300


async def test_no_answer_is_an_os_error() -> None:
    with pytest.raises(OSError, match="nobody there"):
        await Chat().ready(Server({}))


def test_every_request_is_valid_by_default() -> None:
    Chat().validate(Request(method="POST", path="/v1/chat/completions", body=b"not even JSON"))


# --- usage --------------------------------------------------------------------------------------------------------


def usage(value: Any, *, streamed: bool = False) -> Usage | None:
    tail = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Chat().usage(tail, streamed)


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def test_usage_stands_in_the_body() -> None:
    body = {
        "model": "qwen3-8b",
        "choices": [{"message": {"content": 'say "usage": {}'}}],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 8},
        },
    }
    assert usage(body) == Usage(input_tokens=10, output_tokens=5, cached_tokens=8, response_model="qwen3-8b")


def test_embeddings_and_rankings_may_have_a_total_alone() -> None:
    assert usage({"usage": {"total_tokens": 7}}) == Usage(input_tokens=7)
    assert usage({"usage": {"prompt_tokens": 7, "total_tokens": 7}}) == Usage(input_tokens=7)


def test_in_a_stream_the_last_event_that_has_one_counts() -> None:
    stream = (
        event({"usage": {"prompt_tokens": 1, "completion_tokens": 1}})
        + event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4}})
        + event({"choices": [{"delta": {"content": '"usage"'}}], "usage": None})
        + b"data: [DONE]\n\n"
    )
    assert usage(stream, streamed=True) == Usage(input_tokens=7, output_tokens=4)
    assert usage(stream.replace(b"\n", b"\r\n"), streamed=True) == Usage(input_tokens=7, output_tokens=4)
    assert usage(stream.replace(b"data: ", b"data:"), streamed=True) == Usage(input_tokens=7, output_tokens=4)


def test_the_tail_of_a_stream_may_begin_anywhere() -> None:
    stream = event({"text": "x" * 50}) + event({"usage": {"prompt_tokens": 7, "completion_tokens": 4}})
    for cut in range(60):
        assert usage(stream[cut:], streamed=True) == Usage(input_tokens=7, output_tokens=4)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"usage": null}',
        b'{"usage": 3}',
        b'{"usage": {"prompt_tokens": "many"}}',
        b'{"usage": {"prompt_tokens": 3}',
        b"data: {}\n\n",
        b'data: {"usage": {\n\n',
        b'data: "usage"\n\n',
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_where_there_is_no_usage_there_is_none(body: bytes, streamed: bool) -> None:
    assert usage(body, streamed=streamed) is None


def test_details_of_another_shape_are_no_details() -> None:
    for details in ({"cached_tokens": None}, {"cached_tokens": "8"}, {}, None):
        found = usage({"usage": {"prompt_tokens": 3, "prompt_tokens_details": details}})
        assert found == Usage(input_tokens=3)
