"""The manifest directory as a stream of revisions: when to look, and what has changed and held still since."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path

from sidecar.core.manifest import Declaration
from sidecar.mechanism import loader, source
from sidecar.mechanism.loader import Loaded

LOOK_S = 0.5


class Manifests:
    """What is declared below a folder. in_force: the signature of the revision that was read already."""

    def __init__(self, root: Path, environment: Mapping[str, str], in_force: source.Signature) -> None:
        self._root = root
        self._environment = environment
        self._in_force: source.Signature | None = in_force
        self._seen: source.Signature | None = None  # at the last look

    async def changed(self, look_now: asyncio.Event) -> None:
        """Wait until it is worth looking: for a moment, or until somebody knows better."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await look_now.wait()

    async def read(self, before: Declaration) -> Loaded | None:
        """The next revision, if there is one and it has held still since the last look. Raises SourceError."""
        try:
            signature = await asyncio.to_thread(source.signature, self._root)
            held_still, self._seen = signature == self._seen, signature
            if not held_still or signature == self._in_force:
                return None
            snapshot = await asyncio.to_thread(source.read, self._root)
        except source.SourceError:
            self._in_force = None  # when it can be read again, it is a new revision, even if it is the same
            raise
        loaded = await asyncio.to_thread(loader.load, snapshot, self._environment, before)
        self._in_force = snapshot.signature
        return loaded
