"""A good plugin, in a module of its own as plugins are."""

from __future__ import annotations

from plugin_sdk import Auth, Config, Principal, Reject, Request


class Settings(Config):
    """The word to say."""

    word: str


class Door(Auth[Settings]):
    """Admit whoever knows the word."""

    def authenticate(self, request: Request) -> Principal:
        if request.bearer_token != self.config.word:
            raise Reject(401, "say the word")
        return Principal("friend")
