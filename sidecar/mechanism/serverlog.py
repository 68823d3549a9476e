"""A server's output: two files that it writes to itself, so that they outlive the sidecar, kept short from outside.

A pipe would end with the sidecar, and the server with it, or stop the server when it is full; a file does neither.
What can be said of its lines' age is what was seen from outside: how long the files were when somebody looked
(`logtimes`). Everything here blocks; callers keep it off the event loop.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from sidecar.mechanism.logtimes import Times
from sidecar.mechanism.redaction import NOTHING, Redactor

TAIL_BYTES = 16 * 1024
TAIL_LINES = 20
STREAMS = ("out", "err")
PREVIOUS = "previous"
_FILE = re.compile(r"(.+)\.(?:(?:out|err)\.log(?:\.1)?|times(?:\.draft)?)")
_BLOCK = 256 * 1024
_ROUNDS = 3  # of copying what comes while the rest is copied


class LogFiles:
    """The files of one run: `NAME.out.log` and `NAME.err.log`; `*.log.1` is what was cut from the front of them."""

    def __init__(self, folder: Path, safe: str) -> None:
        self.folder = folder
        self.out = folder / f"{safe}.out.log"
        self.err = folder / f"{safe}.err.log"
        self.times = Times(folder / f"{safe}.times")

    @property
    def streams(self) -> tuple[Path, Path]:
        """Those that the server writes."""
        return (self.out, self.err)

    def all(self) -> Iterator[Path]:
        """Whether or not they exist."""
        for path in self.streams:
            yield path
            yield older(path)
        yield self.times.path

    def exist(self) -> bool:
        """Whether there has been such a run."""
        return any(path.exists() for path in self.streams)

    def move(self, to: LogFiles) -> None:
        """Take the place of others. Whoever writes goes on in the same files. Raises OSError."""
        to.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path, place in zip(self.all(), to.all(), strict=True):
            if path.exists():
                path.replace(place)
            else:
                place.unlink(missing_ok=True)


class ServerLog:
    """The log of a model's servers: of the run that is, or was the last, and of the one before in `previous/`."""

    def __init__(self, folder: Path, name: str, hide: Redactor = NOTHING) -> None:
        """name: the model's. hide: what is taken out of lines before anybody is shown them.

        stem: what the names of all its files begin with.
        """
        self.name = name
        self.hide = hide
        self._folder = folder
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", name)
        if safe != name:
            safe += "-" + hashlib.sha256(name.encode()).hexdigest()[:6]  # "a/b" and "a_b" are two models
        self.stem = safe
        self.now = LogFiles(folder, safe)
        self.previous = LogFiles(folder / PREVIOUS, safe)
        self.out, self.err = self.now.streams

    def open(self) -> tuple[BinaryIO, BinaryIO]:
        """Begin a new run. Appending, so that a writer goes on at the end after the file was cut. Raises OSError."""
        self.out.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if any(path.exists() for path in self.now.all()):
            self.now.move(self.previous)
        self.now.times.begin()
        return self.out.open("ab", buffering=0), self.err.open("ab", buffering=0)

    def is_written_by(self, pid: int) -> bool:
        """Whether a process's stdout or stderr is one of these files."""
        return any(_same(Path(f"/proc/{pid}/fd/{number}"), path) for number, path in enumerate(self.now.streams, 1))

    def renamed(self, name: str) -> ServerLog:
        """The log under another name of the model: all that there is goes along, and whoever writes goes on in it.

        What the name had before becomes its run before. Without any run of ours everything stays. Raises OSError.
        """
        other = ServerLog(self._folder, name, self.hide)
        if name == self.name or not self.now.exist():
            return other
        with left_alone(self.now, fcntl.LOCK_EX):
            if other.now.exist():
                other.now.move(other.previous)
            elif self.previous.exist():
                self.previous.move(other.previous)
            self.now.move(other.now)
        return other

    def look(self, limit_bytes: int) -> None:
        """Note how long the files are, and cut those that have outgrown the limit. Raises OSError."""
        with left_alone(self.now, fcntl.LOCK_EX):
            if self.now.exist():  # they may have got another name while we waited
                self._look(limit_bytes)

    def _look(self, limit_bytes: int) -> None:
        before = self.now.times.last
        ends, bases = [], []
        for index, path in enumerate(self.now.streams):
            base, size = before.bases[index], _size(path)
            if base + size < before.ends[index]:
                base = before.ends[index]  # cut by another hand, or by a sidecar that died before it could note it
            end = base + size
            if size > limit_bytes:
                end = base = base + _cut(path, limit_bytes // 2)
            ends.append(end)
            bases.append(base)
        self.now.times.note(tuple(ends), tuple(bases))

    def tail(self) -> list[str]:
        """The last lines of stderr, or of stdout if stderr is empty; [] if there are none."""
        for path in (self.err, self.out):
            content = _last(path, TAIL_BYTES)
            text = self.hide(content.decode("utf-8", "replace"))
            if len(content) == TAIL_BYTES:
                text = text[self.hide.longest :]  # it may begin in the middle of a key
            if lines := [line.rstrip() for line in text.splitlines() if line.strip()]:
                return lines[-TAIL_LINES:]
        return []


@contextlib.contextmanager
def left_alone(files: LogFiles, how: int = fcntl.LOCK_SH) -> Iterator[None]:
    """While nobody cuts the files; with LOCK_EX, nobody else opens them to read either. Raises OSError."""
    try:
        descriptor = os.open(files.out, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def forget(folder: Path, models: Iterable[str], before: float) -> set[str]:
    """Delete the logs of all other models in which nothing was written since a moment (unix time); their stems.

    Raises OSError.
    """
    known = {ServerLog(folder, model).stem for model in models}
    files: dict[str, list[Path]] = {}
    for path in (*folder.glob("*"), *(folder / PREVIOUS).glob("*")):
        found = _FILE.fullmatch(path.name)
        if found is not None and found[1] not in known:
            files.setdefault(found[1], []).append(path)
    old = {stem for stem, paths in files.items() if all(path.stat().st_mtime < before for path in paths)}
    for path in (path for stem in old for path in files[stem]):
        path.unlink(missing_ok=True)
    return old


def older(path: Path) -> Path:
    """Where what is cut from a file goes."""
    return path.with_name(path.name + ".1")


def _same(link: Path, path: Path) -> bool:
    try:
        return link.samefile(path)
    except OSError:  # there is none, or it is not ours to look into
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _cut(path: Path, keep: int) -> int:
    """Move the last part of a file to `*.log.1`, and empty it; how long it was.

    What is written between the last look and the cut is lost, which is why we look again; of a server that writes
    faster than we copy, more is. On a full disk all is: it may well be this log that fills it.
    """
    size = _size(path)
    try:
        with path.open("rb") as source, older(path).open("wb") as copy:
            source.seek(max(0, size - keep))
            for _ in range(_ROUNDS):
                if not 0 < os.fstat(source.fileno()).st_size - source.tell() <= keep:
                    break
                _copy(source, copy)
            size = source.tell()
    except OSError:
        older(path).unlink(missing_ok=True)
        os.truncate(path, 0)
        raise
    os.truncate(path, 0)
    return size


def _copy(source: BinaryIO, copy: BinaryIO) -> None:
    """What there is now, and not what comes meanwhile, or it might never end."""
    left = os.fstat(source.fileno()).st_size - source.tell()
    copied = 0
    while copied < left and (block := source.read(min(_BLOCK, left - copied))):
        copy.write(block)
        copied += len(block)


def _last(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - count))
            return file.read(count)
    except FileNotFoundError:
        return b""
