"""The manifest directory as a stream of revisions: when to look, and what has changed and held still since."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from sidecar.core.manifest import Declaration
from sidecar.core.nodes import EVERY_NODE, Node
from sidecar.mechanism import loader, source, sources
from sidecar.mechanism.loader import Loaded
from sidecar.mechanism.manifest_watch import ManifestFolder
from sidecar.mechanism.sources import Library

_Signature = tuple[source.Signature, sources.Signature]

LOOK_S = 2.0  # between looks where the kernel tells nothing: a lost event costs so much time


class Manifests:
    """What is declared below a folder, with the plugins beside it.

    in_force: the revision that was read already. library: the code that was read with it.
    """

    def __init__(
        self,
        root: Path,
        environment: Mapping[str, str],
        in_force: source.Snapshot,
        library: Library | None = None,
        node: Node = EVERY_NODE,
    ) -> None:
        self._root = root
        self._node = node
        self._plugins = root / source.PLUGIN_FOLDER
        self._library = Library() if library is None else library
        self._code = sources.signature(self._plugins) if library is None else library.signature
        self._environment = environment
        self._in_force: source.Snapshot | None = in_force
        self._folder = ManifestFolder(root)
        self._open = False
        self._settled = False  # a change was told, and nothing has moved since
        self._seen: _Signature | None = None  # at the last look that nobody asked for

    async def changed(self, look_now: asyncio.Event) -> None:
        """Wait until it is worth looking: for a change, or until somebody knows better, or for a while."""
        if not self._open:
            self._folder.open()
            self._open = True
        settled = asyncio.create_task(self._folder.settled(LOOK_S))
        asked = asyncio.create_task(look_now.wait())
        try:
            await asyncio.wait((settled, asked), return_when=asyncio.FIRST_COMPLETED)
            self._settled = asked.done() or settled.result()
        finally:
            for task in (settled, asked):
                task.cancel()
            await asyncio.gather(settled, asked, return_exceptions=True)

    async def read(self, before: Declaration, *, anew: bool = False) -> Loaded | None:
        """The next revision, if there is one and it holds still. Raises SourceError.

        anew: somebody asks for it, whether or not anything has changed; then installed plugins are looked at too.
        """
        try:
            snapshot = await self._next(anew)
        except source.SourceError:
            self._in_force = None  # when it can be read again, it is a new revision, even if it is the same
            raise
        if snapshot is None:
            return None
        if anew:
            await asyncio.to_thread(self._library.installed.reread)
        loaded = await asyncio.to_thread(loader.load, snapshot, self._environment, before, self._library, self._node)
        self._in_force, self._code = snapshot, self._library.signature
        return loaded

    async def close(self) -> None:
        """Watch no more."""
        if self._open:
            await self._folder.close()

    async def _next(self, anew: bool) -> source.Snapshot | None:
        if not anew and not self._settled and not await self._holds_still():
            return None
        if await asyncio.to_thread(source.git_at_work, self._root):
            message = f"{self._root}: git is at work there: .git/index.lock exists; remove it if no git runs any more"
            raise source.SourceError(message)
        snapshot = await asyncio.to_thread(source.read, self._root)
        if anew or self._in_force is None or not _same(snapshot, self._in_force):
            return snapshot
        return snapshot if await asyncio.to_thread(sources.signature, self._plugins) != self._code else None

    async def _holds_still(self) -> bool:
        """Whether there is a change that was there already at the last look: nobody has told when it ended."""
        signature = await asyncio.to_thread(_signature, self._root, self._plugins)
        held_still, self._seen = signature == self._seen, signature
        return held_still and (self._in_force is None or signature != (self._in_force.signature, self._code))


def _signature(root: Path, plugins: Path) -> _Signature:
    return source.signature(root), sources.signature(plugins)


def _same(one: source.Snapshot, other: source.Snapshot) -> bool:
    return (one.revision, one.unreadable) == (other.revision, other.unreadable)
