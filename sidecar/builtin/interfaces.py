"""The interface modes of servers with OpenAI's API, for text, vectors, speech and images, and with Anthropic's."""

from __future__ import annotations

from plugin_sdk import Endpoint, Interface, Usage
from plugin_sdk.shapes import anthropic_error
from plugin_sdk.usage import anthropic_usage, responses_usage


class Chat(Interface):
    """Conversations: OpenAI's chat completions."""

    provides = "chat"
    usage_on_request = True
    endpoints = (Endpoint("/v1/chat/completions", "chat"),)


class Base(Interface):
    """Plain continuation of a prompt: OpenAI's completions."""

    provides = "base"
    usage_on_request = True
    endpoints = (Endpoint("/v1/completions", "text_completion"),)


class Embedding(Interface):
    """Vectors: OpenAI's embeddings."""

    provides = "embedding"
    endpoints = (Endpoint("/v1/embeddings", "embeddings"),)


class Reranker(Interface):
    """Documents ordered by relevance to a query: Jina's and Cohere's rerank API, as llama.cpp, vLLM and TEI have it."""

    provides = "reranker"
    endpoints = (Endpoint("/v1/rerank", "rerank"),)


class Messages(Interface):
    """Conversations in Anthropic's Messages API, as llama.cpp and vLLM have it; a model may be of `chat` too."""

    provides = "messages"
    endpoints = (Endpoint("/v1/messages", "chat"), Endpoint("/v1/messages/count_tokens", "count_tokens"))

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
    endpoints = (Endpoint("/v1/responses", "chat"),)

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        """The counts of the whole answer, which a stream's last event repeats."""
        return responses_usage(tail, streamed)


class Transcription(Interface):
    """Speech to text: a form with a file in it, answered as JSON, plain text or subtitles, whichever is asked for."""

    provides = "transcription"
    endpoints = (
        Endpoint("/v1/audio/transcriptions", "transcription"),
        Endpoint("/v1/audio/translations", "translation"),
    )
    events = False

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        """The tokens of models that count them; those that count seconds have none."""
        return responses_usage(tail, streamed)


class Speech(Interface):
    """Text to speech: the answer is sound."""

    provides = "speech"
    endpoints = (Endpoint("/v1/audio/speech", "speech"),)
    events = False

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        """Only where the sound comes as events (`stream_format: "sse"`)."""
        return responses_usage(tail, streamed) if streamed else None


class Image(Interface):
    """Text to pictures."""

    provides = "image"
    endpoints = (Endpoint("/v1/images/generations", "image_generation"),)

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        """The tokens of models that count them."""
        return responses_usage(tail, streamed)
