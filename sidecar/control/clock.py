"""Time, handed to whoever needs it, so that a simulation can hand out its own."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec


class Clock(msgspec.Struct, frozen=True):
    """monotonic: seconds that never jump, for deadlines. unix: seconds since 1970, for people."""

    monotonic: Callable[[], float] = time.monotonic
    unix: Callable[[], float] = time.time


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """How often the loops look by themselves, in seconds: what wakes them makes them faster, never more correct.

    resync_s: the reconciler. externals_s: the servers that somebody else runs. logs_s: the size of servers' logs.
    saves_s: what was measured goes to disk. loads_s: how far servers that load have come.
    residence_s: stats plugins are told which servers hold memory. forget_s: logs of models that are long gone.
    """

    resync_s: float = 5.0
    externals_s: float = 5.0
    logs_s: float = 2.0
    saves_s: float = 30.0
    loads_s: float = 0.5
    residence_s: float = 10.0
    forget_s: float = 3600.0
