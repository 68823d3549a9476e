"""The clone of the source's repository: what its ref is there, what a commit is, who has signed it.

A bare repository of our own, in which each commit that is remembered has a ref, so that it can be gone back to whatever
happens to the branch. It can be thrown away at any time: then it is fetched again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from sidecar.core.names import printable
from sidecar.core.sourcing import Commit, GitDeclaration
from sidecar.mechanism.git import Git, GitError, Output

log = logging.getLogger(__name__)

FETCHED = "refs/sidecar/fetched"
KEPT = "refs/sidecar/kept/"

# Before all .gitattributes of a commit: files are written as they stand in it, byte for byte, which is what was signed.
_ATTRIBUTES = "* -text -ident -filter -working-tree-encoding\n"
_SSH_SIGNER = re.compile(r'Good "git" signature for (.+) with \S+ key (\S+)')
_GPG_SIGNER = re.compile(r"\[GNUPG:\] GOODSIG \S+ (.+)")


class Head(msgspec.Struct, frozen=True):
    """What the ref is on the server. name: in full. id: of what it points to, which may be a tag."""

    name: str
    id: str


class UnsignedError(GitError):
    """The commit is not signed by anybody who is trusted."""


class NoCommitError(GitError):
    """There is no such commit, neither here nor on the server."""


class Clone:
    """The clone in a folder. Everything raises GitError or OSError."""

    def __init__(self, folder: Path, declared: GitDeclaration, git: Git) -> None:
        self.folder = folder
        self._declared = declared
        self._git = git
        self._fetching = asyncio.Lock()

    async def open(self) -> None:
        """Make it if there is none, and clear away what a git that was killed has left."""
        await asyncio.to_thread(self._clear_locks)
        if not (self.folder / "HEAD").is_file():
            await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)
            await self._git.run("init", "--quiet", "--bare", "--template=", str(self.folder))
        await asyncio.to_thread(self._write_attributes)

    async def make_anew(self) -> None:
        """Throw it away, since something may be wrong with it."""
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)
        await self.open()

    async def head(self) -> Head:
        """Ask the server what the ref is."""
        declared = self._declared
        if declared.is_commit:
            return Head(declared.ref, declared.ref)
        names = _full_names(declared.ref)
        question = ("ls-remote", "--quiet", "--", declared.git, *names)
        output = await self._git.run(*question, folder=self.folder, secrets=True)
        found: dict[str, str] = {}
        for line in output.out.decode(errors="replace").splitlines():
            commit, _, name = line.partition("\t")
            found[name] = commit
        for name in names:
            if name in found:
                return Head(name, found[name])
        raise GitError(f'there is no branch or tag "{declared.ref}" at {declared.git}')

    async def fetch(self, head: Head) -> str:
        """Have what the ref is, or has become meanwhile; the commit that it is."""
        await self._fetch(f"+{head.name}:{FETCHED}")
        return await self._commit_of(FETCHED)

    async def find(self, name: str) -> str:
        """The commit whose id begins so; it is asked for if the clone does not have it and the name is whole."""
        with contextlib.suppress(GitError):
            return await self._commit_of(name)
        if len(name) not in (40, 64):
            raise NoCommitError(f"no commit that was fetched begins with {name}; a whole id would be asked for")
        try:
            await self._fetch(name)
        except GitError as error:
            if any(said in str(error) for said in ("not our ref", "unadvertised object", "remote ref")):
                raise NoCommitError(f"the server has no commit {name}: {error}") from None
            raise
        return await self._commit_of(name)

    async def has(self, commit: str) -> bool:
        """Whether the commit is here already."""
        return (await self._run("cat-file", "-e", f"{commit}^{{commit}}", ok=(0, 1, 128))).status == 0

    async def describe(self, commit: str) -> Commit:
        """Who, when and what."""
        output = await self._run("show", "--no-patch", "--no-show-signature", "--format=%ct%x00%an%x00%s", commit)
        at, author, subject = output.out.decode(errors="replace").rstrip("\n").split("\0", 2)
        return Commit(id=commit, author=printable(author[:200]), subject=printable(subject[:300]), at=float(at))

    async def descends(self, commit: str, ancestor: str) -> bool:
        """Whether `ancestor` is in the commit's history, as far as that is here. It is not after a force-push."""
        return (await self._run("merge-base", "--is-ancestor", ancestor, commit, ok=(0, 1, 128))).status == 0

    async def signer(self, commit: str) -> str:
        """Who has signed it, of those who are trusted. Raises UnsignedError."""
        output = await self._run("verify-commit", "--raw", commit, ok=range(256))
        told = output.err + output.out.decode(errors="replace")
        match = _SSH_SIGNER.search(told) or _GPG_SIGNER.search(told)
        if output.status == 0 and match:
            return " ".join(match.groups())
        lines = [line for line in told.splitlines() if line.strip() and not line.startswith("[GNUPG:]")]
        why = "; ".join(lines)[:300] if lines else "it has no signature"
        raise UnsignedError(f"is not signed by anybody who is trusted here: {why}")

    async def keep(self, commits: Iterable[str]) -> None:
        """Have a ref for each of these, and for no others; and pack what has come, now and then."""
        wanted = set(commits)
        listed = await self._run("for-each-ref", "--format=%(refname)", KEPT)
        there = {name.removeprefix(KEPT) for name in listed.out.decode().split()}
        for commit in wanted - there:
            if await self.has(commit):
                await self._run("update-ref", f"{KEPT}{commit}", commit)
        for commit in there - wanted:
            await self._run("update-ref", "-d", f"{KEPT}{commit}")
        try:
            await self._run("-c", "gc.auto=500", "gc", "--auto", "--quiet")
        except GitError as error:  # all of it in one pack may be more than max_size, which fetching it was not
            log.warning("the clone cannot be packed, and goes on as it is: %s", error)

    async def _fetch(self, what: str) -> None:
        depth = (f"--depth={self._declared.depth}",) if self._declared.depth else ()
        options = ("--quiet", "--force", "--no-tags", "--no-auto-gc", "--no-recurse-submodules")
        command = ("fetch", "--no-write-fetch-head", *options, *depth, "--", self._declared.git, what)
        async with self._fetching:
            try:
                await self._git.run(*command, folder=self.folder, secrets=True)
            except GitError as error:
                most = self._declared.max_size
                if await asyncio.to_thread(self._clear_drafts) >= most:  # git does not always say so
                    raise GitError(f"git fetch: there is more than max_size ({most} bytes) to fetch") from error
                raise

    async def _commit_of(self, name: str) -> str:
        output = await self._run(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", ok=(0, 1)
        )
        if output.status:
            raise NoCommitError(f"{name} is no commit")
        return output.out.decode().strip()

    async def _run(self, *arguments: str, ok: Iterable[int] = (0,)) -> Output:
        return await self._git.run(*arguments, folder=self.folder, ok=ok)

    def _clear_locks(self) -> None:
        """The state directory is locked by us, so no git that we have started is at work there."""
        for lock in self.folder.rglob("*.lock"):
            lock.unlink(missing_ok=True)
        self._clear_drafts()

    def _clear_drafts(self) -> int:
        """What a git that was killed has fetched half: again and again, that would fill the disk. The largest size."""
        most = 0
        for draft in (self.folder / "objects").rglob("tmp_*"):
            with contextlib.suppress(FileNotFoundError):
                most = max(most, draft.stat().st_size)
                draft.unlink()
        return most

    def _write_attributes(self) -> None:
        path = self.folder / "info" / "attributes"
        path.parent.mkdir(exist_ok=True)
        path.write_text(_ATTRIBUTES, "ascii")


def _full_names(ref: str) -> tuple[str, ...]:
    if ref == "HEAD" or ref.startswith("refs/"):
        return (ref,)
    return (f"refs/heads/{ref}", f"refs/tags/{ref}")
