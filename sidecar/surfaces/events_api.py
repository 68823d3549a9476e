"""Events over HTTP: one answer, or for those who follow a stream of server-sent events (WHATWG HTML, 9.2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Annotated

import msgspec
from litestar.response import ServerSentEvent
from litestar.response.sse import ServerSentEventMessage

from sidecar.control.events import CAPACITY, Events
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.report import KEEP_ALIVE_S, EventsReport


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands behind the `?`. after: the seq up to which everything is known; without it, the newest are meant.

    model: only of that one; "" for the sidecar's own. limit: how many at once. follow: go on with what comes.
    """

    after: Annotated[int, msgspec.Meta(ge=0, lt=2**53)] | None = None
    model: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=CAPACITY)] = 100
    follow: bool = False


def question(parameters: Mapping[str, str], last_event_id: str | None) -> Question:
    """Read a question. last_event_id: what a client sends that was following and has lost the connection.

    Raises ApiError(400).
    """
    told: dict[str, str] = dict(parameters)
    if last_event_id:
        told["after"] = last_event_id  # later than the `after` that the same address began with
    try:
        return msgspec.convert(told, Question, strict=False)
    except msgspec.ValidationError as error:
        raise ApiError(400, "invalid_request", f"the events asked for: {error}") from None


def answer(events: Events, asked: Question) -> EventsReport:
    """What is held."""
    last = events.last
    if asked.after is None:
        return EventsReport(events=events.newest(asked.limit, asked.model), last=last, gap=False)
    gap = events.missed(asked.after)
    after = asked.after if asked.after <= last else 0  # from another life: all is news
    found = events.since(after, asked.model, asked.limit)
    if len(found) == asked.limit:
        last = found[-1].seq  # there may be more
    return EventsReport(events=found, last=last, gap=gap)


async def follow(
    events: Events, asked: Question, keep_alive_s: float = KEEP_ALIVE_S
) -> AsyncIterator[ServerSentEventMessage]:
    """What is held, then what comes, until nobody may follow any more. `id` is the seq; `event: gap` tells of a gap.

    Nobody waits for a reader who is slow: the gap is what was pushed out meanwhile. A sign of life has an id and no
    data, which moves the reader's place and is no event to it.
    """
    going_on = True
    while going_on:
        found = answer(events, asked)
        if found.gap:
            yield ServerSentEventMessage(event="gap", data="{}")
        for event in found.events:
            yield ServerSentEventMessage(id=event.seq, data=msgspec.json.encode(event))
        if not found.events:
            yield ServerSentEventMessage(comment="alive", id=found.last, data=None)
        asked = msgspec.structs.replace(asked, after=found.last)
        going_on = await _news(events, asked, keep_alive_s)


def stream(events: Events, asked: Question) -> ServerSentEvent:
    """The response that follows."""
    return ServerSentEvent(follow(events, asked))


async def _news(events: Events, asked: Question, keep_alive_s: float) -> bool:
    """Until there is something to say, be it only a sign of life. False if there never will be."""
    seen = asked.after or 0
    try:
        async with asyncio.timeout(keep_alive_s):
            while await events.wait(seen):
                if events.since(seen, asked.model, 1):
                    return True
                seen = events.last
    except TimeoutError:
        return True
    return False
