"""A repository as commits to be had: fetched, trusted, checked out, and cleared away when nobody needs them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from pathlib import Path

from sidecar.control.candidates import Candidate
from sidecar.core.sourcing import GitDeclaration
from sidecar.mechanism.checkouts import Checkouts, UnfitError
from sidecar.mechanism.clone import Clone, UnsignedError
from sidecar.mechanism.git import Git, GitError

log = logging.getLogger(__name__)

MOST_BROKEN = 3  # fetches in a row that fail though the server answers, after which the clone is made anew


class Repository:
    """The clone and the checkouts in a folder of their own. Everything raises GitError or OSError.

    reached: whether the server has answered the last time that it was asked.
    """

    def __init__(self, declared: GitDeclaration, folder: Path, git: Git) -> None:
        self.reached = False
        self.clone = Clone(folder / "repo.git", declared, git)
        self.checkouts = Checkouts(folder, self.clone.folder, declared, git)
        self._declared = declared
        self._git = git
        self._pointed_to = ""  # by the ref when it was fetched last: a commit, or a tag of one
        self._broken = 0
        self._standing: frozenset[str] = frozenset()

    async def open(self) -> str:
        """Make ready. Returns the commit that was in force when the sidecar ended, "" if there is none.

        Its checkout is made anew if somebody, or a power cut, has changed it and the clone still has the commit.
        """
        await self._git.version()
        await asyncio.to_thread(self.checkouts.open)
        await self.clone.open()
        commit = await asyncio.to_thread(lambda: self.checkouts.commit)
        with contextlib.suppress(GitError):
            if commit and await self.clone.has(commit) and not await self.checkouts.whole(commit):
                log.warning("the checkout of %s is not what git has of it, and is made anew", commit[:12])
                await self.checkouts.check_out(commit)
        return commit

    async def head(self, known: str) -> str:
        """The commit that the ref is now, fetched. known: what it was the last time."""
        self.reached = False
        head = await self.clone.head()
        self.reached = not self._declared.is_commit
        if head.id == self._pointed_to and known and await self.clone.has(known):
            return known
        if self._declared.is_commit and await self.clone.has(head.id):
            return head.id
        commit = await self.clone.fetch(head)
        self._pointed_to = head.id
        return commit

    async def prepare(self, commit: str, trigger: str, *, follows: bool) -> Candidate:
        """Check a commit out, if it is to be trusted. follows: it should come after the one in force."""
        signed_by = unfit = ""
        try:
            if self._declared.verify == "signed":
                signed_by = await self.clone.signer(commit)
            await self.checkouts.check_out(commit)
        except (UnsignedError, UnfitError) as error:
            unfit = str(error)
        before = self.checkouts.commit
        return Candidate(
            commit=await self.clone.describe(commit),
            trigger=trigger,
            signed_by=signed_by,
            rewritten=follows and bool(before) and not await self.clone.descends(commit, before),
            unfit=unfit,
        )

    async def trusts(self, commit: str) -> bool:
        """Whether it is signed as it has to be, by whom is trusted today."""
        if self._declared.verify == "signed":
            try:
                await self.clone.signer(commit)
            except GitError as error:
                log.warning("commit %s, which is in force: %s", commit[:12], error)
                return False
        return True

    async def tidy(self, standing: frozenset[str], remembered: Iterable[str]) -> None:
        """Leave the checkouts of `standing`, and in the clone also the commits that are remembered."""
        if standing != self._standing:
            await self.clone.keep(standing.union(remembered))
            await asyncio.to_thread(self.checkouts.prune, standing)
            self._standing = standing

    def answered(self) -> None:
        """All went well."""
        self._broken = 0

    async def failed(self) -> None:
        """Something did not. If the server answers, and goes on doing so, it may be the clone: it is made anew."""
        self._broken += self.reached
        if self._broken < MOST_BROKEN:
            return
        self._broken, self._pointed_to, self._standing = 0, "", frozenset()
        log.warning("the clone may be damaged, and is made anew")
        try:
            await self.clone.make_anew()
        except (GitError, OSError) as error:
            log.error("it cannot be made: %s", error)
