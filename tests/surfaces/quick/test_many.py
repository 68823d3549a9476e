"""Many clients at once whose heads come again, some slow, some leaving, of a server that breaks off at times."""

from __future__ import annotations

import asyncio
import random

from tests.support import until
from tests.surfaces.quick.harness import JSON, LAST, WAS_QUICK, WATCHED, M
from tests.surfaces.world import STREAM, Does, Streams, World, ask, chunk, inside, message, status

CLIENTS = 24
TURNS = 10


def at_random(chance: random.Random) -> Does:
    """A server that says nothing but the client's number, in one way or another, or breaks off."""

    async def does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        number = head.lower().split(b"x-number: ")[1].split(b"\r\n")[0]
        body = number * chance.choice((1, 10, 1000, 30_000))
        whole, events = JSON % (len(body), body), [chunk(number), *[chunk(body)] * chance.choice((0, 3, 10))]
        cut = chance.randrange(1, len(whole))
        pieces, ends = chance.choice(
            [
                *[((whole,), False)] * 4,
                ((whole[:cut], whole[cut:]), False),
                ((STREAM, *events, LAST), False),
                ((STREAM + b"".join(events) + LAST,), False),
                ((STREAM, *events), True),
                ((), True),
            ]
        )
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        if ends:
            writer.close()
        else:
            await writer.drain()

    return does


async def client(w: World, chance: random.Random, number: int) -> int:
    """One that asks on, on another connection whenever one breaks; how many answers were whole."""
    streams: Streams | None = None
    request = ask(chance.choice((M, WATCHED)), b"Authorization: Bearer key", b"X-Number: %d" % number)
    answered = 0
    for _ in range(TURNS):
        reader, writer = streams = streams or await w.connect(receive_buffer=chance.choice((0, 0, 4096)))
        at_once = chance.choice((1, 1, 1, 2, 5))
        for _ in range(at_once):
            writer.write(request)
            await asyncio.sleep(0)
        if chance.random() < 0.05:
            writer.transport.abort()
            streams = None
            continue
        try:
            for _ in range(at_once):
                head, body = await message(reader)
                assert status(head) in (200, 502)
                assert status(head) == 502 or not body.replace(b"%d" % number, b"")
                answered += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()
            streams = None
    return answered


@inside
async def test_each_client_gets_its_own_answers_and_nothing_stays_held(w: World) -> None:
    chance = random.Random(7)  # noqa: S311 - to be the same each time
    before = w.plane.requests
    w.server.does = at_random(chance)
    answered = await asyncio.gather(*(client(w, chance, 100 + number) for number in range(CLIENTS)))
    assert min(answered) > 0
    assert len(WAS_QUICK) > CLIENTS
    for edge in w.connections:
        edge.transport.abort()
    await until(lambda: not w.connections and not w.generation.leases, "all have gone")
    after = w.plane.requests
    assert not w.controller.fleet.external_in_flight
    assert after.in_flight == 0
    assert len(w.outcomes) == sum(after.ended.values()) - sum(before.ended.values())
