"""What has become of all requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import until
from tests.surfaces.world import OK, World, answers, ask, get, inside, message, running, status


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("plane"), settings='max_body = "100kB"') as made:
        yield made


@inside
async def test_every_request_is_counted_once_whatever_becomes_of_it(w: World) -> None:
    sent = {
        ask(): 200,
        ask(b"no JSON"): 400,
        ask(b"", path=b"/v1/nowhere"): 404,
        ask(b"x" * 200_000): 413,
        get(b"/v1/models"): 200,
        b"nonsense\r\n\r\n": 400,
    }
    for request, expected in sent.items():
        assert status((await w.ask(request))[0]) == expected
    _, leaving = await w.connect()
    leaving.write(ask()[:-5])
    await until(lambda: w.plane.requests.in_flight == 1, "a part of it has come")
    leaving.close()
    w.server.does = answers(OK[:-2], close=True)
    reader, writer = await w.connect()
    writer.write(ask() + ask())
    head, _ = await message(reader, bodiless=True)
    assert status(head) == 200
    assert await reader.read() == b""
    await until(lambda: not w.plane.requests.connections, "all have gone")
    found = w.plane.requests
    ended = {end: count for end, count in found.ended.items() if count}
    assert ended == {"ok": 1, "refused": 1, "upstream_failed": 1}
    assert (found.listed, found.refused_early, found.abandoned, found.malformed) == (1, 3, 2, 1)
    assert (found.accepted, found.in_flight) == (9, 0)
