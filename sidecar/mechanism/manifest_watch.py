"""Tells when the manifests, or the plugins beside them, may have changed; what they say now, reading has to find out.

It is about latency alone: a change of which the kernel does not tell (a network file system, a full queue, no watches
left) is found when the caller looks all the same, as it should after every wait that ran out.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError  # documented, in spite of its name

from sidecar.mechanism import source
from sidecar.mechanism.watched import Watched, look

log = logging.getLogger(__name__)

STILL_S = 0.2  # longer than a writer takes between emptying a file and filling it
AT_MOST_S = 2.0
GIT_AT_MOST_S = 30.0
RETRY_S = 5.0

_STEP_MS = 50
_RELOOK_MS = 15_000  # whether the right folders are watched, should the kernel have forgotten to tell


class ManifestFolder:
    """Watches all that `source.read(root)` reads, and the Python files in `plugins/` beside it, which reloads need.

    It follows links: a root, a folder, a file or a ConfigMap's `..data` that is switched is a change, and the root may
    go away and come back. `open` before use, in the loop that waits; `close` at the end.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._changed = asyncio.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._trouble = ""

    def open(self) -> None:
        """Start to watch. The first wait ends as soon as that has begun, since what was before was not seen."""
        loop = asyncio.get_running_loop()
        tell = partial(loop.call_soon_threadsafe, self._changed.set)
        self._thread = threading.Thread(target=self._run, args=(tell,), name="manifest watch", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Stop watching, and wait until the thread has ended."""
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def nudge(self) -> None:
        """End the wait: somebody knows that there is something to see."""
        self._changed.set()

    async def wait(self, timeout_s: float) -> bool:
        """True as soon as something may have changed since the last wait that said so; False after the timeout."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return False
        self._changed.clear()
        return True

    async def settled(self, timeout_s: float) -> bool:
        """Wait for a change, and then for the moment to read it (see `settle`). False after the timeout."""
        return await settle(self.wait, self._is_git_at_work, asyncio.get_running_loop().time, timeout_s)

    async def _is_git_at_work(self) -> bool:
        return await asyncio.to_thread(source.git_at_work, self.root)

    # --- in the thread -------------------------------------------------------------------------------------------

    def _run(self, tell: Callable[[], object]) -> None:
        while not self._stop.is_set():
            try:
                self._watch(look(self.root), tell)
            except FileNotFoundError:  # a folder went away before it was watched
                self._stop.wait(_STEP_MS / 1000)
            except (OSError, UnicodeEncodeError, WatchfilesRustInternalError) as error:
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    log.warning("%s cannot be watched, only looked at now and then: %s", self.root, error)
                self._stop.wait(RETRY_S)

    def _watch(self, watched: Watched, tell: Callable[[], object]) -> None:
        """Tell of changes until there is something else to be watched."""
        with RustNotify(sorted(watched.identities), False, False, _RELOOK_MS, False, False) as notify:
            if look(self.root) != watched:
                return  # it changed before it was watched
            tell()
            while (changes := notify.watch(_STEP_MS, _STEP_MS, _RELOOK_MS, self._stop)) != "stop":
                paths = [path for _, path in changes if watched.concerns(path)] if isinstance(changes, set) else []
                if paths:
                    tell()
                if any(map(watched.may_end, paths)):
                    return
                if (paths or changes == "timeout") and look(self.root) != watched:
                    return


def due_at(first: float, last: float) -> float:
    """When to read, after a first and a last change: once all holds still, but also if it never does."""
    return min(last + STILL_S, first + AT_MOST_S)


async def settle(
    wait: Callable[[float], Awaitable[bool]],
    is_git_at_work: Callable[[], Awaitable[bool]],
    clock: Callable[[], float],
    timeout_s: float,
) -> bool:
    """Wait for a change, then until none came for STILL_S, for AT_MOST_S at most. False if there was none.

    A checkout is waited for beyond that: in the middle of it, manifests are missing that are not meant to be. A lock
    that is there after GIT_AT_MOST_S was probably left by a git that was killed: the reader has to judge that.
    """
    if not await wait(timeout_s):
        return False
    first = last = clock()
    while (left_s := due_at(first, last) - clock()) > 0:
        if await wait(left_s):
            last = clock()
    while clock() < first + GIT_AT_MOST_S and await is_git_at_work():
        await wait(STILL_S)
    return True
