"""Servers' logs over HTTP: one answer, or for those who follow a stream of server-sent events (WHATWG HTML, 9.2)."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from litestar.response import ServerSentEvent
from litestar.response.sse import ServerSentEventMessage

from plugin_sdk import Duration
from sidecar.control.events import Events
from sidecar.control.serverlogs import FOLLOWERS, ServerLogs
from sidecar.mechanism.logreader import LINES_MOST, Found, Line, PatternError, Place, Wanted, matcher
from sidecar.mechanism.serverlog import ServerLog
from sidecar.surfaces.dataplane.errors import ApiError
from sidecar.surfaces.report import KEEP_ALIVE_S

POLL_S = 0.5
TAIL = 200
_WHEN_CHARS = 64


class LogReport(msgspec.Struct, frozen=True, kw_only=True):
    """Lines, oldest first. next: what to ask after next. gone: some of those that were meant are missing, since they
    were cut away or are too many. given_up: the search took too long; later lines were not looked at.
    """

    lines: list[Line]
    next: str
    gone: bool
    given_up: bool


class Question(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What stands behind the `?`. tail: the last so many lines; by default 200, or all `since` then.

    since: a time (RFC 3339, or unix seconds) or how long ago (`10m`). grep: an RE2 pattern that is found in the line.
    stream: of the two. previous: of the run before this one. follow: go on with what comes. after: the `next` of an
    answer, or the id of an event.
    """

    tail: Annotated[int, msgspec.Meta(ge=0, le=LINES_MOST)] | None = None
    since: str = ""
    grep: str = ""
    stream: Literal["", "out", "err"] = ""
    previous: bool = False
    follow: bool = False
    after: str = ""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A question that was understood."""

    wanted: Wanted
    previous: bool
    follow: bool
    after: Place | None


def question(parameters: Mapping[str, str], last_event_id: str | None, now: float | None = None) -> Asked:
    """Read a question. last_event_id: what a client sends that was following. Raises ApiError(400)."""
    try:
        told = msgspec.convert(dict(parameters), Question, strict=False)
        after = last_event_id or told.after
        place = Place.read(after) if after else None
        since = moment(told.since, time.time() if now is None else now) if told.since else 0.0
        matcher(told.grep)
    except PatternError as error:
        raise ApiError(400, "invalid_request", f"the lines asked for: grep: {error}") from None
    except ValueError as error:  # msgspec's errors are ValueErrors, too
        raise ApiError(400, "invalid_request", f"the lines asked for: {error}") from None
    if told.previous and (told.follow or place is not None):
        raise ApiError(
            400, "invalid_request", "the lines asked for: nothing comes after the run before: not with follow"
        )
    tail = told.tail if told.tail is not None else LINES_MOST if told.since else TAIL
    wanted = Wanted(tail=tail, since=since, pattern=told.grep, stream=told.stream)
    return Asked(wanted=wanted, previous=told.previous, follow=told.follow, after=place)


def moment(text: str, now: float) -> float:
    """Unix time of `10m` (ago), of RFC 3339 (in UTC where it does not say) or of unix seconds. Raises ValueError."""
    if len(text) <= _WHEN_CHARS:
        try:
            return now - Duration.parse(text)
        except ValueError:
            pass  # then it is a point in time
        try:
            if math.isfinite(unix := float(text)):
                return unix
        except ValueError:
            pass  # see above
        try:
            found = datetime.fromisoformat(text.replace(" ", "+"))  # as "+" comes out of a query
            return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            pass  # told below
    raise ValueError(f"since: expected 10m, or 2026-01-31T12:00:00Z, or unix seconds, got {text[:_WHEN_CHARS]!r}")


async def log_of(logs: ServerLogs, requested: str, known: Callable[[str], str], asked: Asked) -> ServerLog:
    """The log that is meant: of a model that is declared, or was. known: its name, or ApiError(404).

    Raises ApiError(404) if there is no such run and nobody waits for one.
    """
    try:
        name = known(requested)
    except ApiError:
        log = logs.of(requested)  # what is no longer declared may be what somebody looks into
        if log is None or not await logs.exists(log, previous=asked.previous):
            raise
        return log
    log = logs.of(name)
    if log is None:
        raise ApiError(404, "no_log", "this sidecar keeps no state, and so no logs")
    if not asked.follow and not await logs.exists(log, previous=asked.previous):
        which = "only one run" if asked.previous and await logs.exists(log) else "no run"
        raise ApiError(404, "no_log", f"there has been {which} of a server of {name} that was started here")
    return log


async def answer(logs: ServerLogs, log: ServerLog, asked: Asked) -> LogReport:
    """What there is."""
    if asked.after is not None:
        return _report(await logs.news(log, asked.after, asked.wanted))
    return _report(await logs.read(log, asked.wanted, previous=asked.previous))


def stream(logs: ServerLogs, log: ServerLog, asked: Asked, events: Events) -> ServerSentEvent:
    """The response that follows. Raises ApiError(429)."""
    if logs.followers >= FOLLOWERS:
        raise ApiError(429, "too_many_followers", f"{FOLLOWERS} follow servers' logs already", retry_after_s=10.0)
    return ServerSentEvent(follow(logs, log, asked, events))


async def follow(
    logs: ServerLogs, log: ServerLog, asked: Asked, events: Events, keep_alive_s: float = KEEP_ALIVE_S
) -> AsyncIterator[ServerSentEventMessage]:
    """What there is, then what comes, over restarts of the server, until the sidecar ends.

    `id` is the place after a line. `event: gap` tells that lines are missing, `event: error` that the log cannot be
    read, and then it is tried again. Nobody waits for a reader who is slow: it reads on in the file, as long as that
    has not been cut meanwhile.
    """
    with logs.following():
        place, seen, spoke = asked.after, None, time.monotonic()
        more = True
        while await _go_on(events, 0.0 if more else POLL_S):
            more = False
            log = logs.of(log.name) or log  # the model may be called otherwise by now, or its server have other keys
            try:
                now = await logs.stamp(log)
                found = await _more(logs, log, asked, place) if now != seen else None
            except OSError as error:
                yield ServerSentEventMessage(event="error", data=msgspec.json.encode(str(error)))
                continue
            if found is not None:
                for message in _messages(found):
                    yield message
                    spoke = time.monotonic()
                place, more = found.place, bool(found.lines) or found.given_up
                seen = None if more else now
            elif time.monotonic() - spoke >= keep_alive_s:
                spoke = time.monotonic()
                yield ServerSentEventMessage(comment="alive", id=str(place), data=None)


async def _more(logs: ServerLogs, log: ServerLog, asked: Asked, place: Place | None) -> Found:
    if place is None:
        return await logs.read(log, asked.wanted, whole=True)
    return await logs.news(log, place, asked.wanted)


def _messages(found: Found) -> list[ServerSentEventMessage]:
    gap = [ServerSentEventMessage(event="gap", data="{}")] if found.gone else []
    ids = [str(place) for place in found.places] or [""] * (len(found.lines) - 1) + [str(found.place)]
    lines = [
        ServerSentEventMessage(id=place or None, data=msgspec.json.encode(line))
        for place, line in zip(ids, found.lines, strict=False)
    ]
    return gap + lines


async def _go_on(events: Events, pause_s: float) -> bool:
    """Wait a little. False if nobody may follow any more."""
    seen = events.last
    try:
        async with asyncio.timeout(pause_s):
            while await events.wait(seen):
                seen = events.last
    except TimeoutError:
        return True
    return False


def _report(found: Found) -> LogReport:
    return LogReport(lines=found.lines, next=str(found.place), gone=found.gone, given_up=found.given_up)
