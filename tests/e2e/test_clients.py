"""The official OpenAI client gets from llama.cpp through the sidecar what it gets from llama.cpp itself."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.e2e.harness import seen, until
from tests.e2e.pair import Pair, asked_twice, lasting_headers, plain, plain_bytes

MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Wie ist das Wetter? ☂ \x00"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "metric": {"type": "boolean"}}}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "description": "☂", "parameters": PARAMETERS}}]
RESPONSES_TOOLS: Any = [{"type": "function", "strict": False, **TOOLS[0]["function"]}]
SAID_BEFORE: Any = [
    *MESSAGES,
    {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "X"}'}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
]
PIXEL = "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 4096).decode()
IMAGE: Any = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PIXEL}}],
    }
]
FIXED: Any = {"temperature": 0, "seed": 7}

Ask = Callable[[openai.OpenAI, str], Any]  # the model's name


class Weather(pydantic.BaseModel):
    """What is asked for. It has no strings, of which the model would find no end."""

    kind: Literal["rain", "sun"]
    certain: bool


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with asked_twice(tmp_path_factory.mktemp("clients")) as pair:
        yield pair


def chat(client: Any, model: str, **more: Any) -> Any:
    return client.chat.completions.create(model=model, **{**FIXED, "messages": MESSAGES, **more})


WHOLE: dict[str, Ask] = {
    "chat": chat,
    "several": lambda client, model: chat(client, model, n=2, max_tokens=3, stop=["never"]),
    "logprobs": lambda client, model: chat(client, model, logprobs=True, top_logprobs=3, max_tokens=3),
    "tools": lambda client, model: chat(client, model, tools=TOOLS),
    "answers of tools": lambda client, model: chat(
        client, model, tools=TOOLS, messages=SAID_BEFORE, parallel_tool_calls=False
    ),
    "no tools": lambda client, model: chat(client, model, tools=TOOLS, tool_choice="none"),
    "completions": lambda client, model: client.completions.create(
        model=model, **FIXED, prompt="Es war", max_tokens=4, logprobs=2
    ),
    "prompts": lambda client, model: client.completions.create(model=model, **FIXED, prompt=["a", "b"], max_tokens=2),
    "responses": lambda client, model: client.responses.create(model=model, input="hi", instructions="Be brief."),
    "responses with tools": lambda client, model: client.responses.create(
        model=model, input="hi", tools=RESPONSES_TOOLS, temperature=0
    ),
}
STREAMS: dict[str, Ask] = {
    "chat": lambda client, model: chat(client, model, stream=True),
    "usage": lambda client, model: chat(client, model, stream=True, stream_options={"include_usage": True}),
    "no usage": lambda client, model: chat(client, model, stream=True, stream_options={"include_usage": False}),
    "logprobs": lambda client, model: chat(client, model, stream=True, logprobs=True, top_logprobs=2),
    "tools": lambda client, model: chat(client, model, stream=True, tools=TOOLS),
    "completions": lambda client, model: client.completions.create(
        model=model, **FIXED, prompt="x", max_tokens=5, stream=True
    ),
    "responses": lambda client, model: client.responses.create(model=model, input="hi", stream=True),
}
REFUSED: dict[str, tuple[type[openai.APIStatusError], Ask]] = {
    "images without eyes": (openai.InternalServerError, lambda client, model: chat(client, model, messages=IMAGE)),
    "no messages": (openai.BadRequestError, lambda client, model: chat(client, model, messages="none")),
    "too long": (
        openai.BadRequestError,
        lambda client, model: client.completions.create(model=model, **FIXED, prompt="x" * 9000),
    ),
    "a bad schema": (
        openai.BadRequestError,
        lambda client, model: chat(
            client, model, response_format={"type": "json_schema", "json_schema": {"schema": {"type": "?"}}}
        ),
    ),
    "vectors of a model for chats": (
        openai.InternalServerError,
        lambda client, model: client.embeddings.create(model=model, input="x"),
    ),
    "a stream that does not begin": (
        openai.BadRequestError,
        lambda client, model: chat(client, model, messages="none", stream=True),
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_answers_are_those_of_the_server(pair: Pair, name: str) -> None:
    assert pair.same("parrot", WHOLE[name])


def test_a_tool_is_called(pair: Pair) -> None:
    answer = pair.same("parrot", WHOLE["tools"])
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo", "metric": True}


def test_an_answer_keeps_to_a_schema(pair: Pair) -> None:
    found = pair.same(
        "parrot",
        lambda client, model: client.chat.completions.parse(
            model=model, messages=MESSAGES, response_format=Weather, temperature=0
        ),
    )
    assert Weather.model_validate_json(found["choices"][0]["message"]["content"])


@pytest.mark.parametrize("name", STREAMS)
def test_streams_come_in_the_same_pieces(pair: Pair, name: str) -> None:
    chunks = pair.same("parrot", lambda client, model: list(STREAMS[name](client, model)))
    assert len(chunks) > 5
    usage = [chunk for chunk in chunks if chunk.get("usage")]
    assert len(usage) == (name in ("usage", "completions"))


def test_helpers_that_gather_a_stream_see_the_same(pair: Pair) -> None:
    def gathered(client: openai.OpenAI, model: str) -> Any:
        with client.chat.completions.stream(model=model, messages=MESSAGES, tools=TOOLS) as stream:
            kinds = [event.type for event in stream]
            return kinds, stream.get_final_completion()

    kinds, completion = pair.same("parrot", gathered)
    assert "tool_calls.function.arguments.done" in kinds
    assert completion["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("name", REFUSED)
def test_errors_of_the_server_are_the_same_exceptions(pair: Pair, name: str) -> None:
    kind, ask = REFUSED[name]

    def refused(client: openai.OpenAI, model: str) -> Any:
        with pytest.raises(kind) as raised:
            ask(client, model)
        error = raised.value
        response = error.response
        return error.status_code, error.code, error.body, str(error), response.text, lasting_headers(response.headers)

    assert pair.same("parrot", refused)


def test_bodies_and_headers_are_the_same_to_the_byte(pair: Pair) -> None:
    def raw(client: openai.OpenAI, model: str) -> Any:
        answer = client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES)
        assert len(answer.content) == int(answer.headers["content-length"])
        return answer.status_code, lasting_headers(answer.headers), plain_bytes(answer.content)

    def streamed(client: openai.OpenAI, model: str) -> Any:
        create = client.chat.completions.with_streaming_response.create
        with create(model=model, messages=MESSAGES, stream=True) as answer:
            body = b"".join(answer.iter_bytes())
            return answer.status_code, lasting_headers(answer.headers), plain_bytes(body)

    assert pair.same("parrot", raw)[0] == 200
    *_, body = pair.same("parrot", streamed)
    assert body.endswith(b"\n\ndata: [DONE]\n\n")


def test_an_alias_and_query_and_headers_of_ones_own_change_nothing_else(pair: Pair) -> None:
    more: Any = {
        "extra_headers": {"x-own": "one, two;q=0.5"},
        "extra_query": {"a": "ü&="},
        "extra_body": {"odd": [1e300, None]},
    }
    direct, through = pair.both("mirror")
    chat(direct, "mirror", messages=IMAGE, **more)
    chat(through, "whisper-1", messages=IMAGE, **more)
    first, second = seen(_port(pair, "mirror"))[-2:]
    assert second["body"] == first["body"]
    assert PIXEL in second["body"]
    assert second["path"] == first["path"]
    ours = {"host", "authorization", "connection", "content-length"}
    one, two = ([header for header in got["headers"] if header[0].lower() not in ours] for got in (first, second))
    assert two == one


def test_vectors_are_the_same_however_they_are_coded(pair: Pair) -> None:
    texts = ["north", "south", "☂"]

    def vectors_of(**more: Any) -> Any:
        return pair.same("compass", lambda client, model: client.embeddings.create(model=model, input=texts, **more))

    by_default, floats, coded = vectors_of(), vectors_of(encoding_format="float"), vectors_of(encoding_format="base64")
    vectors = [item["embedding"] for item in floats["data"]]
    assert len(vectors) == 3
    for item, vector in zip(by_default["data"], vectors, strict=True):
        assert item["embedding"] == pytest.approx(vector)
    assert all(isinstance(item["embedding"], str) for item in coded["data"])


def test_rankings_are_the_same(pair: Pair) -> None:
    body = {"model": "ranker", "query": "north", "documents": ["south", "north east", "x"], "top_n": 2}
    found: Any = pair.same("ranker", lambda client, _: client.post("/rerank", body=body, cast_to=object))
    assert len(found["results"]) == 2


async def test_the_client_for_asyncio_sees_the_same_at_once(pair: Pair) -> None:
    async with AsyncExitStack() as stack:
        through = await stack.enter_async_context(pair.sidecar.async_client())
        clients = through.with_options(base_url=f"{pair.servers['parrot']}/v1"), through

        async def asked(client: openai.AsyncOpenAI) -> Any:
            async def stream() -> Any:
                chunks = await client.chat.completions.create(model="parrot", messages=MESSAGES, stream=True)
                return [plain(chunk) async for chunk in chunks]

            whole = client.chat.completions.create(model="parrot", messages=MESSAGES, tools=TOOLS)
            return plain(await asyncio.gather(whole, client.responses.create(model="parrot", input="hi"), stream()))

        direct, *others = await asyncio.gather(*(asked(client) for client in (clients[0], *clients[1:] * 4)))
    assert all(other == direct for other in others)


def test_a_stream_that_is_counted_looks_like_one_that_is_not(pair: Pair) -> None:
    def body(client: openai.OpenAI, model: str) -> bytes:
        create = client.chat.completions.with_streaming_response.create
        with create(model=model, messages=MESSAGES, stream=True) as answer:
            return b"".join(answer.iter_bytes()).replace(model.encode(), b"MODEL")

    direct, through = pair.both("mirror")
    assert body(through, "counted-mirror").replace(b"mirror", b"MODEL") == body(direct, "mirror")
    assert body(through, "mirror") == body(direct, "mirror")
    until(lambda: len(pair.logged("counted-mirror")) == 1, "the request is logged")
    assert "input_tokens=7 output_tokens=4 " in pair.logged("counted-mirror")[-1]
    until(lambda: any("tokens=" not in line for line in pair.logged("mirror")), "so is the other, without tokens")
    asked = json.loads(seen(_port(pair, "mirror"))[-4]["body"])
    assert asked["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("name", STREAMS)
def test_a_counted_stream_of_llamacpp_is_the_same_but_for_its_timings(pair: Pair, name: str) -> None:
    direct, through = pair.both("parrot")
    expected = plain(list(STREAMS[name](direct, "parrot")))
    if name not in ("usage", "completions", "responses"):  # llama.cpp moves them to the event that is withheld
        for chunk in expected:
            chunk.pop("timings", None)
    assert plain(list(STREAMS[name](through, "counted"))) == expected


def test_a_file_is_uploaded_byte_by_byte(pair: Pair) -> None:
    sound = bytes(range(256)) * 20480 + b"\r\n--\r\n"

    def upload(client: openai.OpenAI, model: str) -> Any:
        file = ("speech ☂.wav", io.BytesIO(sound), "audio/wav")
        name = "whisper-1" if client is pair.client else model
        return client.audio.transcriptions.create(
            model=name, file=file, language="de", prompt="model=whisper-1", response_format="text"
        )

    assert pair.same("mirror", upload)
    direct, through = (_without_boundary(request) for request in seen(_port(pair, "mirror"))[-2:])
    assert len(direct) > len(sound)
    assert through == direct


@pytest.mark.parametrize(
    "ask",
    [
        lambda client, model: chat(client, model, stream=True),
        lambda client, model: client.completions.create(model=model, prompt="x", stream=True),
        lambda client, model: client.responses.create(model=model, input="x", stream=True),
    ],
    ids=["chat", "completions", "responses"],
)
def test_a_server_that_dies_in_mid_stream_is_an_exception(pair: Pair, ask: Ask) -> None:
    pieces = iter(ask(pair.client, "broken"))
    next(pieces)
    with pytest.raises(openai.APIError) as raised:
        list(pieces)
    assert raised.value.code == "upstream_failed"
    assert raised.value.type == "server_error"


def test_a_server_that_dies_in_an_answer_is_a_broken_connection(pair: Pair) -> None:
    with pytest.raises(openai.APIConnectionError):
        chat(pair.client, "broken")


def _port(pair: Pair, model: str) -> int:
    return int(pair.servers[model].rpartition(":")[2])


def _without_boundary(request: dict[str, Any]) -> str:
    headers = {name.lower(): value for name, value in request["headers"]}
    boundary = headers["content-type"].partition("boundary=")[2]
    assert len(request["body"].encode("utf-8", "surrogateescape")) == int(headers["content-length"])
    return str(request["body"]).replace(boundary, "BOUNDARY")
