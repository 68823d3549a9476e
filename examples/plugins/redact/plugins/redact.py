"""Takes personal data out of what a model says, and if wanted out of what it is told.

It sees parsed events, in which text comes in pieces of any size: an address may begin in one and end ten later. So it
holds back whatever may be the beginning of something, a few words at most, and gives it out as soon as it is known
to be harmless. It is a guard: if it fails, nothing passes (`on_error = "deny"`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from _personal import RULES, Redacted, Rule, Tail, custom, redacted

from plugin_sdk import Config, Event, Exchange, Filter, Request, inline

TEXTS = ("content", "reasoning_content", "refusal", "text")
DONE = b"[DONE]"

Kind = Literal["email", "card", "iban", "phone"]


class Settings(Config):
    """kinds: what to look for. patterns: what else, by name, such as `{ badge = "EMP-[0-9]{6}" }`; of those a match may
    have `longest` characters, and so many are held back. requests: also what the model is told.
    """

    kinds: tuple[Kind, ...] = ("email", "card", "iban", "phone")
    patterns: dict[str, str] = msgspec.field(default_factory=dict)
    longest: int = 64
    requests: bool = False

    def __post_init__(self) -> None:
        self.rules()

    def rules(self) -> tuple[Rule, ...]:
        """Raises ValueError for a pattern that is none."""
        try:
            own = [custom(name, pattern, self.longest) for name, pattern in self.patterns.items()]
        except re.error as error:
            raise ValueError(f"{error.pattern!r} is no regular expression: {error}") from None
        return (*(RULES[kind] for kind in self.kinds), *own)


class Redact(Filter[Settings]):
    """Writes `[email]`, `[card]`, `[iban]` and `[phone]` where such a thing stood. Calls of tools stay as they are."""

    modes = ("chat", "base")

    async def open(self) -> None:
        self._rules = self.config.rules()

    @inline
    def on_request(self, exchange: Exchange) -> Request | None:
        """The request with another body; None if there is nothing in it."""
        if not self.config.requests:
            return None
        body: dict[str, Any] = json.loads(exchange.request.body)
        changed = [self._change(holder, key) for holder, key in _told(body)]
        return msgspec.structs.replace(exchange.request, body=json.dumps(body).encode()) if any(changed) else None

    @inline
    def on_event(self, exchange: Exchange, event: Event) -> Event | list[Event] | None:
        """The event with as much of its text as may be given out. Raises ValueError for what cannot be read."""
        if event.whole:
            return self._whole(event)
        if event.data == DONE or (exchange.last and not event.data):
            return [*self._left(exchange), event]
        chunk: dict[str, Any] = json.loads(event.data)
        exchange.state.setdefault("form", chunk | {"choices": []})
        changed = [self._piece(exchange, choice) for choice in chunk.get("choices") or ()]
        return msgspec.structs.replace(event, data=json.dumps(chunk).encode()) if any(changed) else None

    def _whole(self, event: Event) -> Event | None:
        answer: dict[str, Any] = json.loads(event.data)
        choices = answer.get("choices") or ()
        changed = [_mute(choice) for choice in choices]
        for choice in choices:
            for holder in (choice, choice.get("message") or {}):
                changed += [self._change(*place) for key in TEXTS for place in _places(holder, key)]
        return msgspec.structs.replace(event, data=json.dumps(answer).encode()) if any(changed) else None

    def _piece(self, exchange: Exchange, choice: dict[str, Any]) -> bool:
        """Change one choice of a chunk: what it has of text, and with its end what was held back. Whether it did."""
        tails: dict[tuple[int, bool, str], Tail] = exchange.state.setdefault("tails", {})
        index, inside = choice.get("index", 0), isinstance(choice.get("delta"), dict)
        holder = choice["delta"] if inside else choice
        last = choice.get("finish_reason") is not None
        changed = _mute(choice)
        for key in TEXTS:
            text: str = holder.get(key) or ""
            place = (index, inside, key)
            if not text and not (last and place in tails):
                continue
            out = self._counted(tails.setdefault(place, Tail(self._rules)).feed(text, last=last))
            if last:
                del tails[place]
            if out != text:
                holder[key], changed = out, True
        return changed

    def _left(self, exchange: Exchange) -> Iterator[Event]:
        """What is still held back of a stream that ends without a word about it."""
        tails: dict[tuple[int, bool, str], Tail] = exchange.state.pop("tails", {})
        for (index, inside, key), tail in tails.items():
            if text := self._counted(tail.feed("", last=True)):
                said = {"delta": {key: text}} if inside else {key: text}
                choice = {"index": index, **said, "finish_reason": None}
                yield Event(data=json.dumps(exchange.state["form"] | {"choices": [choice]}).encode())

    def _change(self, holder: Any, key: Any) -> bool:
        """Change text where it stands; what is none, such as a picture or a token's number, stays. Whether it did."""
        text = holder.get(key) if isinstance(holder, dict) else holder[key]
        if not isinstance(text, str):
            return False
        holder[key] = self._counted(redacted(text, self._rules))
        return bool(holder[key] != text)

    def _counted(self, found: Redacted) -> str:
        for kind in found.kinds:
            self.metrics.count("redacted", labels={"kind": kind})
        return found.text


def _mute(choice: dict[str, Any]) -> bool:
    """Log probabilities spell the text out once more, token by token. Whether there were any."""
    there = choice.get("logprobs") is not None
    if there:
        choice["logprobs"] = None
    return there


def _told(body: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Where text stands in a request: in prompts and in messages."""
    yield from _places(body, "prompt")
    for message in body.get("messages") or ():
        yield from _places(message, "content")


def _places(holder: Any, key: str) -> Iterator[tuple[Any, Any]]:
    """Where a field has text: in itself, in the strings that it lists, or in the parts that it lists."""
    value = holder.get(key)
    if isinstance(value, str):
        yield holder, key
    elif isinstance(value, list):
        yield from ((part, "text") if isinstance(part, dict) else (value, at) for at, part in enumerate(value))
