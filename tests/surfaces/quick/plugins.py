"""A data plane's plugins that write down all that they see, and do as the test says; and models that use them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from plugin_sdk import (
    Auth,
    Config,
    Endpoint,
    Exchange,
    Filter,
    Interface,
    Outcome,
    Principal,
    Reject,
    Request,
    Usage,
    inline,
)
from plugin_sdk import Response as Answer

LOG: list[Any] = []  # what plugins have seen
DOES: dict[str, Callable[[Exchange], Any]] = {}  # what a filter makes of it, by its name and hook
KNOWN: dict[str, Principal] = {}


class Keys(Auth):
    """Those of the test."""

    @inline
    def authenticate(self, request: Request) -> Principal:
        LOG.append(("auth", seen(request)))
        principal = KNOWN.get(request.bearer_token)
        if principal is None:
            raise Reject(401, "no such key", code="invalid_key")
        return principal


class Watching(Config):
    name: str


class Watch(Filter[Watching]):
    """Writes down all that it sees, and does what the test says."""

    @inline
    def on_request(self, exchange: Exchange) -> Request | Answer | None:
        exchange.state["n"] = exchange.state.get("n", 0) + 1
        found: Request | Answer | None = self._take("on_request", exchange)
        return found

    @inline
    def on_response(self, exchange: Exchange) -> Answer | None:
        exchange.state["n"] = exchange.state.get("n", 0) + 10
        found: Answer | None = self._take("on_response", exchange)
        return found

    @inline
    def on_end(self, exchange: Exchange, outcome: Outcome) -> None:
        self._take("on_end", exchange)
        LOG.append((self.config.name, timeless(outcome)))

    def _take(self, hook: str, exchange: Exchange) -> Any:
        response = exchange.response
        head = None if response is None else (response.status, response.headers.raw, response.streamed, response.body)
        LOG.append((self.config.name, hook, dict(exchange.state), seen(exchange.request), head))
        does = DOES.get(f"{self.config.name}.{hook}")
        return does(exchange) if does is not None else None


class Sorting(Interface):
    """Speaks as nobody else does, on a path that another mode has, too."""

    provides = "sorting"
    endpoints = (Endpoint("/v1/sort", "sort"), Endpoint("/v1/sort", "resort", method="PUT"))

    def error(self, status: int, code: str, message: str, param: str | None = None) -> bytes:
        return b'{"sorting": "%b"}' % code.encode()

    def usage(self, tail: bytes, streamed: bool) -> Usage | None:
        return Usage(input_tokens=len(tail))


class Shuffling(Interface):
    """The mode that comes first on that path."""

    provides = "shuffling"
    endpoints = (Endpoint("/v1/sort", "shuffle"),)


MORE = """
[plugins.keys]
import = "tests.surfaces.quick.plugins:Keys"
[plugins.outer]
import = "tests.surfaces.quick.plugins:Watch"
config = { name = "outer" }
[plugins.inner]
import = "tests.surfaces.quick.plugins:Watch"
config = { name = "inner" }
[plugins.shuffling]
import = "tests.surfaces.quick.plugins:Shuffling"
[plugins.sorting]
import = "tests.surfaces.quick.plugins:Sorting"
[plugins.limits]
import = "sidecar.builtin.limits:Limits"
config = { requests_per_minute = 3 }

[models.renamed]
mode = "chat"
aliases = ["other"]
[[models.renamed.variants]]
url = "URL"
model_name = "org/inner"
api_key = { file = "SECRET" }

[models.watched]
mode = ["chat", "messages"]
chain = ["keys", "outer", "inner"]
[[models.watched.variants]]
url = "URL"

[models.limited]
mode = "chat"
chain = ["limits"]
[[models.limited.variants]]
url = "URL"

[models.counted]
mode = "chat"
count_streams = true
chain = ["outer"]
[[models.counted.variants]]
url = "URL"
model_name = "inner"

[models.sorts]
mode = "sorting"
chain = ["keys", "outer"]
[[models.sorts.variants]]
url = "URL"

[models.embeds]
mode = "embedding"
[[models.embeds.variants]]
url = "URL"
"""


def seen(request: Request) -> Any:
    """All of a request."""
    return msgspec.structs.asdict(request) | {"headers": request.headers.raw}


def timeless(outcome: Outcome) -> dict[str, Any]:
    """All of an outcome but the times, and the ids that are made up for each."""
    found = msgspec.structs.asdict(outcome)
    for name in ("started_s", "duration_s", "queue_s", "trace_id"):
        del found[name]
    found["first_byte_s"] = outcome.first_byte_s is not None
    return found


def rejects(_: Exchange) -> None:
    raise Reject(451, "not this", code="forbidden", retry_after_s=2)
