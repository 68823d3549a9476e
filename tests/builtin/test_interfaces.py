"""The modes of servers with OpenAI's or Anthropic's API: their paths, what healthy means, and where usage stands."""

from __future__ import annotations

import json
from typing import Any

import pytest

from plugin_sdk import Interface, NotReady, Reply, Request, Usage
from sidecar.builtin.interfaces import (
    Base,
    Chat,
    Classifier,
    Embedding,
    Image,
    Messages,
    Realtime,
    Reranker,
    Responses,
    Speech,
    Transcription,
)
from sidecar.mechanism.plugins import BUILTIN

MODES: list[type[Interface]] = [
    *(Chat, Base, Embedding, Reranker, Classifier, Messages, Responses, Transcription, Speech, Image, Realtime)
]
TOKENS = {"/tokenize", "/detokenize"}
SCORES = {"/score", "/v1/score"}
CLASSES = {"/classify", "/v1/classify"}
PATHS: dict[str, set[str]] = {
    "chat": {"/v1/chat/completions", "/chat/completions", "/apply-template", *TOKENS},
    "base": {"/v1/completions", "/completions", "/completion", "/infill", *TOKENS},
    "embedding": {"/v1/embeddings", "/embeddings", "/embedding", "/pooling", *SCORES, *TOKENS},
    "reranker": {
        *("/v1/rerank", "/rerank", "/v1/reranking", "/reranking", "/v2/rerank"),
        *("/pooling", *SCORES, *CLASSES, *TOKENS),
    },
    "classifier": {"/v1/moderations", "/moderations", "/pooling", *CLASSES, *TOKENS},
    "messages": {"/v1/messages", "/messages", "/v1/messages/count_tokens", "/messages/count_tokens"},
    "responses": {
        *("/v1/responses", "/responses", "/v1/responses/compact", "/responses/compact"),
        *("/v1/responses/input_tokens", "/responses/input_tokens"),
    },
    "transcription": {
        *("/v1/audio/transcriptions", "/audio/transcriptions"),
        *("/v1/audio/translations", "/audio/translations"),
    },
    "speech": {"/v1/audio/speech", "/audio/speech"},
    "image": {
        *("/v1/images/generations", "/images/generations", "/v1/images/edits", "/images/edits"),
        *("/v1/images/variations", "/images/variations"),
    },
    "realtime": {"/v1/realtime", "/realtime"},
}


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


@pytest.mark.parametrize("cls", MODES)
def test_a_mode_has_the_paths_of_its_servers(cls: type[Interface]) -> None:
    paths = [one.path for one in cls.endpoints]
    assert len(set(paths)) == len(paths)
    assert set(paths) == PATHS[cls.provides]
    assert {one.method for one in cls.endpoints} == {"GET" if cls is Realtime else "POST"}


def test_every_mode_is_there_without_being_declared() -> None:
    for cls in MODES:
        assert BUILTIN[cls.provides] == f"sidecar.builtin.interfaces:{cls.__name__}"


def test_event_filters_can_read_all_but_sound_and_forms() -> None:
    assert {cls.provides for cls in MODES if not cls.events} == {"transcription", "speech", "realtime"}


def test_a_path_means_the_same_in_every_mode_that_has_it() -> None:
    meant: dict[str, str] = {}
    for endpoint in (endpoint for cls in MODES for endpoint in cls.endpoints):
        assert meant.setdefault(endpoint.path, endpoint.operation) == endpoint.operation
    assert not [path for path in meant if path.startswith(("/-/", "/upstream/"))]


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


# --- Anthropic's ----------------------------------------------------------------------------------------------------

START = {
    "type": "message_start",
    "message": {"model": "claude-x", "usage": {"input_tokens": 10, "cache_read_input_tokens": 4, "output_tokens": 1}},
}
DELTA = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}}


def named(value: dict[str, Any]) -> bytes:
    return f"event: {value['type']}\n".encode() + event(value)


def test_anthropics_usage_counts_cached_tokens_as_input() -> None:
    counts = {"input_tokens": 10, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 5}
    body = json.dumps({"type": "message", "model": "claude-x", "usage": counts}).encode()
    expected = Usage(input_tokens=17, output_tokens=5, cached_tokens=4, response_model="claude-x")
    assert Messages().usage(body, False) == expected


def test_anthropics_stream_tells_its_input_first_and_its_output_last() -> None:
    text = named({"type": "content_block_delta", "delta": {"text": 'say "usage": {"output_tokens": 99}'}})
    stream = named(START) + text + named(DELTA) + named({"type": "message_stop"})
    expected = Usage(input_tokens=14, output_tokens=9, cached_tokens=4, response_model="claude-x")
    assert Messages().usage(stream, True) == expected


def test_of_the_end_of_anthropics_stream_the_output_is_known() -> None:
    assert Messages().usage(named(DELTA), True) == Usage(output_tokens=9)
    whole = {**DELTA, "usage": {"input_tokens": 6, "cache_read_input_tokens": None, "output_tokens": 9}}
    assert Messages().usage(named(whole), True) == Usage(input_tokens=6, output_tokens=9)


def test_a_count_of_tokens_uses_none() -> None:
    assert Messages().usage(b'{"input_tokens": 12}', False) is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_anthropics_errors_have_its_types(status: int, kind: str) -> None:
    body = Messages().error(status, "some_code", 'it "failed"\nhere', "model")
    error = {"type": kind, "message": 'it "failed"\nhere', "code": "some_code"}
    assert json.loads(body) == {"type": "error", "error": error}
    assert b"\n" not in body
    assert Messages().error_event(body) == b"event: error\ndata: " + body + b"\n\n"


def test_errors_are_openais_by_default() -> None:
    body = Chat().error(404, "model_not_found", "there is none", "model")
    error = {"message": "there is none", "type": "not_found_error", "param": "model", "code": "model_not_found"}
    assert json.loads(body) == {"error": error}
    assert Chat().error_event(body) == b"data: " + body + b"\n\n"


# --- the Responses API's --------------------------------------------------------------------------------------------

COUNTS = {"input_tokens": 7, "input_tokens_details": {"cached_tokens": 2}, "output_tokens": 4, "total_tokens": 11}


@pytest.mark.parametrize("cls", [Responses, Image, Transcription])
def test_usage_of_responses_images_and_transcriptions_stands_in_the_body(cls: type[Interface]) -> None:
    body = json.dumps({"model": "gpt-x", "usage": COUNTS}).encode()
    expected = Usage(input_tokens=7, output_tokens=4, cached_tokens=2, response_model="gpt-x")
    assert cls().usage(body, False) == expected


def test_a_stream_of_responses_ends_with_the_whole_answer() -> None:
    said = {"type": "response.output_text.delta", "delta": '"usage":{"input_tokens":1}'}
    done = {"type": "response.completed", "response": {"model": "gpt-x", "output": ["x" * 5000], "usage": COUNTS}}
    stream = named({"type": "response.created", "response": {"usage": None}}) + named(said) + named(done)
    expected = Usage(input_tokens=7, output_tokens=4, cached_tokens=2, response_model="gpt-x")
    assert Responses().usage(stream, True) == expected
    cut = stream[-300:]
    assert Responses().usage(cut, True) == Usage(input_tokens=7, output_tokens=4, cached_tokens=2)


def test_of_a_large_image_the_end_is_enough_and_quoted_text_is_no_usage() -> None:
    body = json.dumps({"data": [{"b64_json": "x" * 9000}], "usage": COUNTS}, separators=(",", ":")).encode()
    assert Image().usage(body[-500:], False) == Usage(input_tokens=7, output_tokens=4, cached_tokens=2)
    quoted = json.dumps({"text": '"usage":{"input_tokens":7}'}).encode()
    assert Image().usage(quoted[3:], False) is None


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b'"usage":', b'"usage":{', b'"usage":{"input_tokens":"x"}', b"plain words"]
)
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("cls", [Messages, Responses, Transcription, Speech, Image])
def test_no_mode_makes_usage_up(cls: type[Interface], streamed: bool, body: bytes) -> None:
    assert cls().usage(body, streamed) is None


def test_a_transcription_that_counts_seconds_has_no_tokens() -> None:
    assert Transcription().usage(b'{"text": "hi", "usage": {"type": "duration", "seconds": 3}}', False) is None


def test_sound_has_no_usage_but_its_events_have() -> None:
    assert Speech().usage(json.dumps({"usage": COUNTS}).encode(), False) is None
    done = {"type": "speech.audio.done", "usage": COUNTS}
    assert Speech().usage(event(done), True) == Usage(input_tokens=7, output_tokens=4, cached_tokens=2)
