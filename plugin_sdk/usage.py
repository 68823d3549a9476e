"""Token counts as bodies tell them, in the shapes of OpenAI's and Anthropic's APIs.

Every reader takes (tail, streamed): the whole JSON body or its end, or the last kilobytes of the event stream. It gives
None when there is no usage, or it is cut off. Input tokens include those that came from a cache, as OpenAI counts them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from plugin_sdk.messages import Usage


class _OpenAIUsage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: dict[str, Any] | None = None


class _WithOpenAIUsage(msgspec.Struct):
    usage: _OpenAIUsage | None = None
    model: str = ""


class _ResponsesUsage(msgspec.Struct):
    input_tokens: int
    output_tokens: int = 0
    input_tokens_details: dict[str, Any] | None = None


class _WithResponsesUsage(msgspec.Struct):
    usage: _ResponsesUsage | None = None
    model: str = ""
    response: _WithResponsesUsage | None = None


class _AnthropicUsage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None


class _WithAnthropicUsage(msgspec.Struct):
    usage: _AnthropicUsage | None = None
    model: str = ""
    message: _WithAnthropicUsage | None = None


_openai = msgspec.json.Decoder(_WithOpenAIUsage)
_responses = msgspec.json.Decoder(_WithResponsesUsage)
_anthropic = msgspec.json.Decoder(_WithAnthropicUsage)
_object_at = json.JSONDecoder().raw_decode


def openai_usage(tail: bytes, streamed: bool) -> Usage | None:
    """The `usage` object of an OpenAI-shaped body, or of the last event with one (`stream_options.include_usage`)."""
    for text in _candidates(tail, streamed):
        found = _read(_openai, text)
        if found is not None and found.usage is not None:
            usage = found.usage
            return Usage(
                input_tokens=usage.prompt_tokens or max(0, usage.total_tokens - usage.completion_tokens),
                output_tokens=usage.completion_tokens,
                cached_tokens=_cached(usage.prompt_tokens_details),
                response_model=found.model,
            )
    return None


def responses_usage(tail: bytes, streamed: bool) -> Usage | None:
    """That of OpenAI's Responses API, which its images and transcriptions share: `input_tokens`, `output_tokens`.

    The last event of a stream repeats the whole answer, and an image is in its body: where the beginning has been cut
    off, the object alone is looked for. It cannot be mistaken for text, in which quotes are escaped.
    """
    for text in _candidates(tail, streamed):
        found = _read(_responses, text)
        if found is not None and found.response is not None:
            found = found.response
        if found is not None and found.usage is not None:
            return _of_responses(found.usage, found.model)
    return _of_cut(tail)


def anthropic_usage(tail: bytes, streamed: bool) -> Usage | None:
    """That of Anthropic's Messages API. In a stream the first event tells the input and the last ones the output.

    Where the first is not in `tail`, the input is what the last one says of it, or 0.
    """
    merged = _AnthropicUsage()
    model = ""
    for text in reversed(list(_candidates(tail, streamed))):
        found = _read(_anthropic, text)
        if found is not None and found.message is not None:
            found = found.message
        if found is not None and found.usage is not None:
            merged = _later(merged, found.usage)
            model = found.model or model
    if merged == _AnthropicUsage():
        return None
    cached = merged.cache_read_input_tokens or 0
    return Usage(
        input_tokens=(merged.input_tokens or 0) + (merged.cache_creation_input_tokens or 0) + cached,
        output_tokens=merged.output_tokens or 0,
        cached_tokens=cached,
        response_model=model,
    )


def _candidates(tail: bytes, streamed: bool) -> Iterator[bytes]:
    """What may hold usage: the body, or the events' data that speak of it, the last one first."""
    if not streamed:
        yield tail
        return
    for line in reversed(tail.splitlines()):
        if line.startswith(b"data:") and b'"usage"' in line:
            yield line[5:].strip()


def _read(decoder: msgspec.json.Decoder[Any], text: bytes) -> Any:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # not JSON, cut off, or of another shape: then there is no usage to read


def _of_cut(tail: bytes) -> Usage | None:
    _, key, rest = tail.rpartition(b'"usage":')
    if not key or not (text := rest.decode("utf-8", "replace").lstrip()).startswith("{"):
        return None
    try:
        usage = msgspec.convert(_object_at(text)[0], _ResponsesUsage)
    except (ValueError, RecursionError):  # msgspec's and json's errors are ValueErrors
        return None
    return _of_responses(usage, "")


def _of_responses(usage: _ResponsesUsage, model: str) -> Usage:
    return Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=_cached(usage.input_tokens_details),
        response_model=model,
    )


def _later(one: _AnthropicUsage, later: _AnthropicUsage) -> _AnthropicUsage:
    """Counts are running totals: a later one stands instead of an earlier one."""
    told = {name: value for name, value in msgspec.structs.asdict(later).items() if value is not None}
    return msgspec.structs.replace(one, **told)


def _cached(details: dict[str, Any] | None) -> int:
    cached = (details or {}).get("cached_tokens")
    return cached if isinstance(cached, int) else 0
