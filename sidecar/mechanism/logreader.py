"""Reads a server's log: lines of both streams in the order in which they were seen, from wherever somebody left off.

Nothing that a server writes makes reading dear: lines are cut at a length, bytes that are no text are replaced, and
what is read at once is bounded. Everything here blocks; callers keep it off the event loop.
"""

from __future__ import annotations

import bisect
import contextlib
import heapq
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import re2

from sidecar.mechanism.logtimes import Look, Times
from sidecar.mechanism.redaction import Redactor
from sidecar.mechanism.serverlog import STREAMS, LogFiles, ServerLog, older

LINE_BYTES = 16 * 1024
LINES_MOST = 10_000
BYTES_MOST = 8 * 2**20
SEARCH_S = 5.0
_BLOCK = 64 * 1024
_PORTION = 1000  # lines that are handed over at once to those who follow
_PATTERN_CHARS = 1000
_ATTEMPTS = 3
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
    """at: when it was first seen, unix time: it was written since the look before. stream: one of STREAMS."""

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
    for attempt in range(_ATTEMPTS):
        run = _Run(files, log.hide)
        found = _read(run, wanted, whole)
        if attempt == _ATTEMPTS - 1 or run.is_still(files.times):
            break  # else it was cut, or began anew, as we read
    return found


def news(log: ServerLog, place: Place, wanted: Wanted) -> Found:
    """The next lines after a place, whole ones only. Raises OSError, PatternError.

    What is left of the run before comes first; then the newer one begins at its front.
    """
    for _ in range(_ATTEMPTS):
        run = _Run(log.now, log.hide)
        before = _Run(log.previous, log.hide)
        found = _after(run, place, wanted) if place.run == run.id else _next_run(run, before, place, wanted)
        if run.is_still(log.now.times):
            break
    return found


def _next_run(run: _Run, before: _Run, place: Place, wanted: Wanted) -> Found:
    known = place.run == before.id
    if known and (rest := _after(before, place, wanted)).lines:
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


def _read(run: _Run, wanted: Wanted, whole: bool) -> Found:
    matches = matcher(wanted.pattern)
    most = min(wanted.tail, LINES_MOST)
    kept: deque[Line] = deque()
    size, gone, patience = 0, False, _Patience()
    with _opened(run, wanted) as streams:
        begins = {}
        ends = list(run.sizes)
        for stream in streams:
            begin = stream.since(wanted.since)
            gone = gone or (wanted.since > 0 and begin < stream.begin)
            if matches is None:
                begin = max(begin, stream.last_lines(most))
            begins[stream.name] = begin
            ends[stream.index] = max(begin, stream.begin)
        for index, end, line in _merged(streams, begins, whole=whole):
            ends[index] = end
            if patience.is_over():
                break
            if matches is not None and not matches(line.text):
                continue
            kept.append(line)
            size += len(line.text)
            while len(kept) > most or size > BYTES_MOST:
                gone = gone or most == LINES_MOST or size > BYTES_MOST
                size -= len(kept.popleft().text)
    return Found(list(kept), [], Place(run.id, tuple(ends)), gone, patience.is_over())


def _after(run: _Run, place: Place, wanted: Wanted) -> Found:
    matches = matcher(wanted.pattern)
    lines: list[Line] = []
    places: list[Place] = []
    ends = list(place.ends)
    patience = _Patience()
    with _opened(run, wanted) as streams:
        begins = {stream.name: place.ends[stream.index] for stream in streams}
        gone = any(0 < begins[stream.name] < stream.begin for stream in streams)
        for index, end, line in _merged(streams, begins, whole=True):
            ends[index] = end
            if matches is None or matches(line.text):
                lines.append(line)
                places.append(Place(run.id, tuple(ends)))
            if len(lines) >= _PORTION or patience.is_over():
                break
    return Found(lines, places, Place(run.id, tuple(ends)), gone)


def _merged(streams: list[_Stream], begins: dict[str, int], *, whole: bool) -> Iterator[tuple[int, int, Line]]:
    """Stream's index, where the line ends, the line; by when they were seen, each stream in its own order."""
    labelled = [_labelled(stream, begins[stream.name], whole) for stream in streams]
    return heapq.merge(*labelled, key=lambda found: found[2].at)


def _labelled(stream: _Stream, begin: int, whole: bool) -> Iterator[tuple[int, int, Line]]:
    for end, content in stream.lines(begin, whole=whole):
        text = stream.hide(content[:LINE_BYTES].decode("utf-8", "replace").rstrip("\r"))
        if len(content) > LINE_BYTES:
            text += " [...]"
        yield stream.index, end, Line(stream.at(end), stream.name, text)


@contextlib.contextmanager
def _opened(run: _Run, wanted: Wanted) -> Iterator[list[_Stream]]:
    with contextlib.ExitStack() as stack:
        names = [name for name in STREAMS if wanted.stream in ("", name)]
        streams = [_Stream(run, STREAMS.index(name)) for name in names]
        for stream in streams:
            stack.callback(stream.close)
        yield streams


class _Patience:
    """For one search."""

    def __init__(self) -> None:
        self._until = time.monotonic() + SEARCH_S

    def is_over(self) -> bool:
        """Whether it has taken too long."""
        return time.monotonic() > self._until


class _Run:
    """The files of a run, as they were at one moment."""

    def __init__(self, files: LogFiles, hide: Redactor) -> None:
        self.files = files
        self.hide = hide
        self.looks = files.times.read()
        self.id = self.looks[0].at_ms if self.looks else int(files.exist())
        self.last = self.looks[-1] if self.looks else Look(0)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each stream so far."""
        return tuple(base + _size(path) for base, path in zip(self.last.bases, self.files.streams, strict=True))

    def is_still(self, times: Times) -> bool:
        """Whether the files begin where they began."""
        looks = times.read()
        return not looks or (looks[0].at_ms, looks[-1].bases) == (self.id, self.last.bases)


class _Stream:
    """One stream of a run: what was cut from its front, as far as it is kept, and the rest. To be closed."""

    def __init__(self, run: _Run, index: int) -> None:
        self.index, self.name = index, STREAMS[index]
        self.hide = run.hide
        self._now = time.time()
        self._ends = [look.ends[index] for look in run.looks]
        self._at = [look.at_ms / 1000 for look in run.looks]
        path = run.files.streams[index]
        base = run.last.bases[index]
        self._parts: list[tuple[int, int, BinaryIO]] = []  # first byte, one beyond the last, file
        for place, begin in ((older(path), None), (path, base)):
            try:
                file = place.open("rb")
            except FileNotFoundError:
                continue
            size = file.seek(0, 2)
            first = base - size if begin is None else begin
            self._parts.append((first, first + size, file))
        self.begin = self._parts[0][0] if self._parts else 0
        self.end = self._parts[-1][1] if self._parts else 0

    def close(self) -> None:
        for _, _, file in self._parts:
            file.close()

    def since(self, unix: float) -> int:
        """Where what was written after a moment begins, or a little before."""
        index = bisect.bisect_right(self._at, unix) - 1
        return self._ends[index] if index >= 0 else 0

    def at(self, end: int) -> float:
        """When the byte before `end` was first seen."""
        index = bisect.bisect_left(self._ends, end)
        return self._at[index] if index < len(self._at) else self._now

    def last_lines(self, count: int) -> int:
        """Where the last `count` lines begin, or a little before; -1 if there are no more than so many."""
        missing = count + 1
        for first, end, file in reversed(self._parts):
            at = end
            while at > first:
                size = min(_BLOCK, at - first)
                at -= size
                file.seek(at - first)
                missing -= file.read(size).count(b"\n")
                if missing <= 0:
                    return at
        return -1

    def blocks(self, begin: int) -> Iterator[bytes]:
        """The bytes from a place on."""
        for first, end, file in self._parts:
            at = max(first, begin)
            if at >= end:
                continue
            file.seek(at - first)
            while at < end and (block := file.read(min(_BLOCK, end - at))):
                at += len(block)
                yield block

    def lines(self, begin: int, *, whole: bool = False) -> Iterator[tuple[int, bytes]]:
        """Lines that end after `begin`, each with its end. whole: without a last one that has no end yet.

        At the front of what is kept the first line may have lost its beginning; then it is left out.
        """
        torn = self.begin > 0 and begin < self.begin
        at, line = max(self.begin, begin - LINE_BYTES), bytearray()
        for block in self.blocks(at):
            *ended, rest = block.split(b"\n")
            for part in ended:
                _add(line, part)
                at += len(part) + 1
                if at > begin and not torn:
                    yield at, bytes(line)
                torn = False
                line.clear()
            _add(line, rest)
            at += len(rest)
        if line and not (whole or torn):
            yield at, bytes(line)


def _add(line: bytearray, part: bytes) -> None:
    if len(line) <= LINE_BYTES:
        line += part[: LINE_BYTES + 1 - len(line)]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
