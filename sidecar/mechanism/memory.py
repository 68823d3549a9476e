"""Keeps the memory of a program that runs for months as small as what is in it.

Python's collector: what is there when all has started stays, and requests leave no reference cycles, so that to look
for some at every few thousand objects costs more than it saves. Reloads leave some; they go once in a minute.

glibc's heap: by default it takes ever larger blocks from its heap, which shrinks only from its end: one small object
there, and all that was below it once stays. So large blocks go back to the system one by one, there are few heaps, and
once in a minute what is free within them goes back, too. Other C libraries have other ways.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging

EVERY_S = 60.0
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
    while True:
        await asyncio.sleep(EVERY_S)
        gc.collect()
        await asyncio.to_thread(give_back)
