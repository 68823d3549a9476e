"""Keeps the memory of a program that runs for months as small as what is in it.

Python's collector: what is there when all has started stays, and requests leave no reference cycles, so that to look
for some at every few thousand objects costs more than it saves. Reloads leave some; they go once in a minute. What
plugins leave may hold whole bodies, and the collector counts objects, not bytes: it goes as soon as it has grown large.

glibc's heap: by default it takes ever larger blocks from its heap, which shrinks only from its end: one small object
there, and all that was below it once stays. So large blocks go back to the system one by one, there are few heaps, and
once in a minute what is free within them goes back, too. Other C libraries have other ways.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import math
import os

from sidecar.mechanism import procfs

EVERY_S = 60.0
LOOK_S = 1.0
GROWN_MB = 32  # and half of what there was: with so much more, it is worth a look what of it is in use
MOST_SHARE = 0.01  # of the time, for looking
THRESHOLD = 50_000  # objects more than have gone, before new ones are looked at
LARGE_BYTES = 512 * 1024  # blocks of memory that go back to the system one by one
HEAPS = 2  # of the threads together; they wait for the interpreter's lock anyway

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # mallopt(3)

log = logging.getLogger(__name__)


def prepare() -> None:
    """Before there are threads."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for parameter, value in ((_M_MMAP_THRESHOLD, LARGE_BYTES), (_M_ARENA_MAX, HEAPS)):
        if not mallopt(parameter, value):
            log.warning("memory that was used once may not be given back: mallopt(%d, %d) refused", parameter, value)


def give_back() -> bool:
    """Give what is free to the system, which takes some milliseconds; whether there is a way to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    return trim is not None


async def keep_small() -> None:
    """From when all has started, for ever."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(THRESHOLD, 50, 50)
    clock = asyncio.get_running_loop().time
    took_s = 0.0
    while True:
        await asyncio.sleep(took_s / MOST_SHARE)  # with a million objects in use, it takes a second
        await _due()
        began = clock()
        gc.collect()
        await asyncio.to_thread(give_back)
        took_s = clock() - began


async def _due() -> None:
    """Until it is time: after a while, or when there is much more in memory than there was."""
    pid, least_mb = os.getpid(), math.inf
    for _ in range(round(EVERY_S / LOOK_S)):
        now_mb = procfs.private_mb(pid)
        if now_mb > least_mb * 1.5 + GROWN_MB:
            return
        least_mb = min(least_mb, now_mb)
        await asyncio.sleep(LOOK_S)
