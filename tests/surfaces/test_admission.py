"""Who may ask for what: nobody learns of models, or of what is wrong with a request, before he is let in."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from plugin_sdk import Auth, Exchange, Filter, Principal, Reject, Request, inline
from tests.surfaces.world import World, ask, inside, running, status

MORE = """
[plugins.door]
import = "tests.surfaces.test_admission:Door"
[plugins.spoils]
import = "tests.surfaces.test_admission:Spoils"
[models.embeds]
mode = "embedding"
aliases = ["text"]
[[models.embeds.variants]]
url = "URL"
[models.spoilt]
mode = "chat"
chain = ["door", "spoils"]
[[models.spoilt.variants]]
url = "URL"
"""


class Door(Auth):
    """Lets in who says so."""

    @inline
    def authenticate(self, request: Request) -> Principal:
        if request.headers.get("x-key") != "yes":
            raise Reject(401, "who is there?", code="unknown_key")
        return Principal("somebody")


class Spoils(Filter):
    """Makes of a request what cannot be sent."""

    @inline
    def on_request(self, exchange: Exchange) -> Request:
        request = exchange.request
        return Request(method=request.method, path=request.path, headers=request.headers, body=b"no JSON")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("admission"), chain='"door"', more=MORE) as made:
        yield made


async def refused(w: World, body: bytes, *lines: bytes, path: bytes = b"/v1/chat/completions") -> tuple[int, str]:
    head, told = await w.ask(ask(body, *lines, path=path))
    assert not w.server.seen
    return status(head), json.loads(told)["error"]["code"]


@pytest.mark.parametrize("body", [b"no JSON", b"{}", b'{"model": "none"}', b'{"model": "m"}', b'{"model": "embeds"}'])
def test_who_is_not_let_in_learns_nothing_else(here: World, body: bytes) -> None:
    async def scenario() -> None:
        assert await refused(here, body) == (401, "unknown_key")
        outcome = await here.outcome()
        assert (outcome.status, outcome.code, outcome.principal) == (401, "unknown_key", "anonymous")

    here.run(scenario())


@inside
async def test_who_is_let_in_learns_what_is_wrong(w: World) -> None:
    key = b"X-Key: yes"
    assert await refused(w, b"no JSON", key) == (400, "invalid_json")
    assert await refused(w, b"{}", key) == (400, "model_missing")
    assert await refused(w, b'{"model": 1}', key) == (400, "invalid_type")
    assert await refused(w, b'{"model": "none"}', key) == (404, "model_not_found")
    assert await refused(w, b'{"model": "text"}', key) == (400, "wrong_mode")
    assert await refused(w, b'{"model": "m"}', key, path=b"/v1/embeddings") == (400, "wrong_mode")
    assert await refused(w, b'{"model": "spoilt"}', key) == (500, "filter_failed")
    assert {outcome.principal for outcome in w.outcomes} == {"somebody"}


@inside
async def test_who_is_let_in_is_served_under_the_name_that_he_used(w: World) -> None:
    head, _ = await w.ask(ask(b'{"model": "text"}', b"X-Key: yes", path=b"/v1/embeddings"))
    assert status(head) == 200
    outcome = await w.outcome()
    assert (outcome.model, outcome.mode, outcome.principal) == ("embeds", "embedding", "somebody")
    assert json.loads(w.server.bodies[0])["model"] == "embeds"
