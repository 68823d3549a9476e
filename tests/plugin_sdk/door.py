"""Good plugins, in a module of their own as plugins are."""

from __future__ import annotations

import msgspec

from plugin_sdk import Auth, Config, Event, Exchange, Principal, Reject, Request, on_event


class Settings(Config):
    """The word to say."""

    word: str


class Door(Auth[Settings]):
    """Admit whoever knows the word."""

    def authenticate(self, request: Request) -> Principal:
        if request.bearer_token != self.config.word:
            raise Reject(401, "say the word")
        return Principal("friend")


@on_event
async def discreet(exchange: Exchange, event: Event) -> Event | None:
    """Names nobody."""
    return msgspec.structs.replace(event, data=event.data.replace(b"ada", b"***")) if b"ada" in event.data else None
