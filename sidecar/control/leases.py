"""The right to use a server, and those who wait for one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Literal

import msgspec

from plugin_sdk import Secret
from sidecar.control.live import LiveServer
from sidecar.core.manifest import Variant
from sidecar.core.overrides import drained_message

Origin = Literal["managed", "external"]

LAST_WORDS_S = 0.5


class RefusedError(Exception):
    """The model cannot be had now. code: for programs. retry_after_s: when it is worth asking again, if ever."""

    def __init__(self, code: str, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


def drained(model: str) -> RefusedError:
    """An operator has taken the model out of service."""
    return RefusedError("drained", drained_message(model), None)


def closing() -> RefusedError:
    """The sidecar is about to end."""
    return RefusedError("shutting_down", "the sidecar is shutting down", 10.0)


def code_of(reason: str) -> str:
    """The `code` that programs get for a condition's reason: `LoadTimeout` becomes `load_timeout`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", reason).lower()


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request goes. cold: unix seconds from start to ready of a server that the request had to wait for.

    timeout_s: for the head of the answer; None = as long as the client waits.
    """

    model: str
    variant: str
    base_url: str
    upstream_model: str
    origin: Origin
    api_key: Secret | None = None
    cold: tuple[float, float] | None = None
    timeout_s: float | None = None

    @classmethod
    def external(cls, model: str, variant: Variant) -> Target:
        """A server that somebody else runs."""
        return cls(
            model=model,
            variant=variant.name,
            base_url=variant.url.rstrip("/"),
            upstream_model=variant.model_name or model,
            origin="external",
            api_key=variant.api_key,
        )


class Lease:
    """While it is held, the server is busy and will not be stopped. Release it once.

    server: None for one that somebody else runs, which is never stopped anyway; then `given_back` is called at the end.
    """

    __slots__ = ("_given_back", "_released", "_server", "target")

    def __init__(
        self,
        server: LiveServer | None,
        target: Target,
        released: Callable[[LiveServer], None],
        given_back: Callable[[], None] | None = None,
    ) -> None:
        self._server = server
        self._released = released
        self._given_back = given_back
        self.target = target

    async def last_words(self) -> str:
        """How the server ended, if it has just ended by itself: it takes a moment until that is known."""
        if self._server is None:
            return ""
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await self._server.told.wait()
        except TimeoutError:
            return ""  # the connection broke, the server lives
        return self._server.last_words

    def release(self) -> None:
        """Give the server back. Further calls do nothing."""
        if self._server is not None:
            server, self._server = self._server, None
            self._released(server)
        if self._given_back is not None:
            given_back, self._given_back = self._given_back, None
            given_back()


class Waiters:
    """Those who wait for one model, since when the first of them came."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.futures: set[asyncio.Future[Lease]] = set()
