"""Limits as tests ask them: a clock that is set by hand, requests, and what becomes of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from plugin_sdk import Exchange, Headers, Outcome, Principal, Reject, Request, Response, Usage
from plugin_sdk.messages import with_headers
from plugin_sdk.services import Standalone
from sidecar.builtin.limits import Limits, Settings
from tests.support import plugin

T = TypeVar("T")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Kept(Standalone):
    """Services that keep what was made, as over a reload."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    async def keep(self, key: str, make: Callable[[], Awaitable[T]], close: Callable[[T], Awaitable[None]]) -> T:
        if key not in self.made:
            self.made[key] = await make()
        kept: T = self.made[key]
        return kept


async def opened(clock: Clock, services: Kept | None = None, **config: Any) -> Limits:
    loaded = plugin(Limits, "limits", **config)
    assert isinstance(loaded.config, Settings)
    made = Limits(loaded.config, name="limits", services=services)
    made.clock = clock
    await made.open()
    return made


def exchange(who: str = "anna", model: str = "qwen", **attributes: Any) -> Exchange:
    return Exchange(Request(method="POST", path="/", model=model, principal=Principal(who, attributes)))


def ask(limits: Limits, asked: Exchange | None = None) -> Exchange:
    """A request that is let through."""
    asked = asked or exchange()
    limits.on_request(asked)
    return asked


def refusal(limits: Limits, asked: Exchange | None = None) -> Reject:
    with pytest.raises(Reject) as refused:
        limits.on_request(asked or exchange())
    return refused.value


def end(limits: Limits, asked: Exchange, tokens: int | None) -> None:
    usage = None if tokens is None else Usage(input_tokens=tokens - 1, output_tokens=1)
    limits.on_end(asked, Outcome(model="qwen", usage=usage))


def told(limits: Limits, asked: Exchange, *upstream: tuple[bytes, bytes]) -> dict[str, str]:
    """The headers of limits on the answer, and those that the server sent."""
    asked.response = Response(headers=Headers(upstream))
    headers = limits.on_response(asked)
    assert headers is not None
    answer = with_headers(asked.response, headers.raw)
    return {name.decode(): value.decode() for name, value in answer.headers.raw}


def is_let_in(limits: Limits, asked: Exchange) -> bool:
    try:
        limits.on_request(asked)
    except Reject:
        return False
    return True
