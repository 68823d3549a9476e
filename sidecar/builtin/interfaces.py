"""The interface modes of an OpenAI-compatible server that generates, embeds or ranks text."""

from __future__ import annotations

from plugin_sdk import Endpoint, Interface


class Chat(Interface):
    """Conversations: OpenAI's chat completions."""

    provides = "chat"
    endpoints = (Endpoint("/v1/chat/completions", "chat"),)


class Base(Interface):
    """Plain continuation of a prompt: OpenAI's completions."""

    provides = "base"
    endpoints = (Endpoint("/v1/completions", "text_completion"),)


class Embedding(Interface):
    """Vectors: OpenAI's embeddings."""

    provides = "embedding"
    endpoints = (Endpoint("/v1/embeddings", "embeddings"),)


class Reranker(Interface):
    """Documents ordered by relevance to a query: Jina's and Cohere's rerank API, as llama.cpp, vLLM and TEI have it."""

    provides = "reranker"
    endpoints = (Endpoint("/v1/rerank", "rerank"),)
