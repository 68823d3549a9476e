"""A mode of your own: another path, another form of requests, usage and errors, and a health check that goes deep.

Many servers say that they are healthy before they can do what they are for. This one is asked for a very short
completion, and counts as ready when there are words in the answer.
"""

from __future__ import annotations

import msgspec

from plugin_sdk import Config, Endpoint, Interface, NotReady, Reject, Request, Upstream, Usage

PATH = "/v1/mymode/completions"


class Settings(Config):
    """prompt, words: what the health check asks for, and how much of it at most."""

    prompt: str = "Say yes."
    words: int = 1


class Asked(msgspec.Struct):
    """A request. Fields that are not named here are the server's business."""

    prompt: str
    words: int = 16


class Counts(msgspec.Struct):
    """How the server counts: in words."""

    read: int
    written: int


class Answered(msgspec.Struct):
    """A whole answer, or the last event of a stream, which has the counts."""

    text: str = ""
    counts: Counts | None = None


_asked = msgspec.json.Decoder(Asked).decode
_answered = msgspec.json.Decoder(Answered).decode


class MyMode(Interface[Settings]):
    """Completions as servers of my own make have them."""

    provides = "my_mode"
    endpoints = (Endpoint(PATH, "text_completion"),)

    async def ready(self, upstream: Upstream) -> bool:
        """Healthy by its own words, and able to complete. Raises NotReady with the reason."""
        await super().ready(upstream)  # costs nothing, and is false for as long as the server loads
        question = msgspec.json.encode({"prompt": self.config.prompt, "words": self.config.words})
        reply = await upstream.post(PATH, question)
        if reply.status != 200:
            raise NotReady(f"it calls itself healthy, but answers a completion with {reply.status}")
        try:
            text = _answered(reply.body).text
        except msgspec.DecodeError as error:
            raise NotReady(f"it calls itself healthy, but its completion is none: {error}") from None
        if not text.strip():
            raise NotReady("it calls itself healthy, but its completion is empty")
        return True

    async def alive(self, upstream: Upstream) -> bool:
        """Asked again and again where somebody else runs the server: then its own word is enough."""
        return await super().ready(upstream)

    def validate(self, request: Request) -> None:
        """Refuse what the server could not answer, before one is started for it."""
        try:
            asked = _asked(request.body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Reject(400, f'expected {{"prompt": "...", "words": 16}}: {error}', code="bad_prompt") from None
        if not asked.prompt.strip() or asked.words < 1:
            raise Reject(400, "expected a prompt that is not empty, and words of 1 or more", code="bad_prompt")

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        """The counts, which stand in the whole answer or in the last event."""
        if streamed:
            tail = tail.rpartition(b"data: ")[2]
        try:
            counts = _answered(tail).counts
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return Usage(input_tokens=counts.read, output_tokens=counts.written) if counts else None

    def error(self, status: int, code: str, message: str, param: str | None = None) -> bytes:
        """`{"problem": {...}}`, as clients of this mode expect it."""
        problem = {"status": status, "code": code, "reason": message}
        return msgspec.json.encode({"problem": problem | ({"field": param} if param else {})})
