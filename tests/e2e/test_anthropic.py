"""The official Anthropic client gets from llama.cpp through the sidecar what it gets from llama.cpp itself."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anthropic
import pytest

from tests.e2e.harness import KEY, PATIENCE_S, seen, until
from tests.e2e.pair import Pair, asked_twice, lasting_headers, plain, plain_bytes, same

MESSAGES: Any = [{"role": "user", "content": "Wie ist das Wetter? ☂"}]
PARAMETERS: Any = {"type": "object", "properties": {"city": {"type": "string"}, "metric": {"type": "boolean"}}}
TOOLS: Any = [{"name": "weather", "description": "☂", "input_schema": PARAMETERS}]
SAID_BEFORE: Any = [
    *MESSAGES,
    {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "X"}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "rain"}]},
]
PIXEL = base64.b64encode(bytes(range(256)) * 4096).decode()
IMAGE: Any = [
    {
        "role": "user",
        "content": [
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
            {"type": "text", "text": "What is it?"},
        ],
    }
]

Ask = Callable[[anthropic.Anthropic], Any]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with asked_twice(tmp_path_factory.mktemp("anthropic")) as pair:
        yield pair


def message(client: anthropic.Anthropic, model: str = "parrot", **more: Any) -> Any:
    return client.messages.create(**{"model": model, "max_tokens": 64, "messages": MESSAGES, **more})


def both(pair: Pair) -> tuple[anthropic.Anthropic, anthropic.Anthropic]:
    return pair.both_anthropic("parrot")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "system": "Be brief.",
            "stop_sequences": ["tool"],
            "metadata": {"user_id": "u"},
            "extra_body": {"temperature": 0},
        },
        {"max_tokens": 2},
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": {"type": "none"}, "messages": SAID_BEFORE},
    ],
)
def test_answers_and_streams_are_those_of_the_server(pair: Pair, more: dict[str, Any]) -> None:
    assert same(both(pair), lambda client: message(client, **more))
    assert len(same(both(pair), lambda client: list(message(client, stream=True, **more)))) > 5


def test_a_tool_is_used(pair: Pair) -> None:
    answer = same(both(pair), lambda client: message(client, tools=TOOLS))
    used = answer["content"][-1]
    assert (used["name"], used["input"]) == ("weather", {"city": "Oslo", "metric": True})
    assert answer["stop_reason"] == "tool_use"


def test_a_stream_is_gathered_to_the_same_message(pair: Pair) -> None:
    def gathered(client: anthropic.Anthropic) -> Any:
        with client.messages.stream(model="parrot", max_tokens=64, messages=MESSAGES, tools=TOOLS) as stream:
            return [event.type for event in stream], stream.get_final_message()

    events, whole = same(both(pair), gathered)
    assert "input_json" in events
    assert whole["usage"]["output_tokens"] == 15
    until(lambda: any(" output_tokens=15 " in line for line in pair.logged("parrot")[-1:]), "the tokens are logged")


def test_tokens_are_counted(pair: Pair) -> None:
    count = same(both(pair), lambda client: client.messages.count_tokens(model="parrot", messages=MESSAGES))
    assert count["input_tokens"] > 5


def test_the_beta_methods_and_bearer_tokens_work_as_well(pair: Pair) -> None:
    asked: Any = {"model": "parrot", "messages": MESSAGES}
    same(both(pair), lambda client: client.beta.messages.create(**asked, max_tokens=5, betas=["a-2025-01-01"]))
    same(both(pair), lambda client: client.beta.messages.count_tokens(**asked))
    with anthropic.Anthropic(base_url=pair.sidecar.url, api_key=None, auth_token=KEY, max_retries=0) as bearer:
        assert message(bearer).usage.output_tokens == 15


def test_bodies_and_headers_are_the_same_to_the_byte(pair: Pair) -> None:
    def streamed(client: anthropic.Anthropic) -> Any:
        create = client.messages.with_streaming_response.create
        with create(model="parrot", max_tokens=64, messages=MESSAGES, stream=True) as answer:
            return answer.status_code, lasting_headers(answer.headers), plain_bytes(b"".join(answer.iter_bytes()))

    status, _, body = same(both(pair), streamed)
    assert status == 200
    assert body.endswith(b'data: {"type":"message_stop"}\n\n')


def test_images_and_beta_headers_reach_the_server(pair: Pair) -> None:
    for client in pair.both_anthropic("mirror"):
        message(client, "mirror", messages=IMAGE, extra_headers={"anthropic-beta": "a-2025-01-01,b"})
    direct, through = seen(int(pair.servers["mirror"].rpartition(":")[2]))[-2:]
    assert through["body"] == direct["body"]
    assert PIXEL in through["body"]
    ours = {"host", "x-api-key", "authorization", "connection", "content-length"}
    one, two = ([header for header in got["headers"] if header[0].lower() not in ours] for got in (direct, through))
    assert two == one
    assert KEY not in json.dumps(through["headers"])


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (anthropic.InternalServerError, {"messages": IMAGE}),
        (
            anthropic.BadRequestError,
            {"tools": [{"name": "x", "input_schema": {"type": "?"}}], "tool_choice": {"type": "any"}},
        ),
        (anthropic.BadRequestError, {"messages": [{"role": "user", "content": "x" * 9000}], "stream": True}),
    ],
)
def test_errors_of_the_server_are_the_same_exceptions(
    pair: Pair, kind: type[anthropic.APIStatusError], more: dict[str, Any]
) -> None:
    def refused(client: anthropic.Anthropic) -> Any:
        with pytest.raises(kind) as raised:
            message(client, **more)
        error = raised.value
        return error.status_code, error.body, str(error), lasting_headers(error.response.headers)

    same(both(pair), refused)


async def test_the_client_for_asyncio_sees_the_same_at_once(pair: Pair) -> None:
    through = anthropic.AsyncAnthropic(base_url=pair.sidecar.url, api_key=KEY, max_retries=0, timeout=PATIENCE_S)

    async def asked(client: anthropic.AsyncAnthropic) -> Any:
        stream = await client.messages.create(model="parrot", max_tokens=64, messages=MESSAGES, stream=True)
        whole = await client.messages.create(model="parrot", max_tokens=64, messages=MESSAGES, tools=TOOLS)
        return plain([whole, *[event async for event in stream]])

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(through)
        direct = through.with_options(base_url=pair.servers["parrot"])
        expected, *others = await asyncio.gather(*map(asked, (direct, *[through] * 4)))
    assert all(other == expected for other in others)


@pytest.mark.parametrize(
    ("model", "key", "kind", "type_", "code"),
    [
        ("parrot", "sk-wrong", anthropic.AuthenticationError, "authentication_error", "invalid_api_key"),
        ("parott", KEY, anthropic.NotFoundError, "not_found_error", "model_not_found"),
        ("compass", KEY, anthropic.BadRequestError, "invalid_request_error", "wrong_mode"),
        ("absent", KEY, anthropic.ServiceUnavailableError, "overloaded_error", "external_unhealthy"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_are_anthropics_exceptions(
    pair: Pair, model: str, key: str, kind: type[anthropic.APIStatusError], type_: str, code: str, stream: bool
) -> None:
    with pytest.raises(kind) as raised:
        message(pair.client_anthropic.with_options(api_key=key), model, stream=stream)
    body: Any = raised.value.body
    assert body["type"] == "error"
    assert (body["error"]["type"], body["error"]["code"]) == (type_, code)
    assert raised.value.type == type_
    with pytest.raises(kind):
        pair.client_anthropic.with_options(api_key=key).messages.count_tokens(model=model, messages=MESSAGES)


def test_a_limit_is_a_rate_limit_error_that_says_when_to_come_back(pair: Pair) -> None:
    with pytest.raises(anthropic.RateLimitError) as raised:
        for _ in range(2):
            message(pair.client_anthropic, "few")
    assert raised.value.type == "rate_limit_error"
    assert int(raised.value.response.headers["retry-after"]) > 30


def test_a_server_that_dies_in_mid_stream_is_an_exception_after_what_it_had_said(pair: Pair) -> None:
    with dying() as url:
        pair.sidecar.write("dying.toml", f'[models.dying]\nmode = "messages"\nvariants = [{{ url = "{url}" }}]\n')
        until(lambda: any(model["name"] == "dying" for model in pair.sidecar.status()["models"]), "it is declared")
        events: list[str] = []
        with pytest.raises(anthropic.APIStatusError) as raised:
            events.extend(event.type for event in message(pair.client_anthropic, "dying", stream=True))
    assert events == ["message_start"]
    assert raised.value.type == "api_error"
    body: Any = raised.value.body
    assert body["error"]["code"] == "upstream_failed"


class Dying(BaseHTTPRequestHandler):
    """It is well until it is asked."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        started = {
            "type": "message_start",
            "message": {"id": "m", "type": "message", "role": "assistant", "content": []},
        }
        event = f"event: message_start\ndata: {json.dumps(started)}\n\nevent: content_bl".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server gives it
        """Say nothing."""


@contextmanager
def dying() -> Iterator[str]:
    """The address of a server that breaks off."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Dying) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
