"""Notices plugins that hold up the event loop, names them with the line, and stops them when it lasts too long.

Whoever runs a plugin's code on the loop marks when it is entered and left; that is all that it costs. A thread looks at
the marks now and then, and whether the loop still turns: if it does not, and nothing is marked, it looks whose file is
being run, since plugins have tasks of their own. To stop a plugin it sends the loop's thread a signal, whose handler
raises an error in the plugin's code, in the way in which Ctrl-C does. What keeps even that from running (an extension
that holds the interpreter's lock) is told when it is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
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
STUCK_S = 1.0  # after which it is told to stop, and again if it does not
LOOK_S = 0.05
_SIGNAL = signal.SIGURG  # ignored by whoever does not handle it, and not used by asyncio
_OURS = os.path.dirname(__file__)  # noqa: PTH120 - compared with the names of files as Python has them
_WHY = f"it blocked the event loop for more than {STUCK_S:g} s"


class BlockedError(BaseException):
    """Raised in a plugin's code that blocks the loop. No Exception, so that few plugins catch it by accident."""


class Marker:
    """One plugin's mark. entered: since when its code runs on the loop, 0.0 = it does not. blocked: times too long.

    place: the file or folder of its code, "" if that is not known. told: it was told to stop, and has not yet.
    """

    __slots__ = ("blocked", "entered", "longest_s", "name", "place", "told")

    def __init__(self, name: str, place: str = "") -> None:
        self.name = name
        self.place = place
        self.entered = 0.0
        self.blocked = 0
        self.longest_s = 0.0
        self.told = False

    def enter(self) -> float:
        """The plugin's code begins to run."""
        self.entered = began = perf_counter()
        return began

    def leave(self, began: float) -> float:
        """It has returned to the loop, after so many seconds."""
        self.entered = 0.0
        took_s = perf_counter() - began
        if took_s > BLOCKED_S:
            self.is_over(took_s)
        return took_s

    def stop(self, blocked_s: float) -> None:
        """It is told to stop, after so long."""
        self.told = True
        log.error(
            "plugin %s blocks the event loop for %.0f ms by now, and was told to stop", self.name, 1e3 * blocked_s
        )

    def is_over(self, took_s: float) -> None:
        """It has held up the loop for so long."""
        self.blocked += 1
        self.longest_s = max(self.longest_s, took_s)
        if self.told:
            self.told = False
            log.error("plugin %s blocked the event loop for %.0f ms, and was stopped", self.name, 1000 * took_s)
        elif self.blocked in (1, 10, 100) or self.blocked % 1000 == 0:
            log.warning(
                "plugin %s blocked the event loop for %.0f ms (%d times so far): nothing else was served meanwhile; "
                "make the method a plain `def` without @inline, or call asyncio.to_thread, so that it runs in a thread",
                self.name,
                1000 * took_s,
                self.blocked,
            )


class Watchdog:
    """Says which plugin holds up the loop while it still does, and stops it.

    To be started on the main thread, by what runs on the loop. markers: of all plugins that may run; called from a
    thread.
    """

    def __init__(self, markers: Callable[[], Iterable[Marker]]) -> None:
        self._markers = markers
        self._cases: dict[Marker, _Case] = {}
        self._to_stop: _Case | None = None
        self._asked = 0.0  # since when the loop owes us a sign of life, 0.0 = it does not
        self._ended = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._before: Any = None

    def start(self) -> None:
        """Begin to look."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._before = signal.signal(_SIGNAL, self._stop)
        threading.Thread(target=self._look, args=(self._loop,), name="watchdog", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._ended.set()
        signal.signal(_SIGNAL, self._before)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._ended.wait(LOOK_S):
            late = self._late(loop)
            markers = list(self._markers())
            found = [self._case(marker, entered, 0.0) for marker in markers if (entered := marker.entered)]
            if late and not found and (marker := _of(sys._current_frames().get(self._loop_thread), markers)):
                found = [self._case(marker, perf_counter(), late)]
            before, self._cases = self._cases, {case.marker: case for case in found}
            for case in before.values():
                if case.unmarked and case.told and self._cases.get(case.marker) is not case:
                    case.marker.is_over(perf_counter() - case.since)
            for case in found:
                self._judge(case)

    def _late(self, loop: asyncio.AbstractEventLoop) -> float:
        """Since when the loop has not turned, if that is too long; else 0.0."""
        asked = self._asked
        if not asked:
            self._asked = perf_counter()
            with contextlib.suppress(RuntimeError):  # the loop is closed: there is nothing more to look at
                loop.call_soon_threadsafe(self._turned)
        return asked if asked and perf_counter() - asked > BLOCKED_S else 0.0

    def _turned(self) -> None:
        self._asked = 0.0

    def _case(self, marker: Marker, since: float, unmarked: float) -> _Case:
        before = self._cases.get(marker)
        if before is not None and (before.unmarked == unmarked if unmarked else before.since == since):
            return before
        return _Case(marker, since, unmarked)

    def _judge(self, case: _Case) -> None:
        now = perf_counter()
        if now - case.since > BLOCKED_S and not case.told:
            case.told = True
            self._tell(case)
        if now - max(case.since, case.asked_at) > STUCK_S:
            case.asked_at = now
            self._to_stop = case
            signal.pthread_kill(self._loop_thread, _SIGNAL)

    def _is_over(self, case: _Case) -> bool:
        return self._asked != case.unmarked if case.unmarked else case.marker.entered != case.since

    def _stop(self, _signal: int, frame: FrameType | None) -> None:
        """Runs on the loop's thread, in the midst of whatever that does: in the plugin, if it has not returned yet."""
        case, self._to_stop = self._to_stop, None
        if case is None or self._is_over(case) or frame is None or frame.f_code is Marker.leave.__code__:
            return
        if case.unmarked and _of(frame, (case.marker,)) is None:
            return
        case.marker.stop(perf_counter() - case.since)
        if case.stops:
            self._insist(frame, case)
        case.stops += 1
        raise BlockedError(_WHY)

    def _insist(self, frame: FrameType | None, case: _Case) -> None:
        """It has caught the error that is about to be raised before: have it raised again where it is handled."""

        def again(_frame: FrameType, event: str, _arg: object) -> Any:
            if event == "line" and not self._is_over(case):
                raise BlockedError(_WHY)
            return again

        def untraced(_frame: FrameType, _event: str, _arg: object) -> None:
            if self._is_over(case):
                sys.settrace(None)

        while frame is not None and not _is_in(frame.f_code.co_filename, _OURS):
            frame.f_trace = again
            frame = frame.f_back
        sys.settrace(untraced)  # what is raised in a trace function ends the tracing

    def _tell(self, case: _Case) -> None:
        frame = sys._current_frames().get(self._loop_thread)
        where = traceback.extract_stack(frame)[-1] if frame is not None else None
        if self._is_over(case):
            return  # it has gone on meanwhile: the line would be somebody else's
        place = f" at {where.filename}:{where.lineno} ({where.name})" if where is not None else ""
        log.warning("plugin %s is blocking the event loop%s", case.marker.name, place)


class _Case:
    """A plugin that runs. unmarked: since when the loop is late, if only its file gives it away; 0.0 = it is marked.

    told: the log has it. asked_at: when it was last told to stop. stops: times that the error was raised in it.
    """

    def __init__(self, marker: Marker, since: float, unmarked: float) -> None:
        self.marker = marker
        self.since = since
        self.unmarked = unmarked
        self.told = False
        self.asked_at = 0.0
        self.stops = 0


def _of(frame: FrameType | None, markers: Iterable[Marker]) -> Marker | None:
    """Whose code is being run there."""
    while frame is not None:
        for marker in markers:
            if marker.place and _is_in(frame.f_code.co_filename, marker.place):
                return marker
        frame = frame.f_back
    return None


def _is_in(file: str, place: str) -> bool:
    return file == place or file.startswith(place + os.sep)
