"""The interface modes of servers with OpenAI's API, for text, vectors, speech and images, and with Anthropic's.

A mode has the paths that servers of that kind have: OpenAI's, with and without /v1, and those of llama.cpp, vLLM and
SGLang. Where modes share a path, the model's mode decides. The first path of a mode is the one that errors speak of.
"""

from __future__ import annotations

from plugin_sdk import Endpoint, Interface, Usage
from plugin_sdk.shapes import anthropic_error
from plugin_sdk.usage import anthropic_usage, responses_usage


def _at(path: str, operation: str, *, method: str = "POST") -> tuple[Endpoint, ...]:
    """OpenAI's path, and the same without /v1, as llama.cpp and others have it besides."""
    return Endpoint(path, operation, method), Endpoint(path.removeprefix("/v1"), operation, method)


_TOKENS = (Endpoint("/tokenize", "tokenize"), Endpoint("/detokenize", "detokenize"))
_SCORES = (Endpoint("/score", "score"), Endpoint("/v1/score", "score"))
_CLASSES = (Endpoint("/classify", "classify"), Endpoint("/v1/classify", "classify"))
_POOLING = (Endpoint("/pooling", "pooling"),)


class Chat(Interface):
    """Conversations: OpenAI's chat completions."""

    provides = "chat"
    usage_on_request = True
    endpoints = (*_at("/v1/chat/completions", "chat"), Endpoint("/apply-template", "apply_template"), *_TOKENS)


class Base(Interface):
    """Continuation of a prompt: OpenAI's completions; llama.cpp's own, and what it fills in between two texts."""

    provides = "base"
    usage_on_request = True
    endpoints = (
        *_at("/v1/completions", "text_completion"),
        Endpoint("/completion", "text_completion"),
        Endpoint("/infill", "text_completion"),
        *_TOKENS,
    )


class Embedding(Interface):
    """Vectors: OpenAI's embeddings; and what vLLM does with them."""

    provides = "embedding"
    endpoints = (
        *_at("/v1/embeddings", "embeddings"),
        Endpoint("/embedding", "embeddings"),
        *_POOLING,
        *_SCORES,
        *_TOKENS,
    )


class Reranker(Interface):
    """Documents ordered by relevance to a query: Jina's and Cohere's rerank API, as llama.cpp, vLLM and TEI have it."""

    provides = "reranker"
    endpoints = (
        *_at("/v1/rerank", "rerank"),
        *_at("/v1/reranking", "rerank"),
        Endpoint("/v2/rerank", "rerank"),
        *_SCORES,
        *_CLASSES,
        *_POOLING,
        *_TOKENS,
    )


class Classifier(Interface):
    """Texts sorted into classes, as vLLM and SGLang do it; and OpenAI's moderations, which are such classes."""

    provides = "classifier"
    endpoints = (*_CLASSES, *_at("/v1/moderations", "moderation"), *_POOLING, *_TOKENS)


class Messages(Interface):
    """Conversations in Anthropic's Messages API, as llama.cpp and vLLM have it; a model may be of `chat` too."""

    provides = "messages"
    endpoints = (
        *_at("/v1/messages", "chat"),
        *_at("/v1/messages/count_tokens", "count_tokens"),
    )

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        """Anthropic's counts, in which cached tokens stand apart."""
        return anthropic_usage(tail, streamed)

    def error(self, status: int, code: str, message: str, param: str | None = None) -> bytes:  # noqa: ARG002 - Anthropic's errors have none
        """In Anthropic's shape."""
        return anthropic_error(status, code, message)

    def error_event(self, error: bytes) -> bytes:
        """Anthropic's clients go by the event's name."""
        return b"event: error\ndata: " + error + b"\n\n"


class Responses(Interface):
    """Conversations in OpenAI's Responses API."""

    provides = "responses"
    endpoints = (
        *_at("/v1/responses", "chat"),
        *_at("/v1/responses/input_tokens", "count_tokens"),
        *_at("/v1/responses/compact", "compact"),
    )

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        """The counts of the whole answer, which a stream's last event repeats."""
        return responses_usage(tail, streamed)


class Transcription(Interface):
    """Speech to text: a form with a file in it, answered as JSON, plain text or subtitles, whichever is asked for."""

    provides = "transcription"
    endpoints = (
        *_at("/v1/audio/transcriptions", "transcription"),
        *_at("/v1/audio/translations", "translation"),
    )
    events = False

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        """The tokens of models that count them; those that count seconds have none."""
        return responses_usage(tail, streamed)


class Speech(Interface):
    """Text to speech: the answer is sound."""

    provides = "speech"
    endpoints = _at("/v1/audio/speech", "speech")
    events = False

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        """Only where the sound comes as events (`stream_format: "sse"`)."""
        return responses_usage(tail, streamed) if streamed else None


class Image(Interface):
    """Text to pictures, and pictures to others: forms with files in them."""

    provides = "image"
    endpoints = (
        *_at("/v1/images/generations", "image_generation"),
        *_at("/v1/images/edits", "image_edit"),
        *_at("/v1/images/variations", "image_variation"),
    )

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        """The tokens of models that count them."""
        return responses_usage(tail, streamed)


class Realtime(Interface):
    """Sound and text both ways over a WebSocket: OpenAI's realtime API, as vLLM has it for speech."""

    provides = "realtime"
    endpoints = _at("/v1/realtime", "realtime", method="GET")
    events = False
