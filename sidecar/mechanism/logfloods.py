"""Keeps what repeats from filling the log: a flood of bad requests is told by a few lines and a count.

What belongs to a request is known by the place in the code that logs it and by its model, since each request is
different; of all else, only warnings and errors with the very same text are taken for the same.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from sidecar.mechanism.logformat import PLUGINS, shortened

BURST = 20
PERIOD_S = 60.0
MOST = 1000  # different ones that are remembered
SHOWN_CHARS = 200

Key = tuple[str, int, str]


class _Seen:
    """One that was logged lately. left_out: how often it was, and was not let through."""

    __slots__ = ("began", "left_out", "level", "logger", "shown", "times")

    def __init__(self, record: logging.LogRecord, text: str, now: float) -> None:
        self.began = now
        self.times = 0
        self.left_out = 0
        self.logger, self.level = record.name, record.levelno
        self.shown = shortened(text, SHOWN_CHARS)


class Floods:
    """Says which events are logged. May be asked by several threads. suppressed: how many were not, in all."""

    def __init__(self, burst: int = BURST, period_s: float = PERIOD_S, clock: Callable[[], float] = time.monotonic):
        self.suppressed = 0
        self._burst = burst
        self._period_s = period_s
        self._clock = clock
        self._seen: OrderedDict[Key, _Seen] = OrderedDict()  # by when they began
        self._over: list[_Seen] = []  # whose period has ended, and who have left something out
        self._lock = threading.RLock()  # the garbage collector may run in here, and what it finalises may log

    def admits(self, record: logging.LogRecord, text: str) -> bool:
        """Whether to log it. text: its message."""
        key = _key(record, text)
        if key is None:
            return True
        now = self._clock()
        with self._lock:
            self._end(now)
            seen = self._seen.get(key)
            if seen is None:
                seen = self._seen[key] = _Seen(record, text, now)
            seen.times += 1
            if seen.times <= self._burst:
                return True
            seen.left_out += 1
            self.suppressed += 1
            return False

    def due(self, *, all_of_them: bool = False) -> list[logging.LogRecord]:
        """The counts that are to be told now: once for each, when its period is over."""
        with self._lock:
            self._end(self._clock() if not all_of_them else float("inf"))
            over, self._over = self._over, []
        return [self._told(seen) for seen in over]

    def _end(self, now: float) -> None:
        while self._seen:
            key, first = next(iter(self._seen.items()))
            if len(self._seen) <= MOST and now - first.began < self._period_s:
                return
            del self._seen[key]
            if first.left_out:
                self._over.append(first)

    def _told(self, seen: _Seen) -> logging.LogRecord:
        text = "%d more like this within a minute were left out: %s"
        record = logging.LogRecord(seen.logger, seen.level, "", 0, text, (seen.left_out, seen.shown), None)
        record.suppressed = seen.left_out
        return record


def _key(record: logging.LogRecord, text: str) -> Key | None:
    """What makes two the same; None for what is never left out."""
    if record.levelno <= logging.DEBUG:
        return None  # whoever turns that on wants to see all of it
    if getattr(record, "per_request", False) or (record.name.startswith(PLUGINS) and record.levelno > logging.INFO):
        return (record.pathname, record.lineno, str(getattr(record, "model", "")))
    if record.levelno > logging.INFO:
        return (f"{record.name}: {text}", record.levelno, "")
    return None
