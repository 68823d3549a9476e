"""Time, handed to whoever needs it, so that a simulation can hand out its own."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec


class Clock(msgspec.Struct, frozen=True):
    """monotonic: seconds that never jump, for deadlines. unix: seconds since 1970, for people."""

    monotonic: Callable[[], float] = time.monotonic
    unix: Callable[[], float] = time.time
