"""Notices plugins that hold up the event loop, names them with the line, and stops them when it lasts too long.

Whoever runs a plugin's code on the loop marks when it is entered and left; that is all that it costs. A thread looks at
the marks now and then. To stop a plugin it sends the loop's thread a signal, whose handler raises an error in the
plugin's code, in the way in which Ctrl-C does. What keeps even that from running (an extension that holds the
interpreter's lock) is told when it is over.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from time import perf_counter
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

BLOCKED_S = 0.05
STUCK_S = 1.0  # after which it is stopped
LOOK_S = 0.05
_SIGNAL = signal.SIGURG  # ignored by whoever does not handle it, and not used by asyncio


class BlockedError(BaseException):
    """Raised in a plugin's code that blocks the loop. No Exception, so that few plugins catch it by accident."""


class Marker:
    """One plugin's mark. entered: since when its code runs on the loop, 0.0 = it does not. blocked: times too long."""

    __slots__ = ("blocked", "entered", "longest_s", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.entered = 0.0
        self.blocked = 0
        self.longest_s = 0.0

    def enter(self) -> float:
        """The plugin's code begins to run."""
        self.entered = began = perf_counter()
        return began

    def leave(self, began: float) -> float:
        """It has returned to the loop, after so many seconds."""
        self.entered = 0.0
        took_s = perf_counter() - began
        if took_s > BLOCKED_S:
            self._blocked(took_s)
        return took_s

    def stopped(self, took_s: float) -> None:
        """It was stopped after so long."""
        log.error("plugin %s blocked the event loop for %.0f ms, and was stopped", self.name, 1000 * took_s)

    def _blocked(self, took_s: float) -> None:
        self.blocked += 1
        self.longest_s = max(self.longest_s, took_s)
        if self.blocked in (1, 10, 100) or self.blocked % 1000 == 0:
            log.warning(
                "plugin %s blocked the event loop for %.0f ms (%d times so far): nothing else was served meanwhile; "
                "make the method a plain `def` without @inline, so that it runs in a thread",
                self.name,
                1000 * took_s,
                self.blocked,
            )


class Watchdog:
    """Says which plugin holds up the loop while it still does, and stops it. To be started on the main thread."""

    def __init__(self, markers: Callable[[], Iterable[Marker]]) -> None:
        self._markers = markers
        self._told: dict[str, float] = {}  # by name, when the time that was told of began
        self._stuck: tuple[Marker, float] | None = None
        self._ended = threading.Event()
        self._loop_thread = 0
        self._before: Any = None

    def start(self) -> None:
        """Begin to look."""
        self._loop_thread = threading.get_ident()
        self._before = signal.signal(_SIGNAL, self._stop)
        threading.Thread(target=self._look, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._ended.set()
        signal.signal(_SIGNAL, self._before)

    def _look(self) -> None:
        while not self._ended.wait(LOOK_S):
            for marker in list(self._markers()):
                if entered := marker.entered:
                    self._judge(marker, entered, perf_counter() - entered)

    def _judge(self, marker: Marker, entered: float, blocked_s: float) -> None:
        if blocked_s > BLOCKED_S and self._told.get(marker.name) != entered:
            self._told[marker.name] = entered
            self._tell(marker, entered)
        if blocked_s > STUCK_S:
            self._stuck = (marker, entered)
            signal.pthread_kill(self._loop_thread, _SIGNAL)

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        """Runs on the loop's thread, in the midst of whatever that does: in the plugin, if it has not returned yet."""
        stuck, self._stuck = self._stuck, None
        if stuck is None or stuck[0].entered != stuck[1]:
            return
        marker, entered = stuck
        marker.entered = 0.0  # so that it is not raised again, in what comes after the plugin
        marker.stopped(perf_counter() - entered)
        raise BlockedError(f"it blocked the event loop for more than {STUCK_S:g} s")

    def _tell(self, marker: Marker, entered: float) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        where = traceback.extract_stack(frame)[-1] if frame is not None else None
        if marker.entered != entered:
            return  # it has gone on meanwhile: the line would be somebody else's
        place = f" at {where.filename}:{where.lineno} ({where.name})" if where is not None else ""
        log.warning("plugin %s is blocking the event loop%s", marker.name, place)
