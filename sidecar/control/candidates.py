"""Whether a commit may come in force, and what is then read of it. Everything here blocks: it reads and imports."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from sidecar.control.revisions import take_over
from sidecar.core.manifest import Declaration, Problem
from sidecar.core.sourcing import Commit, GitDeclaration, shown
from sidecar.mechanism import source
from sidecar.mechanism.checkouts import Checkouts, is_lfs_pointer
from sidecar.mechanism.loader import Loaded
from sidecar.mechanism.source import Snapshot, SourceError
from sidecar.mechanism.sources import Library

Check = Callable[[Snapshot, Declaration | None, Library], Loaded]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A commit that may come in force. unfit: why it cannot even be read, "" if it can."""

    commit: Commit
    trigger: str
    signed_by: str = ""
    rewritten: bool = False
    unfit: str = ""


class Judge:
    """check: the loader, for this machine. library: the code of plugins in force."""

    def __init__(self, declared: GitDeclaration, checkouts: Checkouts, check: Check, library: Library) -> None:
        self._declared = declared
        self._checkouts = checkouts
        self._check = check
        self._library = library

    def judge(self, candidate: Candidate, before: Declaration | None) -> tuple[str, tuple[Problem, ...]]:
        """The revision in the commit, and what speaks against it. Imports its plugins, which nobody uses. Blocks."""
        commit = candidate.commit.id
        if candidate.unfit:
            return "", (Problem(file=shown(self._declared, commit), message=candidate.unfit),)
        try:
            snapshot = source.read(self._checkouts.manifests(commit))
        except SourceError as error:
            problem = Problem(file=shown(self._declared, commit), message=str(error))
            return "", self._in_repository((problem,), self._checkouts.place(commit))
        elsewhere = tuple(
            Problem(file=str(snapshot.root / name), line=1, message="is kept in git LFS, which is not fetched")
            for name, content in snapshot.files
            if is_lfs_pointer(content)
        )
        loaded = self._check(snapshot, before, Library())
        problems = elsewhere or take_over(before, loaded)[1].problems
        if self._declared.accept == "parts":
            problems = elsewhere
        return snapshot.revision, self._in_repository(problems, self._checkouts.place(commit))

    def load(self, before: Declaration) -> Loaded:
        """What is in force on disk. Blocks."""
        loaded = self._check(source.read(self._checkouts.root), before, self._library)
        return msgspec.structs.replace(loaded, problems=self._in_repository(loaded.problems, self._checkouts.live))

    def _in_repository(self, problems: Iterable[Problem], place: Path) -> tuple[Problem, ...]:
        """With files as they are called in the repository."""
        prefix = f"{place}/"
        return tuple(
            msgspec.structs.replace(
                problem,
                file=(problem.file or shown(self._declared)).removeprefix(prefix),
                message=problem.message.replace(prefix, ""),
            )
            for problem in problems
        )
