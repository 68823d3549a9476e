"""Stands for `sys.stderr`: what is printed there becomes lines of the log, in their order, and holds nobody up.

A plugin that prints, a library that warns: on a pipe that nobody reads, `print` would wait for ever.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable

LINE_CHARS = 16_000


class Captured(io.TextIOBase):
    """Hands over whole lines, without their ends; what has no end yet at `flush_all`, or when it gets too long."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, line: Callable[[str], None], descriptor: int, *, terminal: bool) -> None:
        self._line = line
        self._descriptor = descriptor
        self._terminal = terminal
        self._begun = ""
        self._turn = threading.RLock()

    def write(self, text: str, /) -> int:
        """Never waits, never raises OSError."""
        with self._turn:
            *lines, self._begun = (self._begun + text).split("\n")
            if len(self._begun) > LINE_CHARS:
                lines, self._begun = [*lines, self._begun], ""
        for line in lines:
            self._line(line)
        return len(text)

    def flush_all(self) -> None:
        """Nothing comes any more."""
        with self._turn:
            rest, self._begun = self._begun, ""
        if rest:
            self._line(rest)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._terminal

    def fileno(self) -> int:
        return self._descriptor
