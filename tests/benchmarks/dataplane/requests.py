"""The requests that are made: what an OpenAI client sends, byte by byte."""

from __future__ import annotations

import json
from typing import Any

PATH = "/v1/chat/completions"
KEY = "sk-benchmark-0123456789"
SEED = 10_000_000  # its eight digits are replaced by the load's count

_WORDS = "You are given a long report on the state of a distributed storage system. "
_SYSTEM = "You are a careful assistant who answers in short sentences."


def body(prompt_bytes: int = 620, **fields: Any) -> bytes:
    """A chat request of about 1 KB, with the keys in the order of the official client: the messages come first."""
    prompt = (_WORDS * (prompt_bytes // len(_WORDS) + 1))[:prompt_bytes]
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": prompt}]
    asked = {"messages": messages, "model": "stub", "max_tokens": 100, "seed": SEED, "temperature": 0.7, "top_p": 0.95}
    return json.dumps(asked | {"user": "benchmark"} | fields, separators=(",", ":")).encode()


def headers() -> dict[str, str]:
    """Those that every request has."""
    return {
        "Accept": "application/json",
        "Content-Type": "application/json",
        "User-Agent": "OpenAI/Python 1.60.0",
        "Authorization": f"Bearer {KEY}",
        "X-Stainless-Lang": "python",
        "X-Stainless-Async": "false",
    }


def raw(content: bytes) -> bytes:
    """The whole request as it goes over the wire."""
    lines = {"Host": "127.0.0.1", **headers(), "Content-Length": str(len(content))}
    head = f"POST {PATH} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode() + b"\r\n" + content


def plain(**fields: Any) -> bytes:
    """A raw request whose answer is one JSON object."""
    return raw(body(**fields))


def streamed(events: int, **fields: Any) -> bytes:
    """A raw request whose answer is a stream of so many events, and its usage."""
    return raw(body(max_tokens=events, stream=True, stream_options={"include_usage": True}, **fields))
