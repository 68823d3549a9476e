"""The event log: what has happened, for people to read and for programs to follow.

Recording is one step in memory and never waits or fails; a task of its own brings what was recorded to disk. What is
held is bounded: the oldest events make room, and what happens again and again is held once, with a count.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sidecar.control.clock import Clock
from sidecar.mechanism.eventlog import Event, EventLog

__all__ = ["CAPACITY", "Event", "Events"]

log = logging.getLogger(__name__)

CAPACITY = 2000
FOLD_S = 60.0  # within which the same event again is the same event once more
MESSAGE_CHARS = 2000
WORD_CHARS = 300  # names and reasons: short, though nothing keeps them so
BATCH_S = 0.1  # for which events are gathered before they are written
REPEATS_S = 60.0  # how often a risen count is written, so that what flaps does not push all else out of the files
RETRY_S = 5.0

_Key = tuple[str, str, str, str]


class _Latest(msgspec.Struct, frozen=True):
    """The last event of a key, and when it was by the clock that never jumps."""

    event: Event
    when: float


class Events:
    """To be used on one event loop. Without a folder, events are held in memory alone: no file, no task, no thread.

    last: the seq of the newest event. problem: why nothing can be written at present, or "". dropped: events that were
    pushed out, or left at the end, before they could be written.
    """

    def __init__(self, clock: Clock, folder: Path | None = None) -> None:
        self.problem = ""
        self.dropped = 0
        self._clock = clock
        self._log = EventLog(folder) if folder is not None else None
        # No run records an event per microsecond. So a run that begins at the time in microseconds begins above all
        # that runs before it have given out, even what did not come to disk; and JSON's integers hold it (RFC 8259, 6).
        self.last = int(clock.unix() * 1_000_000) if folder is not None else 0
        self._held: OrderedDict[int, Event] = OrderedDict()
        self._latest: dict[_Key, _Latest] = {}
        self._pushed_out = 0  # the highest seq that was
        self._news = asyncio.Event()  # one for each event that is added
        self._followed = True
        self._unwritten: dict[int, Event] = {}
        self._repeats: dict[int, Event] = {}  # written, but with a lower count
        self._repeats_at = -math.inf
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Take up the history on disk, and begin to write. A history that cannot be read is told and left as it is."""
        if self._log is None:
            return
        try:
            self._take_up(await asyncio.to_thread(self._log.read))
        except OSError as error:
            log.error("%s cannot be read: %s", self._log.path, error)
        self._writer = asyncio.create_task(self._write(self._log), name="events")

    async def close(self) -> None:
        """Write what is not written yet. What is recorded from here on is held in memory alone."""
        self.end_followers()
        self._closing.set()
        self._wake.set()
        if self._writer is not None:
            await self._writer
            self._writer = None

    # --- recording ----------------------------------------------------------------------------------------------

    def record(
        self,
        kind: str,
        /,
        *,
        model: str = "",
        server: str = "",
        reason: str = "",
        message: str = "",
        revision: str = "",
    ) -> None:
        """Add an event of a type. model: "" where it happens to the sidecar itself."""
        now = self._clock.unix()
        event = Event(
            seq=self.last + 1,
            at=now,
            type=_short(kind, WORD_CHARS),
            model=_short(model, WORD_CHARS),
            server=_short(server, WORD_CHARS),
            reason=_short(reason, WORD_CHARS),
            message=_short(message, MESSAGE_CHARS),
            revision=_short(revision, WORD_CHARS),
            first_at=now,
        )
        self._add(event)

    def end_followers(self) -> None:
        """Let everybody who waits for news go: the sidecar is shutting down. Recording goes on."""
        self._followed = False
        self._news.set()

    def _add(self, event: Event) -> None:
        now = self._clock.monotonic()
        before = self._latest.get(_key(event))
        queue = self._unwritten
        if before is not None and now - before.when <= FOLD_S:
            replaced = before.event
            event = msgspec.structs.replace(event, count=replaced.count + 1, first_at=replaced.first_at)
            del self._held[replaced.seq]
            self._repeats.pop(replaced.seq, None)
            if self._unwritten.pop(replaced.seq, None) is None:
                queue = self._repeats
        if self._log is not None and not self._closing.is_set():
            queue[event.seq] = event
            self._wake.set()
        self._hold(event, now)
        self._news.set()
        self._news = asyncio.Event()

    def _hold(self, event: Event, when: float) -> None:
        self.last = event.seq
        self._held[event.seq] = event
        self._latest[_key(event)] = _Latest(event, when)
        if len(self._held) > CAPACITY:
            seq, oldest = self._held.popitem(last=False)
            self._pushed_out = seq
            if self._latest[_key(oldest)].event.seq == seq:
                del self._latest[_key(oldest)]
            self._repeats.pop(seq, None)
            if self._unwritten.pop(seq, None) is not None:
                self.dropped += 1

    # --- reading ------------------------------------------------------------------------------------------------

    def since(self, seq: int, model: str | None = None, limit: int = CAPACITY) -> list[Event]:
        """The first events after `seq`, of one model if one is named. See `missed`."""
        found = []
        for event in reversed(self._held.values()):
            if event.seq <= seq:
                break
            if model is None or event.model == model:
                found.append(event)
        found.reverse()
        return found[:limit]

    def newest(self, limit: int, model: str | None = None) -> list[Event]:
        """The last events, oldest first."""
        found = self.since(0, model)
        return found[max(0, len(found) - limit) :]

    def missed(self, seq: int) -> bool:
        """Whether events after `seq` are gone, or `seq` is none of ours: whoever has read up to there has a gap."""
        return seq < self._pushed_out or seq > self.last

    async def wait(self, seq: int) -> bool:
        """Until there are events after `seq`. False if there are none and nobody may follow any more."""
        while self.last <= seq and self._followed:
            await self._news.wait()
        return self.last > seq

    # --- the files ----------------------------------------------------------------------------------------------

    def _take_up(self, history: list[Event]) -> None:
        """Put the history before what was recorded meanwhile, whose seqs nobody has seen yet."""
        meanwhile = list(self._held.values())
        self._held.clear()
        self._latest.clear()
        self._unwritten.clear()
        self._repeats.clear()
        begin = self.last
        since_boot = self._clock.monotonic() - self._clock.unix()
        if history:
            self._pushed_out = history[0].seq - 1
        for event in history:
            before = self._latest.get(_key(event))
            if before is not None and before.event.first_at == event.first_at:
                self._held.pop(before.event.seq, None)  # the same, with a lower count
            self._hold(event, min(self._clock.monotonic(), event.at + since_boot))
        self.last = max(begin, self.last)
        for event in meanwhile:
            self._add(msgspec.structs.replace(event, seq=self.last + 1))

    async def _write(self, files: EventLog) -> None:
        while not self._closing.is_set():
            await _within(self._wake, REPEATS_S)
            self._wake.clear()
            await _within(self._closing, RETRY_S if self.problem else BATCH_S)
            await self._flush(files)
        await self._flush(files)
        self.dropped += len(self._unwritten)

    async def _flush(self, files: EventLog) -> None:
        taken, self._unwritten = self._unwritten, {}
        now = self._clock.monotonic()
        if self._closing.is_set() or now - self._repeats_at >= REPEATS_S:
            self._repeats_at = now
            taken |= self._repeats
            self._repeats = {}
        batch = list(taken.values())
        if not batch:
            return
        try:
            await asyncio.to_thread(files.append, batch)
        except OSError as error:
            self._put_back(batch)
            self._wake.set()
            if not self.problem:
                log.error("%s cannot be written: %s; events are held in memory, and tried again", files.path, error)
            self.problem = str(error)
        else:
            if self.problem:
                log.info("%s can be written again", files.path)
            self.problem = ""

    def _put_back(self, batch: Sequence[Event]) -> None:
        held = {event.seq: event for event in batch if event.seq in self._held}
        self.dropped += sum(event.seq <= self._pushed_out for event in batch if event.seq not in held)
        self._unwritten = held | self._unwritten


async def _within(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _key(event: Event) -> _Key:
    """What makes it the same again. Messages of conditions tell numbers, of memory or of tries, and are left out."""
    message = "" if event.type == "ConditionChanged" else event.message
    return (event.type, event.model, event.reason, message)


def _short(text: str, limit: int) -> str:
    """Cut in the middle, since both ends tell something; and without what is no character, as servers may print it."""
    if len(text) > limit:
        text = f"{text[: limit // 2]} [...] {text[-limit // 2 :]}"
    return text if text.isascii() else text.encode(errors="replace").decode()
