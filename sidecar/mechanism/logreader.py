"""Reads a server's log: lines of both streams in the order in which they were seen, from wherever somebody left off.

Nothing that a server writes makes reading dear: lines are cut at a length, bytes that are no text are replaced, and
what is read at once is bounded. Everything here blocks; callers keep it off the event loop.
"""

from __future__ import annotations

import heapq
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import re2

from sidecar.mechanism.logrun import Run, Stream, shown
from sidecar.mechanism.serverlog import ServerLog

LINES_MOST = 10_000
BYTES_MOST = 8 * 2**20
SEARCH_S = 5.0
_PORTION = 1000  # lines that are handed over at once to those who follow
_PATTERN_CHARS = 1000
_ATTEMPTS = 5
_PLACE = re.compile(r"(\d{1,15})\.(\d{1,18})\.(\d{1,18})", re.ASCII)

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
_OPTIONS.max_mem = 8 * 2**20


class PatternError(ValueError):
    """What was to be searched for is no pattern."""


class Place(msgspec.Struct, frozen=True):
    """Up to where somebody has read. run: its first moment, unix ms; 0 = none. ends: bytes of each stream."""

    run: int = 0
    ends: tuple[int, ...] = (0, 0)

    def __str__(self) -> str:
        return f"{self.run}.{'.'.join(map(str, self.ends))}"

    @classmethod
    def read(cls, text: str) -> Place:
        """The place that `str` told. Raises ValueError."""
        found = _PLACE.fullmatch(text)
        if found is None:
            raise ValueError(f"{text[:50]!r} is no place in a log")
        run, *ends = map(int, found.groups())
        return cls(run, tuple(ends))


class Line(msgspec.Struct, frozen=True):
    """at: when it was first seen, unix time: it was written since the look before. stream: "out" or "err"."""

    at: float
    stream: str
    text: str


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which lines. tail: the last so many. since: unix time, as exactly as was looked. stream: "" = both."""

    tail: int = LINES_MOST
    since: float = 0.0
    pattern: str = ""
    stream: str = ""


class Found(msgspec.Struct, frozen=True):
    """Lines, oldest first. places: after each of them. place: where to go on.

    gone: some are missing, since they were cut away or are too many. given_up: the search took too long, and later
    lines were not looked at.
    """

    lines: list[Line]
    places: list[Place]
    place: Place
    gone: bool = False
    given_up: bool = False


def matcher(pattern: str) -> Callable[[str], object] | None:
    """RE2, whose time is linear in the text whatever the pattern is; None matches all. Raises PatternError."""
    if not pattern:
        return None
    if len(pattern) > _PATTERN_CHARS:
        raise PatternError(f"the pattern is longer than {_PATTERN_CHARS} characters")
    try:
        search: Callable[[str], object] = re2.compile(pattern, _OPTIONS).search
    except re2.error as error:
        why = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else str(error)
        raise PatternError(f"{why}; patterns are RE2's: no look-around, no back-references") from None
    except (UnicodeError, ValueError) as error:
        raise PatternError(str(error)) from None
    return search


def read(log: ServerLog, wanted: Wanted, *, previous: bool = False, whole: bool = False) -> Found:
    """The last lines of a run that are wanted. whole: without one that has no end yet. Raises OSError, PatternError."""
    files = log.previous if previous else log.now
    for _ in range(_ATTEMPTS):
        with Run(files, log.hide) as run:
            found = _read(run, wanted, whole)
        if not run.torn or found.given_up:
            break
    return found


def news(log: ServerLog, place: Place, wanted: Wanted) -> Found:
    """The next lines after a place, whole ones only. Raises OSError, PatternError.

    What is left of the run before comes first; then the newer one begins at its front.
    """
    for _ in range(_ATTEMPTS):
        with Run(log.now, log.hide) as run:
            found = _after(run, place, wanted) if place.run == run.id else _next_run(log, run, place, wanted)
        if not run.torn or found.given_up:
            break
    return found


def _next_run(log: ServerLog, run: Run, place: Place, wanted: Wanted) -> Found:
    with Run(log.previous, log.hide) as before:
        known = place.run == before.id
        if known and ((rest := _after(before, place, wanted)).lines or rest.given_up):
            return rest
    fresh = _after(run, Place(run.id), wanted)
    return msgspec.structs.replace(fresh, gone=fresh.gone or (place.run != 0 and not known))


def stamp(log: ServerLog) -> tuple[object, ...]:
    """Something that changes when there is something new. Raises OSError."""
    return tuple(map(_stamp, (*log.now.streams, log.now.times.path)))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size


def _read(run: Run, wanted: Wanted, whole: bool) -> Found:
    matches = matcher(wanted.pattern)
    kept = _Kept(wanted.tail)
    begins = {}
    for stream in _wanted(run, wanted):
        begin = stream.since(wanted.since)
        kept.gone = kept.gone or (wanted.since > 0 and begin < stream.begin)
        begins[stream.index] = begin if matches is not None else max(begin, stream.last_lines(kept.most))
    ends = [max(begins.get(stream.index, stream.end), stream.begin) for stream in run.streams]
    patience = _Patience()
    for index, end, line in _merged(run, begins, whole=whole):
        ends[index] = end
        if matches is None or matches(line.text):
            kept.add(line)
        if patience.is_over():
            break
    return Found(list(kept.lines), [], Place(run.id, tuple(ends)), kept.gone, patience.was_over)


def _after(run: Run, place: Place, wanted: Wanted) -> Found:
    matches = matcher(wanted.pattern)
    lines: list[Line] = []
    places: list[Place] = []
    ends = list(place.ends)
    begins = {stream.index: place.ends[stream.index] for stream in _wanted(run, wanted)}
    gone = any(0 < begin < run.streams[index].begin for index, begin in begins.items())
    patience = _Patience()
    for index, end, line in _merged(run, begins, whole=True):
        ends[index] = end
        if matches is None or matches(line.text):
            lines.append(line)
            places.append(Place(run.id, tuple(ends)))
        if len(lines) >= _PORTION or patience.is_over():
            break
    return Found(lines, places, Place(run.id, tuple(ends)), gone, patience.was_over)


class _Kept:
    """The last lines, so many and of such a size at most. gone: there were more that were meant."""

    def __init__(self, tail: int) -> None:
        self.most = min(tail, LINES_MOST)
        self.lines: deque[Line] = deque()
        self.gone = False
        self._size = 0

    def add(self, line: Line) -> None:
        self.lines.append(line)
        self._size += len(line.text)
        while len(self.lines) > self.most or self._size > BYTES_MOST:
            self.gone = self.gone or self.most == LINES_MOST or self._size > BYTES_MOST
            self._size -= len(self.lines.popleft().text)


def _wanted(run: Run, wanted: Wanted) -> list[Stream]:
    return [stream for stream in run.streams if wanted.stream in ("", stream.name)]


def _merged(run: Run, begins: dict[int, int], *, whole: bool) -> Iterator[tuple[int, int, Line]]:
    """Stream's index, where the line ends, the line; by when they were seen, each stream in its own order."""
    labelled = [_labelled(run, run.streams[index], begin, whole) for index, begin in begins.items()]
    return heapq.merge(*labelled, key=lambda found: found[2].at)


def _labelled(run: Run, stream: Stream, begin: int, whole: bool) -> Iterator[tuple[int, int, Line]]:
    for end, content in stream.lines(begin, whole=whole):
        yield stream.index, end, Line(stream.at(end), stream.name, shown(content, run.hide))


class _Patience:
    """For one search. was_over: it has taken too long."""

    def __init__(self) -> None:
        self.was_over = False
        self._until = time.monotonic() + SEARCH_S

    def is_over(self) -> bool:
        """Whether it takes too long."""
        self.was_over = time.monotonic() > self._until
        return self.was_over
