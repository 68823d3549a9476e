"""A git repository as the source of revisions: when it is asked, what is done with a commit, and what is remembered.

A commit is fetched, checked out beside the one in force, checked with all its plugins, and only then put in force, by
one switch of a link. What is wrong with one is told and remembered; the commit before goes on serving.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, NoReturn

import msgspec

from sidecar.control.asking import Schedule
from sidecar.control.candidates import Candidate, Check, Judge
from sidecar.control.clock import Clock
from sidecar.control.events import Events
from sidecar.control.repository import Repository
from sidecar.core.manifest import Declaration, Problem
from sidecar.core.sourcing import (
    REASONS,
    REJECTED_S,
    Attempt,
    Commit,
    GitDeclaration,
    Memory,
    SourceReport,
    shown,
)
from sidecar.mechanism.git import Git, GitError
from sidecar.mechanism.loader import Loaded
from sidecar.mechanism.source import RejectedError, SourceError
from sidecar.mechanism.sourcememory import Notes
from sidecar.mechanism.sources import Library

log = logging.getLogger(__name__)

AGAIN = frozenset({"command", "webhook", "unpin", "resume", "reload"})  # has a rejected commit looked at again


class SuspendedError(Exception):
    """Somebody has said that nothing is to change for now."""


class GitSource:
    """A Source (control.machine). `first` before anything else, `open` when the controller is, `close` at the end.

    folder: of its own, where clone, checkouts and history are. check: the loader, for this machine.
    failures: in a row. trouble: why the repository could not be had the last time, or "".
    """

    def __init__(
        self, declared: GitDeclaration, folder: Path, git: Git, check: Check, clock: Clock | None = None
    ) -> None:
        self.declared = declared
        self.library = Library()
        self.failures = 0
        self.trouble = ""
        self._repository = Repository(declared, folder, git)
        self._checkouts = self._repository.checkouts
        self._judge = Judge(declared, self._checkouts, check, self.library)
        self._notes = Notes(folder)
        self._clock = clock or Clock()
        self._schedule = Schedule(declared.interval, self._clock)
        self._answered_at: float | None = None
        self._candidate: Candidate | None = None  # waits to be read
        self._reread = False  # what is in force is to be read again
        self._attempted = ""
        self._rejected: Candidate | None = None  # the attempted one, if so
        self._reasons: tuple[str, ...] = ()
        self._decided_at = 0.0
        self._asking = asyncio.Lock()  # always before the other
        self._working = asyncio.Lock()  # with clone and checkouts; not held while the server is asked what the ref is
        self._events: Events | None = None
        self._refresh: Callable[[], Awaitable[object]] | None = None
        self._loop: asyncio.Task[None] | None = None

    @property
    def memory(self) -> Memory:
        """The history, and whether it is pinned or suspended."""
        return self._notes.memory

    @property
    def root(self) -> Path:
        """The manifests in force: always the same path."""
        return self._checkouts.root

    # --- the beginning and the end ------------------------------------------------------------------------------

    async def first(self) -> None:
        """See that there is a checkout to begin with: the last one, or else the repository must give one.

        Raises SourceError, GitError and OSError.
        """
        self._attempted = await self._repository.open()
        await asyncio.to_thread(self._notes.read)
        declared = self.declared
        if (self.memory.git, self.memory.ref) != (declared.git, declared.ref):
            await self._remember(git=declared.git, ref=declared.ref, head="")
        if self._attempted:
            last = self.memory.last("applied")
            unwritten = last is None or last.commit.id != self._attempted  # it was killed before it wrote that down
            if unwritten or not await self._repository.trusts(self._attempted):
                self._attempted = ""  # it serves on, as there is nothing else; but it is decided about anew, and told
            self.nudge("start")
            return
        self._schedule.asked()
        wanted = self.memory.pinned or await self._head()
        candidate = await self._repository.prepare(wanted, "start", follows=False)
        revision, problems = await asyncio.to_thread(self._judge.judge, candidate, None)
        if problems:
            await self._reject(candidate, revision, problems)
        await asyncio.to_thread(self._checkouts.switch, wanted)
        await self._accept(candidate, revision, ())

    def open(self, events: Events, refresh: Callable[[], Awaitable[object]]) -> None:
        """Ask the repository from now on. refresh: has the controller read what there is."""
        self._events = events
        self._refresh = refresh
        self._loop = asyncio.create_task(self._run(), name="git source")

    async def close(self) -> None:
        """Ask no more; a git that runs is killed."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)

    # --- for the controller -------------------------------------------------------------------------------------

    async def changed(self, look_now: asyncio.Event) -> None:
        """Wait until somebody wants all to be read anew: what the repository brings is read as it comes."""
        await look_now.wait()

    async def read(self, before: Declaration, *, anew: bool = False) -> Loaded | None:
        """Decide about the commit that waits to come in force. Raises RejectedError and SourceError."""
        candidate, self._candidate = self._candidate, None
        reread, self._reread = self._reread or anew, False
        if anew:
            self.nudge("reload")
            await asyncio.to_thread(self.library.installed.reread)
        if candidate is None:
            return await asyncio.to_thread(self._judge.load, before) if reread else None
        revision, problems = await asyncio.to_thread(self._judge.judge, candidate, before)
        if problems:
            await self._reject(candidate, revision, problems)
        if self._held_back(candidate):
            return None
        try:
            await asyncio.to_thread(self._checkouts.switch, candidate.commit.id)
        except OSError as error:
            await self._failed(error)
            raise SourceError(f"{self._checkouts.live} cannot be switched: {error}") from error
        loaded = await asyncio.to_thread(self._judge.load, before)
        await self._accept(candidate, loaded.declaration.revision, loaded.problems)
        return loaded

    # --- for operators ------------------------------------------------------------------------------------------

    async def sync(self, trigger: str) -> None:
        """Ask the repository now, and take over what is new and good; `report` tells what came of it.

        Raises SuspendedError.
        """
        async with self._asking:
            self._follow()
            self._schedule.asked()
            try:
                commit = await self._head()
                async with self._working:
                    await self._take(commit, trigger)
            except (GitError, OSError) as error:
                async with self._working:
                    await self._failed(error)
            finally:
                self._schedule.reckon()

    def nudge(self, trigger: str) -> None:
        """Somebody says that there may be something new: look soon, once for all who say so meanwhile."""
        self._schedule.nudge(trigger)

    async def pin(self, name: str) -> Attempt:
        """Put a commit in force and stay there. name: an id or its beginning; "" for the one in force.

        Raises GitError if there is no such commit, and RejectedError if it is not good; then all is as before.
        """
        async with self._working:
            commit = await self._repository.clone.find(name or self._checkouts.commit)
            before = self._attempted, self._rejected, self._reasons
            self._candidate = await self._repository.prepare(commit, "pin", follows=False)
            await self._read_now()
            if self._attempted != commit or self._rejected is not None:
                why = "; ".join(self._reasons) or self.trouble
                self._attempted, self._rejected, self._reasons = before
                self._candidate = self._rejected
                self._reread = self._candidate is None
                await self._read_now()
                raise RejectedError(f"commit {commit[:12]} is not taken: {why}")
            await self._remember(pinned=commit)
            last = self.memory.history[-1]
            self._record("SourcePinned", f"to {_named(last.commit)}")
            await self._tidy()
            return last

    async def unpin(self) -> bool:
        """Follow the ref again. False if nothing was pinned."""
        if not self.memory.pinned:
            return False
        self._record("SourceUnpinned", f"it was pinned to {self.memory.pinned[:12]}")
        await self._remember(pinned="")
        if not self.memory.suspended:
            await self.sync("unpin")
        return True

    async def suspend(self, *, suspended: bool) -> bool:
        """Let nothing change until this is taken back, over restarts, too. False if it was so already."""
        if self.memory.suspended == suspended:
            return False
        await self._remember(suspended=suspended)
        self._record("SourceSuspended" if suspended else "SourceResumed", shown(self.declared, self._checkouts.commit))
        if not suspended:
            await self.sync("resume")
        self._schedule.reckon()
        return True

    def report(self) -> SourceReport:
        """How it stands. Looks at the disk, for one link."""
        declared, memory = self.declared, self.memory
        state, messages = self._state()
        return SourceReport(
            kind="git",
            place=declared.git,
            ref=declared.ref,
            path=declared.path,
            commit=self._checkouts.commit,
            state=state,
            messages=messages,
            head=memory.head,
            attempted=self._attempted,
            pinned=memory.pinned,
            suspended=memory.suspended,
            verify=declared.verify,
            failures=self.failures,
            asked_at=self._schedule.asked_at,
            answered_at=self._answered_at,
            next_at=None if memory.suspended else self._schedule.next_at,
            unsaved=self._notes.problem,
        )

    def _state(self) -> tuple[str, tuple[str, ...]]:
        if self.memory.suspended:
            return "suspended", ()
        if self.trouble:
            return "failing", (self.trouble,)
        if self._rejected is not None:
            return "rejected", self._reasons
        return ("pinned" if self.memory.pinned else "in sync"), self._reasons

    # --- asking -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            trigger = await self._schedule.due(lambda: self.memory.suspended, lambda: self.failures)
            try:
                await self.sync(trigger)
            except SuspendedError:
                continue  # since it was due
            except Exception as error:
                log.exception("the source cannot be followed")
                async with self._working:
                    await self._failed(error)

    async def _head(self) -> str:
        commit = await self._repository.head(self.memory.head)
        self._answered_at = self._clock.unix()
        if commit != self.memory.head:
            await self._remember(head=commit)
        return commit

    def _answered(self) -> None:
        self._repository.answered()
        if self.failures:
            log.info("the source can be had again: %s", self.declared.git)
            self._record("SourceRecovered", f"after {self.failures} failures: {self.trouble}")
        self.failures, self.trouble = 0, ""

    async def _failed(self, error: Exception) -> None:
        """What is in force stays."""
        self.failures += 1
        if str(error) != self.trouble:
            log.warning("the source cannot be had: %s; commit %s stays", error, self._checkouts.commit[:12])
            self._record("SourceFailed", str(error))
        self.trouble = str(error)
        await self._repository.failed()

    # --- deciding -----------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        if self.memory.suspended:
            raise SuspendedError("the source is suspended; resume it first (sidecar source resume)")

    def _held_back(self, candidate: Candidate) -> bool:
        """Whether somebody has been told meanwhile that nothing changes from now on."""
        return self.memory.suspended and candidate.trigger != "pin"

    async def _take(self, commit: str, trigger: str) -> None:
        self._follow()
        failures = self.failures
        await self._offer(self.memory.pinned or commit, trigger)
        await self._tidy()
        if self.failures == failures:  # or what was offered could not be put in force
            self._answered()

    async def _offer(self, commit: str, trigger: str) -> None:
        """Have it decided about, unless it was decided about last."""
        again = self._rejected is not None and (trigger in AGAIN or self._clock.unix() - self._decided_at > REJECTED_S)
        if commit != self._attempted or again:
            follows = trigger != "unpin" and not self.memory.pinned
            self._candidate = await self._repository.prepare(commit, trigger, follows=follows)
            await self._read_now()

    async def _read_now(self) -> None:
        if self._refresh is None:
            raise RuntimeError("the source is not open")
        await self._refresh()

    async def _reject(self, candidate: Candidate, revision: str, problems: tuple[Problem, ...]) -> NoReturn:
        self._rejected = candidate
        await self._decide(candidate, "rejected", revision, problems)
        raise RejectedError(f"commit {_named(candidate.commit)} is rejected", revision, problems)

    async def _accept(self, candidate: Candidate, revision: str, problems: tuple[Problem, ...]) -> None:
        self._rejected = None
        await self._decide(candidate, "applied", revision, problems)
        log.info("commit %s is in force (%s)", _named(candidate.commit), candidate.trigger)
        self._record("CommitApplied", _named(candidate.commit), reason=candidate.trigger, revision=revision)

    async def _decide(
        self,
        candidate: Candidate,
        outcome: Literal["applied", "rejected"],
        revision: str,
        problems: tuple[Problem, ...],
    ) -> None:
        self._attempted = candidate.commit.id
        self._decided_at = self._clock.unix()
        self._reasons = tuple(str(problem) for problem in problems[:REASONS])
        attempt = Attempt(
            commit=candidate.commit,
            at=self._decided_at,
            trigger=candidate.trigger,
            outcome=outcome,
            reasons=self._reasons,
            revision=revision,
            signed_by=candidate.signed_by,
            rewritten=candidate.rewritten,
        )
        await self._notes.keep(self.memory.with_attempt(attempt))

    # --- keeping ------------------------------------------------------------------------------------------------

    async def _tidy(self) -> None:
        """Keep the commits of the history in the clone, and the checkouts that may be needed soon."""
        applied = [one.commit.id for one in self.memory.history if one.outcome == "applied"]
        standing = frozenset({self.memory.pinned, self._attempted, *applied[-2:]} - {""})
        await self._repository.tidy(standing, (one.commit.id for one in self.memory.history))

    async def _remember(self, **fields: str | bool) -> None:
        await self._notes.keep(msgspec.structs.replace(self.memory, **fields))

    def _record(self, kind: str, message: str, *, reason: str = "", revision: str = "") -> None:
        if self._events is not None:
            self._events.record(kind, message=message, reason=reason, revision=revision)


def _named(commit: Commit) -> str:
    """`0123456789ab "Add qwen" by Alice`."""
    return f'{commit.id[:12]} "{commit.subject}" by {commit.author}'
