"""Token counts as bodies tell them, in the shapes of OpenAI's, Cohere's and Anthropic's APIs, and llama.cpp's timings.

Every reader takes (tail, streamed): the whole JSON body, or the event stream; of long ones both ends, and between them
an empty line. Lines that are no event do no harm. It gives None when there is no usage, or it is cut off. Input tokens
include those that came from a cache, as OpenAI counts them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from plugin_sdk.messages import Usage


class _Tokens(msgspec.Struct):
    """Cohere's, in chats and rankings: whole numbers that it writes as 5.0."""

    input_tokens: float | None = None
    output_tokens: float | None = None


class _Counts(msgspec.Struct):
    """What may stand in `usage`. The same counts have other names with other servers."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: dict[str, Any] | None = None
    completion_tokens_details: dict[str, Any] | None = None
    input_tokens_details: dict[str, Any] | None = None
    output_tokens_details: dict[str, Any] | None = None
    reasoning_tokens: int | None = None  # SGLang
    cached_tokens: int | None = None  # Moonshot
    prompt_cache_hit_tokens: int | None = None  # DeepSeek
    avg_prompt_tok_per_sec: float | None = None  # mistral.rs
    avg_compl_tok_per_sec: float | None = None
    tokens: _Tokens | None = None  # Cohere
    billed_units: _Tokens | None = None


class _Timings(msgspec.Struct):
    """llama.cpp's: prompt_n are the tokens that were not in its cache, cache_n those that were."""

    prompt_n: int = 0
    cache_n: int = 0
    predicted_n: int = 0
    prompt_per_second: float | None = None
    predicted_per_second: float | None = None


class _Body(msgspec.Struct):
    usage: _Counts | None = None
    timings: _Timings | None = None
    meta: _Counts | None = None  # Cohere's rankings
    model: str | None = None


class _ResponsesBody(_Body):
    response: _Body | None = None


class _PlainCounts(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


class _PlainBody(msgspec.Struct):
    """What is left to read where a server means something else by one of those names."""

    usage: _PlainCounts | None = None


class _AnthropicUsage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None


class _WithAnthropicUsage(msgspec.Struct):
    usage: _AnthropicUsage | None = None
    model: str = ""
    message: _WithAnthropicUsage | None = None


_NOTHING = _Counts()
_NO_TIMINGS = _Timings()
_body = msgspec.json.Decoder(_Body)
_responses = msgspec.json.Decoder(_ResponsesBody)
_anthropic = msgspec.json.Decoder(_WithAnthropicUsage)
_plain = msgspec.json.Decoder(_PlainBody)
_object_at = json.JSONDecoder().raw_decode
_line = re.compile(rb"[^\r\n]*+").match


def openai_usage(tail: bytes, streamed: bool) -> Usage | None:
    """What an OpenAI-shaped body tells, or the last event that tells it (`stream_options.include_usage`).

    So do completions, embeddings and rankings, whether in OpenAI's, Jina's or Cohere's shape. Without `usage`,
    llama.cpp's `timings` are taken.
    """
    timings: Usage | None = None
    if not streamed:
        body = _read_body(_body, tail)
        usage = None if body is None else _told(body)
        if usage is None and b"\n\n" in tail:
            return _of_cut(tail)  # its middle is missing, as of long lists of vectors
        return usage
    for text in _candidates(tail, streamed):
        body = _read_body(_body, text)
        if body is None:
            continue
        usage = _told(body)
        if usage is not None and body.usage is not None:
            return usage
        timings = timings or usage
    return timings


def responses_usage(tail: bytes, streamed: bool) -> Usage | None:
    """That of OpenAI's Responses API, which its images and transcriptions share: `input_tokens`, `output_tokens`.

    The last event of a stream repeats the whole answer, and an image is in its body: where the beginning has been cut
    off, the object alone is looked for.
    """
    for text in _candidates(tail, streamed):
        body = _read_body(_responses, text)
        if isinstance(body, _ResponsesBody) and body.response is not None:
            body = body.response
        if body is not None and (usage := _told(body)) is not None:
            return usage
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
    usage, end = tail.rfind(b'"usage"'), len(tail)
    while (at := max(usage, tail.rfind(b'"timings"', max(usage, 0), end))) >= 0:
        line_feed = tail.rfind(b"\n", 0, at)
        start = max(line_feed, tail.rfind(b"\r", line_feed + 1, at)) + 1
        found = _line(tail, start)
        if found is not None and tail.startswith(b"data:", start):
            yield found.group()[5:]
        usage, end = tail.rfind(b'"usage"', 0, start) if usage >= start else usage, start


def _read(decoder: msgspec.json.Decoder[Any], text: bytes) -> Any:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # not JSON, cut off, or of another shape: then there is no usage to read


def _read_body(decoder: msgspec.json.Decoder[Any], text: bytes) -> _Body | None:
    try:
        body: _Body = decoder.decode(text)
    except msgspec.ValidationError:
        plain = _read(_plain, text)
        counts = plain and plain.usage
        return counts and _Body(usage=_Counts(counts.prompt_tokens, counts.completion_tokens, counts.total_tokens))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return body


def _of_cut(tail: bytes) -> Usage | None:
    """What the last `usage` object of a body tells. It cannot be mistaken for text, in which quotes are escaped."""
    _, key, rest = tail.rpartition(b'"usage":')
    if not key or not (text := rest.decode("utf-8", "replace").lstrip()).startswith("{"):
        return None
    try:
        counts = msgspec.convert(_object_at(text)[0], _Counts)
    except (ValueError, RecursionError):  # msgspec's and json's errors are ValueErrors
        return None
    return _told(_Body(usage=counts))


def _told(body: _Body) -> Usage | None:
    counts, timings = body.usage or body.meta or _NOTHING, body.timings or _NO_TIMINGS
    counted = _counted(counts)
    if counted is None:
        if body.timings is None:
            return None
        counted = max(0, timings.prompt_n) + timings.cache_n, max(0, timings.predicted_n)
    return Usage(
        input_tokens=counted[0],
        output_tokens=counted[1],
        cached_tokens=_cached(counts) or timings.cache_n,
        reasoning_tokens=_reasoning(counts),
        input_tokens_per_s=timings.prompt_per_second or counts.avg_prompt_tok_per_sec,
        output_tokens_per_s=timings.predicted_per_second or counts.avg_compl_tok_per_sec,
        response_model=body.model or "",
    )


def _counted(counts: _Counts) -> tuple[int, int] | None:
    """The input and the output. The input follows from the total where it is not given."""
    given = counts.input_tokens if counts.prompt_tokens is None else counts.prompt_tokens
    made = counts.output_tokens if counts.completion_tokens is None else counts.completion_tokens
    if given is None and made is None and (tokens := counts.tokens or counts.billed_units) is not None:
        given, made = _whole(tokens.input_tokens), _whole(tokens.output_tokens)
    if not given and counts.total_tokens is not None:
        given = max(0, counts.total_tokens - (made or 0))
    return None if given is None and made is None else (given or 0, made or 0)


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def _cached(counts: _Counts) -> int:
    details = counts.prompt_tokens_details or counts.input_tokens_details
    told = _detail(details, "cached_tokens") if details else 0
    return told or counts.cached_tokens or counts.prompt_cache_hit_tokens or 0


def _reasoning(counts: _Counts) -> int:
    details = counts.completion_tokens_details or counts.output_tokens_details
    told = _detail(details, "reasoning_tokens") if details else 0
    return told or counts.reasoning_tokens or 0


def _detail(details: dict[str, Any], name: str) -> int:
    value = details.get(name)
    return value if isinstance(value, int) else 0


def _later(one: _AnthropicUsage, later: _AnthropicUsage) -> _AnthropicUsage:
    """Counts are running totals: a later one stands instead of an earlier one."""
    told = {name: value for name, value in msgspec.structs.asdict(later).items() if value is not None}
    return msgspec.structs.replace(one, **told)
