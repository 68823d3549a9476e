"""The sidecar's own log: standard logging, structured, in one thread's hands.

Standard logging and not a library on top of it, since plugins and libraries log through it anyway: one way in, one
record, one form for all. Whoever logs pays for a line's formatting and never for its writing.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import msgspec

from sidecar.mechanism.logfloods import Floods
from sidecar.mechanism.logformat import JsonFormatter, TextFormatter, message
from sidecar.mechanism.logstderr import Captured
from sidecar.mechanism.logwriter import Writer

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
CLOSE_S = 2.0
# What others say of each request is for those who ask for it by name.
QUIET = ("httpx", "httpcore", "asyncio", "uvicorn", "watchfiles")

PRINTED = "sidecar.stderr"

log = logging.getLogger("sidecar")


class LogOptions(msgspec.Struct, frozen=True):
    """format: one of FORMATS. level: one of LEVELS. levels: of single loggers, and of those below them."""

    format: str = "text"
    level: str = "info"
    levels: Mapping[str, str] = {}


def hold_standard_streams() -> None:
    """Put /dev/null where stdin, stdout or stderr was closed (`2>&-`), or the log would go into the next file that is
    opened, and what is printed too.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number


def counts() -> LogCounts:
    """What the log of this process has not told so far."""
    ours = [handler for handler in logging.getLogger().handlers if isinstance(handler, QueuedHandler)]
    return LogCounts(sum(one.writer.lost for one in ours), sum(one.floods.suppressed for one in ours))


def levels(text: str) -> LogOptions:
    """Read `info`, or `info,sidecar.plugins=debug,httpx=info`. Raises ValueError."""
    own: dict[str, str] = {}
    level = LogOptions().level
    for part in filter(None, map(str.strip, text.split(","))):
        name, is_pair, value = part.rpartition("=")
        if value.lower() not in LEVELS or (is_pair and not name.strip()):
            raise ValueError(f'"{part}" is neither one of {", ".join(LEVELS)} nor LOGGER=LEVEL')
        if is_pair:
            own[name.strip()] = value.lower()
        else:
            level = value.lower()
    return LogOptions(level=level, levels=own)


class LogCounts(msgspec.Struct, frozen=True):
    """lost: lines that could not be written, or not fast enough. suppressed: events that were too many of one kind."""

    lost: int = 0
    suppressed: int = 0


class QueuedHandler(logging.Handler):
    """Formats where it is called, since what it is handed may change, and leaves the writing to a thread."""

    def __init__(self, descriptor: int, formatter: logging.Formatter, floods: Floods) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.floods = floods
        self.writer = Writer(descriptor, self._lost, self._due)

    def createLock(self) -> None:  # noqa: N802 - logging's name
        """None: a plugin's value that hangs as it is formatted must not hold up others."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Hand over the line, unless it is one too many."""
        try:
            if self.floods.admits(record, message(record)):
                self.writer.put(self._line(record))
        except Exception as error:  # noqa: BLE001 - a line of the log must never be what fails
            told = f"an event of {record.name} cannot be written: {type(error).__name__}"
            self.writer.put(self._line(_record(logging.ERROR, told)))

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode("utf-8", "backslashreplace") + b"\n"

    def _lost(self, count: int) -> bytes:
        record = _record(
            logging.WARNING, f"{count} lines of the log are missing here: it could not be written fast enough"
        )
        record.lost = count
        return self._line(record)

    def _due(self) -> list[bytes]:
        return [self._line(record) for record in self.floods.due(all_of_them=self.writer.closing)]


class Logs:
    """The log of this process, from now until `close`; as `with`, too. Only the program itself makes one."""

    def __init__(self, options: LogOptions, descriptor: int = 2) -> None:
        formatter = JsonFormatter() if options.format == "json" else TextFormatter(coloured=_coloured(descriptor))
        self._handler = QueuedHandler(descriptor, formatter, Floods())
        root = logging.getLogger()
        self._stderr_before = sys.stderr
        self._before = (root.level, list(root.handlers), sys.excepthook, threading.excepthook, sys.unraisablehook)
        root.handlers[:] = [self._handler]
        root.setLevel(options.level.upper())
        single = dict.fromkeys(QUIET, max(logging.WARNING, root.level))
        single |= {name: logging.getLevelNamesMapping()[level.upper()] for name, level in options.levels.items()}
        self._levels_before = {name: logging.getLogger(name).level for name in single}
        _set(single)
        logging.captureWarnings(capture=True)
        self._stderr = Captured(self._printed, descriptor, terminal=os.isatty(descriptor))
        self._is_json = options.format == "json"
        sys.stderr = self._stderr
        sys.excepthook = _uncaught
        threading.excepthook = _uncaught_in_thread
        sys.unraisablehook = _unraisable

    def close(self) -> None:
        """Write what waits, if somebody reads it, and leave logging as it was."""
        logging.captureWarnings(capture=False)
        root = logging.getLogger()
        self._stderr.flush_all()
        sys.stderr = self._stderr_before
        self._handler.writer.close(CLOSE_S)
        level, root.handlers[:], sys.excepthook, threading.excepthook, sys.unraisablehook = self._before
        root.setLevel(level)
        _set(self._levels_before)

    def _printed(self, line: str) -> None:
        """What somebody has printed on stderr: an event of its own, or among lines for people as it is."""
        if not self._is_json:
            self._handler.writer.put(line.encode("utf-8", "backslashreplace") + b"\n")
        elif line.strip():
            logging.getLogger(PRINTED).warning("%s", line)

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _set(levels_of: Mapping[str, int]) -> None:
    for name, level in levels_of.items():
        logging.getLogger(name).setLevel(level)


def _coloured(descriptor: int) -> bool:
    """no-color.org: set and not empty, whatever to."""
    return os.isatty(descriptor) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("sidecar.log", level, "", 0, text, None, None)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    log.critical("the sidecar failed", exc_info=(kind, error, trace))


def _uncaught_in_thread(told: Any) -> None:
    if told.exc_value is not None:
        name = told.thread.name if told.thread is not None else "?"
        log.error("the thread %s failed", name, exc_info=(told.exc_type, told.exc_value, told.exc_traceback))


def _unraisable(told: Any) -> None:
    what = told.err_msg or "an error where nobody could be told"
    log.error("%s: %r", what, type(told.object), exc_info=(told.exc_type, told.exc_value, told.exc_traceback))
