"""How long a server's two files were when: all that can be known of the age of lines that somebody else writes.

One line for each look at which they had grown: `UNIX_MS OUT ERR OUT_BASE ERR_BASE`. OUT and ERR are the bytes of the
run so far; the bases are how many of them came before the files' first byte, since files are cut as they grow. A line
that makes no sense (a full disk, a crash) is passed over. Long files are thinned: what is long ago is known less well.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

Pair = tuple[int, ...]  # of stdout, of stderr
MOST_BYTES = 256 * 1024
_LINE = re.compile(rb"(\d{1,15}) (\d{1,18}) (\d{1,18}) (\d{1,18}) (\d{1,18})")


class Look(msgspec.Struct, frozen=True):
    """One line. at_ms: unix time."""

    at_ms: int
    ends: Pair = (0, 0)
    bases: Pair = (0, 0)


NEVER = Look(0)


class _Known(msgspec.Struct, frozen=True):
    """What was read of the file: up to which byte, and the last line, by which the file is known again."""

    looks: list[Look] = []
    end: int = 0
    last: bytes = b""


_NOTHING = _Known()


class Times:
    """The looks at the files of one run. last: the latest, by whoever it was."""

    def __init__(self, path: Path, unix: Callable[[], float] = time.time) -> None:
        self.path = path
        self._unix = unix
        self._last: Look | None = None
        self._size = 0
        self._known = _NOTHING

    def begin(self) -> None:
        """A new run, of which nothing is written yet. Raises OSError."""
        self.path.unlink(missing_ok=True)
        self._last = None
        self._append(Look(self._now()))

    @property
    def last(self) -> Look:
        """Raises OSError."""
        if self._last is None:
            looks = self.read()
            self._last = looks[-1] if looks else NEVER
            self._size = self.path.stat().st_size if looks else 0
        return self._last

    def note(self, ends: Pair, bases: Pair) -> None:
        """How long they are now. Raises OSError."""
        before = self.last
        if (ends, bases) != (before.ends, before.bases) or before is NEVER:
            self._append(Look(max(self._now(), before.at_ms), ends, bases))
            if self._size > MOST_BYTES:
                self._thin()

    def read(self) -> list[Look]:
        """All, oldest first; [] if there is no such run. Raises OSError.

        Those who follow ask twice a second, so that only what has been added is read. Threads may ask at once.
        """
        known = self._known
        try:
            with self.path.open("rb") as file:
                file.seek(known.end - len(known.last))
                if file.read(len(known.last)) != known.last:
                    known = _NOTHING
                    file.seek(0)
                content = file.read()
        except FileNotFoundError:
            return []
        *lines, rest = content.split(b"\n")
        if lines:
            looks = known.looks + [look for line in lines if (look := _look(line)) is not None]
            known = self._known = _Known(looks, known.end + len(content) - len(rest), lines[-1] + b"\n")
        return known.looks

    def _now(self) -> int:
        return int(self._unix() * 1000)

    def _append(self, look: Look) -> None:
        content = _line(look)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, content) < len(content):
                os.ftruncate(descriptor, size)  # half a line, glued to the next, could be taken for another
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        finally:
            os.close(descriptor)
        self._last = look
        self._size += len(content)

    def _thin(self) -> None:
        """Leave out every other look of the older half, but never the first, which names the run."""
        looks = self.read()
        half = len(looks) // 2
        kept = looks[:1] + looks[1:half:2] + looks[half:]
        draft = self.path.with_name(self.path.name + ".draft")
        draft.write_bytes(b"".join(map(_line, kept)))
        draft.replace(self.path)
        self._size = self.path.stat().st_size


def _line(look: Look) -> bytes:
    return b"%d %d %d %d %d\n" % (look.at_ms, *look.ends, *look.bases)


def _look(line: bytes) -> Look | None:
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    at_ms, out, err, out_base, err_base = map(int, found.groups())
    return Look(at_ms, (out, err), (out_base, err_base))
