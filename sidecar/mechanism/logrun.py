"""The files of one run of a server, opened at one moment, as two streams of bytes and of lines.

Places are counted from the run's first byte, whatever has been cut away since. Everything here blocks.
"""

from __future__ import annotations

import bisect
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sidecar.mechanism.logtimes import Look
from sidecar.mechanism.redaction import Redactor
from sidecar.mechanism.serverlog import STREAMS, LogFiles, left_alone, older

LINE_BYTES = 16 * 1024
_BLOCK = 64 * 1024


class Run:
    """A run's files, while `with` lasts. id: its first moment, unix ms; 0 = there is no such run.

    torn: a file was cut meanwhile, or there was less in it than there was when it was opened, so that what was read is
    not to be relied upon.
    """

    def __init__(self, files: LogFiles, hide: Redactor) -> None:
        self.id = 0
        self.torn = False
        self.streams: list[Stream] = []
        self.hide = hide
        self._files = files

    def __enter__(self) -> Run:
        files = self._files
        with left_alone(files), contextlib.ExitStack() as stack:
            looks = files.times.read()
            for index in range(len(STREAMS)):
                stream = Stream(self, index, looks, files.streams[index])
                stack.callback(stream.close)
                self.streams.append(stream)
            self.id = looks[0].at_ms if looks else int(files.exist())
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self.streams:
            self.torn = self.torn or stream.was_cut()
            stream.close()


class Stream:
    """What was cut from its front, as far as it is kept, and the rest. begin, end: of all that, as places."""

    def __init__(self, run: Run, index: int, looks: list[Look], path: Path) -> None:
        self.index, self.name = index, STREAMS[index]
        self._run = run
        self._now = time.time()
        self._ends = [look.ends[index] for look in looks]
        self._at = [look.at_ms / 1000 for look in looks]
        base = looks[-1].bases[index] if looks else 0
        self._parts: list[tuple[int, int, BinaryIO]] = []  # first byte, one beyond the last, file
        self._older = older(path)
        self._cut = _stamp(self._older)
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

    def was_cut(self) -> bool:
        """Whether it has been since it was opened: then other bytes stand where these stood."""
        return _stamp(self._older) != self._cut

    def close(self) -> None:
        """May be repeated."""
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
            while at < end:
                if not (block := file.read(min(_BLOCK, end - at))):
                    self._run.torn = True
                    break
                at += len(block)
                yield block

    def lines(self, begin: int, *, whole: bool = False) -> Iterator[tuple[int, bytes]]:
        """Lines that end after `begin`, each with its end. whole: without a last one that has no end yet.

        At the front of what is kept the first line may have lost its beginning; then it is left out.
        """
        torn = self.begin > 0 and begin < self.begin
        at, line = max(self.begin, begin - LINE_BYTES), bytearray()
        most = LINE_BYTES + 1 + self._run.hide.longest
        for block in self.blocks(at):
            *ended, rest = block.split(b"\n")
            for part in ended:
                _add(line, part, most)
                at += len(part) + 1
                if at > begin and not torn:
                    yield at, bytes(line)
                torn = False
                line.clear()
            _add(line, rest, most)
            at += len(rest)
        if line and not (whole or torn):
            yield at, bytes(line)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:  # there is none; whatever else it is shows when it is opened
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def shown(content: bytes, hide: Redactor) -> str:
    """A line as it is shown: without keys, at most LINE_BYTES long, and no part of a key at the end of that."""
    text = hide(content.decode("utf-8", "replace").rstrip("\r"))
    if len(content) <= LINE_BYTES:
        return text
    cut = hide.longest if len(content) > LINE_BYTES + hide.longest else 0
    return text[: min(LINE_BYTES, len(text) - cut)] + " [...]"


def _add(line: bytearray, part: bytes, most: int) -> None:
    if len(line) < most:
        line += part[: most - len(line)]
